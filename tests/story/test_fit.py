"""fit, validate and test: the files that a run leaves, what they say, and how a run goes on."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_guide.model import load_classifier

from .conftest import NO_EXPORT, fit, read_csv, results_of


def test_fit_leaves_exactly_these_files(trained):
    files = {path.relative_to(trained).as_posix() for path in trained.rglob("*") if path.is_file()}
    checkpoints = {f"checkpoints/{name}" for name in ("best.ckpt", "best.safetensors", "last.ckpt")}
    exports = {f"export/model.{suffix}" for suffix in ("onnx", "torchscript.pt", "pt2")}
    assert files == {"config.yaml", "metrics.csv", "results.json"} | checkpoints | exports
    for entry in results_of(trained)["exports"]:
        content = (trained / entry["path"]).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_the_figures_agree_with_each_other(trained):
    results, rows = results_of(trained), read_csv(trained / "metrics.csv")
    assert (results["device"]["accelerator"], results["epochs"], results["steps"]) == ("cpu", 2, 2 * 19)
    for split, count in (("val", 270), ("test", 359)):
        assert set(results[split]) == {"loss", "accuracy", "f1", "ece", "top5", "confusion_matrix"}
        matrix_KK = np.array(results[split]["confusion_matrix"])
        assert (matrix_KK.shape, matrix_KK.sum()) == ((10, 10), count)
        assert results[split]["accuracy"] == pytest.approx(matrix_KK.trace() / count, abs=1e-6)
    for name in ("train/loss", "train/accuracy", "val/loss", "val/accuracy"):
        assert {row["epoch"] for row in rows if row[name]} >= {"0", "1"}, name
    best = min(float(row["val/loss"]) for row in rows if row["val/loss"])
    assert results["val"]["loss"] == pytest.approx(best, abs=1e-5)


def test_config_yaml_alone_repeats_the_run_bit_for_bit(run, trained):
    assert run("fit", "--config", trained / "config.yaml", "--run_dir", "again", *NO_EXPORT)[0] == 0
    first, second = (load_classifier(folder / "checkpoints/last.ckpt") for folder in (trained, Path("again")))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    code, _, err = run(*fit("digits"), "--run_dir", "again")  # which is not written to again
    assert (code, "fit --run again" in err) == (2, True)


def test_validate_and_test_repeat_the_figures_of_fit(run, own_run):
    before = results_of(own_run)
    (own_run / "results.json").unlink()
    for command, split in (("validate", "val"), ("test", "test")):
        assert run(command, "--run", own_run)[0] == 0
        after = results_of(own_run)[split]
        assert after.pop("confusion_matrix") == before[split].pop("confusion_matrix")
        assert after == pytest.approx(before[split])


def test_fit_run_goes_on_where_it_ended_and_a_flag_wins(run, own_run):
    before = read_csv(own_run / "metrics.csv")
    code, out, _ = run("fit", "--run", own_run, "--trainer.max_epochs", "3", "--model.optimizer.lr", "0.001", *NO_EXPORT)
    assert (code, "model.optimizer.lr is 0.001 as given, in place of 0.002" in out) == (0, True)
    after = read_csv(own_run / "metrics.csv")
    assert [{name: row[name] for name in before[0]} for row in after[: len(before)]] == before
    losses = [float(row["train/loss"]) for row in after if row["train/loss"]]
    assert len(losses) == results_of(own_run)["epochs"] == 3
    assert losses[2] < losses[0]


def test_flags_reach_the_model_and_its_checkpoint(run):
    flags = """--model.network lit_guide.networks.CNN --model.network_args.widths [4]
        --model.loss MultiMarginLoss --model.loss.margin 0.5 --model.label_smoothing 0 --model.optimizer SGD
        --model.optimizer.lr 0.5 --model.scheduler StepLR --model.scheduler.step_size 3 --trainer.limit_train_batches 1"""
    code, _, err = run(*fit("digits"), *flags.split(), *NO_EXPORT)
    assert code == 0, err
    saved = torch.load("r/checkpoints/last.ckpt", weights_only=True)
    kept = saved["hyper_parameters"]
    assert [kept[key]["name"] for key in ("optimizer", "scheduler", "loss")] == ["SGD", "StepLR", "MultiMarginLoss"]
    assert (kept["network_args"]["widths"], kept["scheduler"]["step_size"], kept["loss"]["margin"]) == ([4], 3, 0.5)
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == 0.5
