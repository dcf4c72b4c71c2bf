"""Where a run is saved so that it goes on as if it had not ended: between steps, around validations, at its limits."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, LearningRateFinder, ModelCheckpoint, OnExceptionCheckpoint

from lit_guide.engine.errors import ConfigError
from lit_guide.engine.run.checkpoint import read_checkpoint
from lit_guide.engine.train.checkpoints import BestCheckpoint, check_callbacks
from lit_guide.engine.train.writer import CheckpointWriter
from lit_guide.model import LitClassifier
from tests import test_faults
from tests.conftest import FAST, Run
from tests.test_faults import (
    EPOCHS,
    LAST,
    NO_EXPORT,
    STEP_LR,
    STEPS,
    TRAIN,
    Fit,
    Watch,
    assert_same_end,
    break_off,
    equal,
    posix,
    rows,
)

fit, watch = test_faults.fit, test_faults.watch  # fixtures

EVERY_EPOCH_IS_BAD = [
    "--model.scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau",
    "--model.scheduler.factor=0.5",
    "--model.scheduler.patience=0",
    "--model.scheduler.threshold=10",
    "--model.scheduler.threshold_mode=abs",
]


def early_stop(patience: int) -> list[str]:
    """At the validation of that number, counted from 0: none is better than the first by 10."""
    name = "--trainer.callbacks"
    return [f"{name}=EarlyStopping", f"{name}.monitor=val/loss", f"{name}.min_delta=10", f"{name}.patience={patience}"]


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


def step_of(run_dir: str) -> int:
    return int(read_checkpoint(run_dir / LAST)["global_step"])


def goes_on(fit: Fit, watch: Watch, args: list[str], places: list[int], saved: list[int]) -> None:
    """Stop a run by a signal at each place, go on with it, and compare with one that was left alone."""
    watch.batches = []
    assert fit("--run_dir=whole", *args).code == 0
    whole = watch.batches
    for place, step in zip(places, saved, strict=True):
        watch.batches, part = [], f"part{place}"
        watch.before[place] = terminate
        assert fit(f"--run_dir={part}", *args).code == 143
        assert (step_of(part), len(watch.batches)) == (step, step)
        assert fit(f"--run={part}").code == 0
        assert equal(watch.batches, whole)
        assert_same_end("whole", part)
        assert rows(part) == rows("whole")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:ReduceLROnPlateau conditioned on metric val/loss")  # before the first validation
@pytest.mark.parametrize(("every", "places"), [(1, [1, STEPS + 1]), (2, [1, STEPS - 1, STEPS + 1, 2 * STEPS + 1])])
def test_f02_reduce_lr_on_plateau_sees_the_epoch_that_broke_off(fit: Fit, watch: Watch, every: int, places: list[int]) -> None:
    args = [*EVERY_EPOCH_IS_BAD, f"--trainer.check_val_every_n_epoch={every}"]
    goes_on(fit, watch, args, places, [place + 1 for place in places])
    assert read_checkpoint("whole" / LAST)["optimizer_states"][0]["param_groups"][0]["lr"] < 0.01


@pytest.mark.slow
def test_f02_a_signal_in_a_validation_within_an_epoch_saves_after_it(fit: Fit, watch: Watch) -> None:
    args = [*STEP_LR, "--trainer.val_check_interval=2"]
    goes_on(fit, watch, args, [-(STEPS + 2), STEPS + 1, STEPS + 2], [STEPS + 2, STEPS + 2, STEPS + 3])


def test_f02_no_validation_is_lost_where_they_are_counted_over_epochs(fit: Fit, watch: Watch) -> None:
    args = [*STEP_LR, "--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=3"]
    places = [5, 6, 8]  # a validation follows steps 6 and 9
    goes_on(fit, watch, args, places, [place + 1 for place in places])
    assert len([row for row in rows("whole") if "val/loss" in row]) >= EPOCHS * STEPS // 3


@pytest.mark.parametrize("place", [STEPS + 2, -(STEPS + 2), STEPS + 3])
def test_f02_a_run_that_validates_within_epochs_and_dies_goes_on_from_the_last_step(fit: Fit, watch: Watch, place: int) -> None:
    args = [*STEP_LR, "--checkpoint.every_n_steps=1", "--trainer.val_check_interval=2"]
    assert fit("--run_dir=whole", *args).code == 0
    whole, watch.batches = watch.batches, []
    watch.before[place] = break_off
    assert fit("--run_dir=part", *args).code == 1
    saved = step_of("part")
    assert saved == (place if place > 0 else STEPS + 1)
    watch.batches = watch.batches[:saved]
    assert fit("--run=part").code == 0
    assert equal(watch.batches, whole)
    assert_same_end("whole", "part")
    assert rows("part") == rows("whole")


@pytest.mark.parametrize(
    ("args", "limit", "saved"),
    [
        ([], [f"--trainer.max_steps={STEPS + 2}"], STEPS + 2),
        (["--trainer.check_val_every_n_epoch=2", "--trainer.val_check_interval=2"], [f"--trainer.max_steps={2}"], 2),
        (["--trainer.val_check_interval=2"], [f"--trainer.max_steps={STEPS + 2}"], STEPS + 2),
        (["--trainer.val_check_interval=2"], early_stop(2), STEPS + 2),
        (["--trainer.val_check_interval=2", "--trainer.accumulate_grad_batches=3"], early_stop(2), 3),
        (["--trainer.limit_val_batches=0", "--trainer.val_check_interval=2"], [f"--trainer.max_steps={2}"], 2),
    ],
    ids=["max_steps", "an epoch not validated", "and a validation", "early stop", "accumulating", "no validation"],
)
def test_f01_a_run_that_ended_within_an_epoch_is_trained_on(
    fit: Fit, watch: Watch, args: list[str], limit: list[str], saved: int
) -> None:
    assert fit("--run_dir=whole", *STEP_LR, *args).code == 0
    whole, watch.batches = watch.batches, []
    assert fit("--run_dir=part", *STEP_LR, *args, *limit).code == 0
    assert step_of("part") == saved
    done = len(watch.batches)
    goes = ["--trainer.max_steps=-1"] if "max_steps" in limit[0] else ["--trainer.callbacks=null"]
    assert fit("--run=part", *goes).code == 0
    assert done < len(watch.batches)
    assert equal(watch.batches, whole)
    assert_same_end("whole", "part")


def test_f01_a_run_whose_time_is_up_while_it_accumulates_is_saved(fit: Fit, watch: Watch) -> None:
    args = ["--trainer.accumulate_grad_batches=2", "--trainer.max_time=00:00:00:01"]
    watch.before[1] = lambda: time.sleep(1.1)
    assert fit("--run_dir=part", *args).code == 0
    assert step_of("part") >= 1
    assert len(watch.batches) == 2 * step_of("part")  # a window that was begun was ended
    done = fit("--run=part")
    assert done.code == 0
    assert "Nothing was left to train. To train on, give more --trainer.max_time;" in done.out


@pytest.mark.parametrize(("key", "limit"), [("max_steps", STEPS + 1), ("max_epochs", 1)])
def test_a_run_with_nothing_left_to_train_names_the_limit_that_holds(fit: Fit, key: str, limit: int) -> None:
    assert fit("--run_dir=part", f"--trainer.{key}={limit}").code == 0
    assert f"Nothing was left to train. To train on, set --trainer.{key} above {limit}.\n" in fit("--run=part").out


def test_f04_a_signal_in_the_validation_that_a_run_ends_with_is_not_forgotten(fit: Fit, watch: Watch) -> None:
    args = ["--trainer.val_check_interval=2"]
    assert fit("--run_dir=whole", *args).code == 0
    whole, watch.batches = watch.batches, []
    watch.before[-(STEPS + 2)] = terminate
    outcome = fit("--run_dir=part", *args, f"--trainer.max_steps={STEPS + 2}")
    assert outcome.code == 143
    assert "Stopped by SIGTERM." in outcome.err
    assert not Path("part/results.json").exists()
    assert step_of("part") == STEPS + 2
    assert fit("--run=part", "--trainer.max_steps=-1").code == 0
    assert equal(watch.batches, whole)
    assert_same_end("whole", "part")


def test_min_epochs_does_not_make_a_stopped_run_save_after_every_batch(
    fit: Fit, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    save = CheckpointWriter.save_checkpoint

    def count(self: CheckpointWriter, checkpoint: dict[str, Any], path: Path, storage_options: Any = None) -> None:
        if Path(path).name == LAST.name:
            saved.append(checkpoint["global_step"])
        save(self, checkpoint, path, storage_options)

    monkeypatch.setattr(CheckpointWriter, "save_checkpoint", count)
    assert fit("--run_dir=part", *early_stop(1), "--trainer.min_epochs=3").code == 0
    assert saved == [STEPS, 2 * STEPS, 3 * STEPS]
    assert sorted(watch.samples(2)) == list(range(TRAIN))


SLOW = """
import sys, time
from pathlib import Path
from lightning.pytorch import Trainer
from {package}.engine.train import writer
from {package}.cli import main
write, validate = writer._write, Trainer.validate
def tell(self, *args, **kwargs):
    Path(f"scored_by_{{self.global_rank}}").write_text(str(kwargs["ckpt_path"]))
    return validate(self, *args, **kwargs)
Trainer.validate = tell
writer._write = lambda *args: (time.sleep(2), write(*args))
sys.exit(main(sys.argv[1:]))
"""


@posix
@pytest.mark.slow
def test_all_processes_take_the_best_checkpoint_that_the_first_is_still_writing(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW.format(package=CheckpointWriter.__module__.split(".")[0]))
    args = ["--config=configs/digits.yaml", "--accelerator=cpu", "--devices=2", "--strategy=ddp", "--trainer.max_steps=2"]
    command = [sys.executable, "slow.py", "fit", *args, "--run_dir=run", *NO_EXPORT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    best = str(tmp_path / "run/checkpoints/best.ckpt")
    assert [(tmp_path / f"scored_by_{rank}").read_text() for rank in (0, 1)] == [best, best]


# --- F45: best and last are the run's own; F56: callbacks that look for settings


class Odd(ModelCheckpoint):
    FILE_EXTENSION = ""
    CHECKPOINT_NAME_LAST = "latest"


HERE = "run/checkpoints"


def check(kind: type[Checkpoint], given: dict[str, Any], folder: Path) -> None:
    given = {key: str(folder / value) if key == "dirpath" else value for key, value in given.items()}
    trainer = Trainer(accelerator="cpu", callbacks=[BestCheckpoint(folder / "run"), kind(**given)], logger=False)
    check_callbacks(trainer, folder / HERE)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (ModelCheckpoint, {"filename": "best"}),
        (ModelCheckpoint, {"filename": "Last", "every_n_epochs": 2}),
        (ModelCheckpoint, {"save_last": True}),
        (ModelCheckpoint, {"dirpath": HERE, "filename": "{epoch}", "save_last": "link"}),
        (ModelCheckpoint, {"dirpath": "run", "filename": "checkpoints/best"}),
        (ModelCheckpoint, {"dirpath": "run/export/../checkpoints", "filename": "best"}),
        (Odd, {"filename": "last.ckpt"}),
        (Odd, {"filename": "best.safetensors"}),
        (OnExceptionCheckpoint, {"dirpath": HERE, "filename": "last"}),
    ],
)
def test_f45_what_would_write_best_or_last_is_refused(kind: type[Checkpoint], given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{kind.__name__} would write best or last into checkpoints/") as refused:
        check(kind, given, tmp_path)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (ModelCheckpoint, {}),
        (ModelCheckpoint, {"filename": "best-{epoch}"}),
        (ModelCheckpoint, {"dirpath": "elsewhere", "filename": "best", "save_last": True}),
        (ModelCheckpoint, {"filename": "top", "save_last": False}),
        (Odd, {"save_last": True}),
        (OnExceptionCheckpoint, {"dirpath": HERE}),
        (OnExceptionCheckpoint, {"dirpath": "run", "filename": "last"}),
    ],
)
def test_f45_other_names_and_places_are_taken(kind: type[Checkpoint], given: dict[str, Any], tmp_path: Path) -> None:
    check(kind, given, tmp_path)


CALLBACK = "--trainer.callbacks"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["ModelCheckpoint", f"{CALLBACK}.save_last", "true"], "ModelCheckpoint would write best or last"),
        (["ModelCheckpoint", f"{CALLBACK}.filename", "best"], "ModelCheckpoint would write best or last"),
        (
            ["OnExceptionCheckpoint", f"{CALLBACK}.dirpath", "r/checkpoints", f"{CALLBACK}.filename", "best"],
            "OnExceptionCheckpoint",
        ),
        (["BatchSizeFinder"], "BatchSizeFinder changes what config.yaml states"),
        (["LearningRateFinder"], "give --data.batch_size and the rate"),
    ],
)
def test_f45_f56_fit_refuses_them_before_it_leaves_anything(run: Run, args: list[str], words: str) -> None:
    outcome = run("fit", "--config", "configs/digits.yaml", *FAST, "--run_dir", "r", CALLBACK, *args)
    assert outcome.code == 2
    assert words in outcome.err
    assert outcome.err.count("\n") == 1
    assert not Path("r").exists()


@pytest.mark.parametrize("brought", [ModelCheckpoint(save_last=True), LearningRateFinder()], ids=["last", "finder"])
def test_f45_f56_a_model_brings_none_either(run: Run, monkeypatch: pytest.MonkeyPatch, brought: Callback) -> None:
    monkeypatch.setattr(LitClassifier, "configure_callbacks", lambda self: [brought])
    outcome = run("fit", "--config", "configs/digits.yaml", *FAST, "--run_dir", "r")
    assert outcome.code == 2
    assert type(brought).__name__ in outcome.err
    assert not Path("r").exists()


def test_f45_ones_own_checkpoints_stand_beside_best_and_last(run: Run) -> None:
    own = (CALLBACK, "ModelCheckpoint", f"{CALLBACK}.filename", "top-{epoch}", f"{CALLBACK}.save_top_k", "-1")
    outcome = run("fit", "--config", "configs/digits.yaml", *FAST, "--run_dir", "r", *own, *NO_EXPORT)
    assert outcome.code == 0, outcome.err
    found = {path.name for path in Path("r/checkpoints").iterdir()}
    assert found == {"best.ckpt", "best.safetensors", "last.ckpt", "top-epoch=0.ckpt", "top-epoch=1.ckpt"}


@pytest.mark.parametrize("command", ["test", "validate"])
def test_f45_a_run_of_before_with_such_callbacks_is_scored(run: Run, own_run: Path, command: str) -> None:
    config = yaml.safe_load((own_run / "config.yaml").read_text())
    config["trainer"]["callbacks"] = [{"class_path": "ModelCheckpoint", "init_args": {"save_last": True}}]
    (own_run / "config.yaml").write_text(yaml.safe_dump(config))
    assert run(command, "--run", own_run).code == 0
