"""What `fit` says when training is over: how long it was, why it ended, and which epoch is the best."""

from pathlib import Path

import pytest
import torch
import yaml

from lit_guide.engine.run import runs
from tests.conftest import Run

QUICK = ["--config", "configs/digits.yaml", "--accelerator", "cpu", "--run_dir", "r", "--trainer.enable_model_summary", "false"]
QUICK += [word for name in ("onnx", "pt2", "torchscript") for word in (f"--export.{name}.enabled", "false")]


def stopping(**settings: object) -> list[str]:
    """Flags for early stopping on the validation loss."""
    one = {"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss", **settings}}
    Path("stop.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [one]}}))
    return ["--config", "stop.yaml"]


def told(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith(("Trained", "The best"))]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--trainer.max_epochs", "0"], "set --trainer.max_epochs above 0"),
        (["--trainer.limit_train_batches", "0"], "let there be batches: --trainer.limit_train_batches or the data leave none"),
        (["--trainer.max_epochs", "0", "--model.scheduler", "null"], "set --trainer.max_epochs above 0"),
    ],
)
def test_f58_without_a_step_nothing_is_scored_and_the_reason_is_said(run: Run, args: list[str], words: str) -> None:
    outcome = run("fit", *QUICK, *args)
    assert outcome.code == 0, outcome.err
    assert told(outcome.out) == [f"Trained 0 epochs, 0 steps: to train on, {words}."]
    results = runs.read_results(Path("r"))
    assert (results["epochs"], results["steps"], results["val"], results["test"]) == (0, 0, {}, {})
    assert "Next:" not in outcome.out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--trainer.max_epochs", "2"], "Trained 2 epochs, 38 steps: to train on, set --trainer.max_epochs above 2."),
        (["--trainer.max_steps", "25"], "Trained 2 epochs, 25 steps: to train on, set --trainer.max_steps above 25."),
    ],
)
def test_f58_the_limit_and_the_best_epoch_are_said(run: Run, args: list[str], words: str) -> None:
    outcome = run("fit", *QUICK, *args)
    best = torch.load("r/checkpoints/best.ckpt", weights_only=True)
    loss, epochs = runs.read_results(Path("r"))["val"]["loss"], runs.read_results(Path("r"))["epochs"]
    first, second = told(outcome.out)
    said, _, figure = second.rpartition(" of ")
    assert (first, said) == (words, f"The best is epoch {best['epoch'] + 1} of {epochs}, by its val/loss")
    assert float(figure.rstrip(".")) == pytest.approx(loss, abs=2e-4)


def test_f58_early_stopping_says_why_and_that_nothing_improved(run: Run) -> None:
    outcome = run("fit", *QUICK, *stopping(patience=2, min_delta=100.0), "--trainer.max_epochs", "9")
    first, second = told(outcome.out)
    epochs, best = 3, torch.load("r/checkpoints/best.ckpt", weights_only=True)["epoch"] + 1
    assert first.startswith(
        f"Trained {epochs} epochs, {19 * epochs} steps: Monitored metric val/loss did not improve in the last 2 "
    )
    assert second.startswith(f"The best is epoch {best} of {epochs}, by its val/loss of ")
    assert "Signaling" not in outcome.out


def test_f58_a_threshold_that_is_reached_is_the_reason(run: Run) -> None:
    outcome = run("fit", *QUICK, *stopping(stopping_threshold=100.0))
    assert told(outcome.out)[0].startswith("Trained 1 epochs, 19 steps: Stopping threshold reached: val/loss = ")


def test_f58_without_validation_the_training_loss_chooses(run: Run) -> None:
    outcome = run("fit", *QUICK, "--trainer.max_epochs", "2", "--data.val_fraction", "0")
    assert told(outcome.out)[1].startswith("The best is epoch 2 of 2, by its train/loss of ")


def test_f58_a_run_that_ends_before_it_validates_names_no_best_epoch(run: Run) -> None:
    outcome = run("fit", *QUICK, "--trainer.max_epochs", "2", "--trainer.check_val_every_n_epoch", "5")
    assert told(outcome.out) == ["Trained 2 epochs, 38 steps: to train on, set --trainer.max_epochs above 2."]


def test_f58_a_trial_run_says_that_it_is_one(run: Run) -> None:
    outcome = run("fit", *QUICK, "--trainer.fast_dev_run", "true")
    assert told(outcome.out) == ["Trained 1 epochs, 1 steps: to train on, leave out --trainer.fast_dev_run."]
