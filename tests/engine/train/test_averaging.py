"""F41: averaged weights are the ones that are tested, saved, shared and exported, and a run with them goes on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from lit_guide.engine.run.checkpoint import load_model, read_checkpoint
from lit_guide.model import LitClassifier
from tests.conftest import Outcome, Run
from tests.test_faults import equal

FIT = ["--config=configs/digits.yaml", "--accelerator=cpu", "--trainer.max_epochs=3", "--trainer.limit_train_batches=6"]
FIT += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--model.scheduler=null"]
FIT += ["--export.torchscript.enabled=false", "--export.pt2.enabled=false", "--model.network_args={widths: [8, 16]}"]
BATCH_NORM_FREE = ["--model.network=lit_guide.networks.Plain", "--model.network_args={}"]
AVERAGES = {
    "mean": ["--trainer.callbacks=WeightAveraging"],
    "exponential": ["--trainer.callbacks=EMAWeightAveraging", "--trainer.callbacks.decay=0.5"],
    "stochastic": [
        "--trainer.callbacks=StochasticWeightAveraging",
        "--trainer.callbacks.swa_lrs=0.01",
        "--trainer.callbacks.swa_epoch_start=1",
    ],
}


class Plain(torch.nn.Sequential):
    """A network without BatchNorm."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(64 * channels, 16), torch.nn.ReLU(), torch.nn.Linear(16, classes))


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    import lit_guide.networks

    monkeypatch.setattr(Plain, "__module__", "lit_guide.networks")
    monkeypatch.setattr(lit_guide.networks, "Plain", Plain, raising=False)


def done(outcome: Outcome) -> None:
    assert outcome.code == 0, outcome.out + outcome.err


def figures(run_dir: str, section: str) -> dict[str, Any]:
    return dict(json.loads(Path(run_dir, "results.json").read_text())[section])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*SWA is currently only supported every epoch")
@pytest.mark.parametrize("network", [[], BATCH_NORM_FREE], ids=["BatchNorm", "none"])
@pytest.mark.parametrize("average", AVERAGES)
def test_f41_one_set_of_weights_is_tested_saved_shared_and_exported(run: Run, average: str, network: list[str]) -> None:
    done(run("fit", *FIT, "--run_dir=a", *AVERAGES[average], *network))
    fitted = {section: figures("a", section) for section in ("val", "test")}
    for command, section in (("validate", "val"), ("test", "test")):
        done(run(command, "--run=a"))
        assert figures("a", section) == fitted[section]
    model, saved = load_model("a/checkpoints/best.ckpt", LitClassifier)
    assert equal(load_file("a/checkpoints/best.safetensors"), saved["state_dict"])
    if average != "stochastic":
        assert not equal(saved["current_model_state"], saved["state_dict"])
    image_BCHW = torch.rand(3, 1, 8, 8)
    session = onnxruntime.InferenceSession("a/export/model.onnx", providers=["CPUExecutionProvider"])
    (exported_BK,) = session.run(None, {"input": image_BCHW.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(exported_BK, model(image_BCHW).numpy(), atol=1e-4)
    done(run("predict", "--run=a"))
    rows = json.loads(Path("a/predictions.json").read_text())
    assert sum(row["class"] == row["label"] for row in rows) / len(rows) == pytest.approx(fitted["test"]["accuracy"], abs=1e-6)


@pytest.mark.slow
def test_f41_the_mean_of_the_last_epochs_is_the_best_model(run: Run) -> None:
    """By hand: without BatchNorm its weights are the mean of those at the start of epochs 2 and 3, and of no checkpoint."""
    weights = [
        "--trainer.callbacks+=ModelCheckpoint",
        "--trainer.callbacks.filename=at-{epoch}",
        "--trainer.callbacks.save_top_k=-1",
    ]
    weights += ["--trainer.callbacks.every_n_epochs=1"]
    done(run("fit", *FIT, "--run_dir=a", *AVERAGES["stochastic"], *weights, *BATCH_NORM_FREE, "--trainer.max_epochs=3"))
    at = [read_checkpoint(f"a/checkpoints/at-epoch={epoch}.ckpt")["state_dict"] for epoch in (0, 1)]
    best = read_checkpoint("a/checkpoints/best.ckpt")["state_dict"]
    first = read_checkpoint("a/checkpoints/at-epoch=2.ckpt")["state_dict"]
    names = [name for name in best if name.endswith(("weight", "bias"))]
    start = _weights_at_start(run)
    for name in names:
        torch.testing.assert_close(best[name], (start[name] + at[0][name] + at[1][name]) / 3)
        assert not torch.equal(best[name], first[name])


def _weights_at_start(run: Run) -> dict[str, torch.Tensor]:
    done(run("fit", *FIT, "--run_dir=start", *BATCH_NORM_FREE, "--model.optimizer.lr=0", "--trainer.max_epochs=1"))
    weights: dict[str, torch.Tensor] = read_checkpoint("start/checkpoints/last.ckpt")["state_dict"]
    return weights


@pytest.mark.parametrize("average", ["mean", "exponential"])
def test_f41_a_run_that_broke_off_goes_on_as_if_it_had_not(run: Run, average: str) -> None:
    done(run("fit", *FIT, "--run_dir=whole", *AVERAGES[average]))
    done(run("fit", *FIT, "--run_dir=part", *AVERAGES[average], "--trainer.max_epochs=1"))
    done(run("fit", "--run=part", "--trainer.max_epochs=3"))
    for name in ("best", "last"):
        whole, part = (read_checkpoint(f"{run_dir}/checkpoints/{name}.ckpt") for run_dir in ("whole", "part"))
        for key in ("state_dict", "current_model_state", "optimizer_states"):
            assert equal(whole[key], part[key]), (name, key)
    assert figures("whole", "test") == figures("part", "test")


def test_f41_class_weights_count_in_the_averaged_model_from_the_start(run: Run) -> None:
    done(run("fit", *FIT, "--run_dir=a", *AVERAGES["mean"], "--model.class_weights=auto"))
    fitted = figures("a", "val")
    done(run("validate", "--run=a"))
    assert figures("a", "val") == fitted


def test_f43_a_configuration_with_a_device_is_read_back(run: Run) -> None:
    done(run("fit", *FIT, "--run_dir=a", *AVERAGES["stochastic"], "--trainer.max_epochs=1"))
    done(run("fit", "--run=a", "--trainer.max_epochs=2"))


def test_f41_fit_test_and_the_shared_file_agree(run: Run) -> None:
    done(run("fit", *FIT, "--run_dir=a", *AVERAGES["exponential"], "--export.onnx.enabled=false"))
    fitted = figures("a", "test")
    done(run("test", "--run=a"))
    assert figures("a", "test") == fitted
    saved = read_checkpoint("a/checkpoints/best.ckpt")
    assert equal(load_file("a/checkpoints/best.safetensors"), saved["state_dict"])
    assert not equal(saved["current_model_state"], saved["state_dict"])
