"""F43: what Lightning offers by class name either trains, and is read back to the same run, or is refused before training."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import callbacks, loggers, plugins, profilers, strategies

from tests.conftest import Outcome, Run

FIT = ["fit", "--config=configs/digits.yaml", "--accelerator=cpu", "--trainer.max_epochs=1", "--run_dir=a"]
FIT += [f"--trainer.limit_{split}_batches=2" for split in ("train", "val", "test")]
FIT += [f"--export.{name}.enabled=false" for name in ("torchscript", "onnx", "pt2")]
FIT += ["--model.network_args={widths: [4]}"]
KINDS = {"callbacks": callbacks, "logger": loggers, "profiler": profilers, "strategy": strategies, "plugins": plugins}
# What a class lacks, or is to be tried with, in a file.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "BasePredictionWriter": {"write_interval": "epoch"},
    "DDPStrategy": {"find_unused_parameters": True},
    "DeviceStatsMonitor": {"cpu_stats": True},
    "EMAWeightAveraging": {"decay": 0.5, "device": "cpu"},
    "EarlyStopping": {"monitor": "val/loss", "patience": 5},
    "GradientAccumulationScheduler": {"scheduling": {0: 2, 1: 1}},
    "LearningRateMonitor": {"logging_interval": "step"},
    "ModelCheckpoint": {"filename": "mine-{epoch}", "monitor": "val/loss"},
    "ModelPruning": {"pruning_fn": "l1_unstructured", "amount": 0.1},
    "OnExceptionCheckpoint": {"dirpath": "x"},
    "RichModelSummary": {"max_depth": 2},
    "RichProgressBar": {"refresh_rate": 5},
    "StochasticWeightAveraging": {"swa_lrs": 0.01},
    "TQDMProgressBar": {"refresh_rate": 5},
    "Timer": {"duration": "00:00:10:00"},
    **{name: {"save_dir": "logs"} for name in ("CSVLogger", "MLFlowLogger", "TensorBoardLogger", "WandbLogger")},
    **{f"{name}Profiler": {"filename": "times"} for name in ("Advanced", "PyTorch")},
}
# Refused, and by which words; all others train.
TYPED, LACKS, ABSTRACT, OTHERS = "is typed: --trainer.", " lacks ", "is abstract", "may not be imported by a configuration"
REFUSED = {
    "AdvancedProfiler": TYPED,
    "AsyncCheckpointIO": "multiple values for CheckpointIO",
    "BackboneFinetuning": "BackboneFinetuning does not fit this model or these settings: ",
    "BaseFinetuning": "BaseFinetuning does not fit this model or these settings: ",
    "BatchSizeFinder": "changes what config.yaml states",
    "BitsandbytesPrecision": LACKS,
    "CSVLogger": TYPED,
    "Callback": OTHERS,
    "CheckpointIO": OTHERS,
    "CometLogger": "What sends figures away is typed: --trainer.logger CometLogger",
    "DeepSpeedPrecision": LACKS,
    "DeepSpeedStrategy": "you must have DeepSpeed installed",
    "FSDPPrecision": LACKS,
    "FSDPStrategy": "spreads a model over NVIDIA GPUs",
    "HalfPrecision": "The loss became nan",  # Adam's epsilon is 0 in float16
    "LambdaCallback": "is no class that a configuration may name",
    "LayerSync": "there is no class 'LayerSync'",
    "LearningRateFinder": "changes what config.yaml states",
    "LitLogger": "there is no class 'LitLogger'",
    "Logger": ABSTRACT,
    "MLFlowLogger": TYPED,
    "MixedPrecision": LACKS,
    "ModelParallelStrategy": "use --strategy fsdp",
    "OnExceptionCheckpoint": TYPED,
    "ParallelStrategy": ABSTRACT,
    "Profiler": ABSTRACT,
    "ProgressBar": "several classes have this name",
    "PyTorchProfiler": TYPED,
    "SpikeDetection": "is no class that a configuration may name",
    "Strategy": ABSTRACT,
    "TensorBoardLogger": TYPED,
    "ThroughputMonitor": LACKS,
    "TorchCheckpointIO": OTHERS,
    "TransformerEnginePrecision": LACKS,
    "WandbLogger": TYPED,
    "XLACheckpointIO": OTHERS,
    "XLAPrecision": "Requirement 'torch_xla",
    "XLAProfiler": "Requirement 'torch_xla",
}

# torch's profiler, of Lightning's PyTorchProfiler, can't be let go of without one.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <function Profiler.__del__")


@pytest.fixture(autouse=True)
def let_go() -> Iterator[None]:
    """What DDP leaves in this process ends with a test: its group, and what it tells to others by the environment."""
    before = dict(os.environ)
    yield
    gc.collect()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


def classes() -> Iterator[tuple[str, str]]:
    for kind, module in KINDS.items():
        names = [name for name in module.__all__ if isinstance(getattr(module, name), type)]
        yield from ((kind, name) for name in names)


def done(outcome: Outcome) -> None:
    assert outcome.code == 0, outcome.out + outcome.err


def config() -> dict[str, Any]:
    return dict(yaml.safe_load(Path("a/config.yaml").read_text(encoding="utf-8")))


def goes_on_with_the_same(run: Run, *typed: str) -> None:
    """A second epoch, and a test, of the run as its config.yaml has it."""
    before = config()
    done(run("fit", "--run=a", "--trainer.max_epochs=2", *typed))
    after = config()
    assert after["trainer"].pop("max_epochs") == 2
    assert before["trainer"].pop("max_epochs") == 1
    assert after == before
    done(run("test", "--run=a"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*SWA is currently only supported every epoch")
@pytest.mark.parametrize(("kind", "name"), [*classes()])
def test_f43_a_class_of_lightning_is_read_back_or_refused(run: Run, kind: str, name: str) -> None:
    entry = {"class_path": name, "init_args": ARGUMENTS.get(name, {})}
    one = entry if kind in ("profiler", "strategy") else [entry]
    Path("more.yaml").write_text(yaml.safe_dump({"trainer": {kind: one}}))
    outcome = run(*FIT, "--config=more.yaml")
    if name not in REFUSED:
        done(outcome)
        assert name in yaml.safe_dump(config()["trainer"][kind])
        goes_on_with_the_same(run)
        return
    assert outcome.code == (1 if name == "HalfPrecision" else 2), outcome.out + outcome.err
    assert REFUSED[name] in outcome.err
    assert "Traceback" not in outcome.err
    assert Path("a").exists() == (name == "HalfPrecision")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The PyTorch Profiler default schedule will be overridden")
# Lightning looks for a file of OnExceptionCheckpoint to go on from.
@pytest.mark.filterwarnings("ignore:.*was called without a model", "ignore:.*but there is no last checkpoint available")
@pytest.mark.parametrize(
    "typed",
    [
        ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"],
        ["--trainer.profiler=AdvancedProfiler", "--trainer.profiler.filename=times"],
        ["--trainer.profiler=PyTorchProfiler", "--trainer.profiler.filename=times"],
        ["--trainer.callbacks=OnExceptionCheckpoint", "--trainer.callbacks.dirpath=x"],
        ["--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.dirpath=y"],
        ["--trainer.profiler=simple"],
    ],
    ids=lambda typed: typed[0].rpartition("=")[2],
)
def test_f43_what_names_a_place_goes_on_with_it_typed_and_is_tested_without(run: Run, typed: list[str]) -> None:
    done(run(*FIT, *typed))
    goes_on_with_the_same(run, *typed[1:])
    Path("a/checkpoints/last.ckpt").rename("last.ckpt")
    done(run("validate", "--run=a", "--ckpt_path=last.ckpt", "--run_dir=b"))


def test_f43_the_progress_bar_of_ones_own_takes_the_place_of_ours(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = run(*FIT, "--trainer.callbacks=TQDMProgressBar", "--trainer.callbacks.refresh_rate=1")
    done(outcome)
    assert "Epoch 0: 100%" in outcome.out + outcome.err
