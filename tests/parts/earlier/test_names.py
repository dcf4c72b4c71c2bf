"""What version 0.1.0 wrote and taught goes on: its run directories, configurations, names and commands."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import lit_guide
from lit_guide.cli import main
from lit_guide.engine.run.checkpoint import read_checkpoint
from tests.conftest import Run

EARLIER = "b1aabd1"  # the last commit of version 0.1.0
ROOT = Path(str(lit_guide.__file__)).parents[1]
QUIET = ["--accelerator", "cpu", "--trainer.enable_model_summary", "false"]
NO_EXPORT = [f"--export.{name}.enabled=false" for name in ("onnx", "torchscript", "pt2")]

# --- names: a saved configuration has them, and code that was written for 0.1.0

NAMES = {
    "lit_guide": "CNN ArrayDataset ArraysData DataModule DigitsData FolderData ImageFolderDataset LitClassifier TableData "
    "TorchvisionData build_network load_classifier",
    "lit_guide.model": "LitClassifier",
    "lit_guide.networks": "CNN NETWORKS build_network",
    "lit_guide.optim": "WarmupCosine find_class from_plain to_plain",
    "lit_guide.errors": "UserError ConfigError Stopped is_first warn",
    "lit_guide.callbacks.checkpoint": "BestCheckpoint LastCheckpoint best_checkpoint",
    "lit_guide.callbacks.export": "Export ExportONNX ExportProgram ExportTorchScript",
    "lit_guide.callbacks.guards": "Guards",
    "lit_guide.callbacks.progress": "ProgressBar",
    "lit_guide.callbacks.report": "MetricsCSV NoProfiler Throughput",
    "lit_guide.callbacks.stop": "Stop",
    "lit_guide.callbacks.summary": "Summary",
    "lit_guide.data": "ArrayDataset ArraysData DataModule DigitsData FolderData ImageFolderDataset PhotoData Source TableData "
    "TorchvisionData",
    "lit_guide.data.arrays": "ArrayDataset ArraysData read_npy_folder read_npz",
    "lit_guide.data.augment": "random_affine random_crop_flip to_float",
    "lit_guide.data.base": "DataModule Source",
    "lit_guide.data.cache": "CachedImages",
    "lit_guide.data.decode": "UnreadableImageError decode decode_bytes find_images image_mode read_bytes",
    "lit_guide.data.digits": "DigitsData",
    "lit_guide.data.examine": "Examined difference_hash examine",
    "lit_guide.data.files": "ImageDataset Paths",
    "lit_guide.data.folder": "FolderData ImageFolderDataset",
    "lit_guide.data.loaders": "Split evaluation_loader",
    "lit_guide.data.photos": "Listing PhotoData",
    "lit_guide.data.samplers": "Places TrainBatches seed_all",
    "lit_guide.data.splits": "grouped_split named_split stratified_split",
    "lit_guide.data.table": "TableData",
    "lit_guide.data.torchvision_set": "TorchvisionData",
    "lit_guide.data.transforms": "EvalTransform TrainTransform",
}


@pytest.mark.parametrize("module", NAMES)
def test_earlier_names_are_importable(module: str) -> None:
    found = import_module(module)
    assert [name for name in NAMES[module].split() if not hasattr(found, name)] == []


def test_earlier_names_are_the_same_objects() -> None:
    for earlier, now in (
        ("optim.WarmupCosine", "engine.train.optim.WarmupCosine"),
        ("callbacks.export.ExportONNX", "export.onnx.ExportONNX"),
        ("callbacks.report.NoProfiler", "engine.train.progress.NoProfiler"),
        ("data.base.DataModule", "engine.data.module.DataModule"),
        ("data.photos.PhotoData", "engine.photos.module.PhotoData"),
    ):
        one, other = (import_module(f"lit_guide.{path.rpartition('.')[0]}") for path in (earlier, now))
        name = now.rpartition(".")[2]
        assert getattr(one, name) is getattr(other, name)


def test_a_configuration_that_names_classes_where_they_were_is_read(run: Run) -> None:
    def called(path: str, **arguments: object) -> dict[str, object]:
        return {"class_path": f"lit_guide.{path}", "init_args": arguments}

    config = {
        "data": called("data.digits.DigitsData", batch_size=32),
        "model": {"scheduler": called("optim.WarmupCosine", warmup=0.2)},
        "trainer": {
            "profiler": called("callbacks.report.NoProfiler"),
            "callbacks": [
                called("callbacks.report.Throughput"),
                called("callbacks.guards.Guards"),
                called("callbacks.export.ExportONNX", opset=19, enabled=False),
            ],
        },
    }
    Path("earlier.yaml").write_text(yaml.safe_dump(config))
    outcome = run("fit", "--config", "earlier.yaml", *QUIET, "--trainer.max_epochs", "1", "--run_dir", "r", *NO_EXPORT)
    assert outcome.code == 0, outcome.err
    saved = read_checkpoint("r/checkpoints/last.ckpt")
    assert saved["hyper_parameters"]["scheduler"]["warmup"] == 0.2
    assert saved["global_step"] == 37  # batches of 32


# --- commands: those of its README

COMMANDS = """
fit --config configs/digits.yaml
fit --config configs/folder.yaml --data.root photos
fit --config configs/table.yaml --data.table photos.csv
fit --config configs/arrays.yaml --data.path my.npz
fit --config configs/torchvision.yaml --data.dataset CIFAR10
fit --config configs/torchvision.yaml --data.dataset CIFAR10 --data.root sets
fit --config configs/digits.yaml --model.network resnet18
fit --config configs/digits.yaml --model.network_args.widths [16,32]
fit --config configs/digits.yaml --model.network_args.hidden 128
fit --config configs/arrays.yaml --data.path my.npz --data.image_size 224 --model.network resnet18 --model.weights DEFAULT
fit --config configs/digits.yaml --model.channels_last true
fit --config configs/digits.yaml --model.compile true
fit --config configs/digits.yaml --model.optimizer.fused true
fit --config configs/digits.yaml --model.scale_lr true
fit --config configs/digits.yaml --trainer.sync_batchnorm true
fit --config configs/digits.yaml --model.optimizer SGD --model.optimizer.lr 0.1
fit --config configs/digits.yaml --config configs/warmup_cosine.yaml
fit --config configs/digits.yaml --accelerator gpu --devices 1 --precision bf16-mixed
fit --config configs/digits.yaml --config configs/device/ddp.yaml
fit --config configs/digits.yaml --config configs/device/fsdp.yaml
fit --config configs/digits.yaml --accelerator cpu --devices 2 --strategy ddp
fit --config configs/digits.yaml --run_dir runs/mine
fit --config configs/digits.yaml --checkpoint.every_n_steps 100
fit --config configs/digits.yaml --export.onnx.enabled false
fit --config configs/digits.yaml --export.torchscript.method script
fit --config configs/digits.yaml --config configs/debug/one_batch.yaml
fit --config configs/digits.yaml --config configs/debug/overfit.yaml
fit --config configs/digits.yaml --config configs/debug/profile.yaml
fit --config configs/digits.yaml --config configs/debug/anomaly.yaml
fit --config configs/digits.yaml --trainer.logger CSVLogger --trainer.logger.save_dir tb
fit --config configs/digits.yaml --trainer.max_time 00:08:00:00
fit --config configs/folder.yaml --data.root photos --data.group_pattern (p\\d+)_
fit --config configs/folder.yaml --data.root photos --data.on_bad_image skip
fit --config configs/folder.yaml --data.root photos --data.flip false
fit --config configs/folder.yaml --data.root photos --data.auto_augment trivialaugment --data.erasing 0.25
fit --config configs/folder.yaml --data.root photos --data.auto_augment randaugment --data.mixup 0.2 --data.cutmix 1.0
fit --config configs/folder.yaml --data.root photos --data.sampler balanced
fit --config configs/folder.yaml --data.root photos --model.class_weights auto
fit --config configs/folder.yaml --data.root photos --data.statistics compute
fit --config configs/folder.yaml --data.root photos --data.cache disk --data.num_workers 4
fit --config configs/digits.yaml --config configs/device/multinode.yaml --trainer.num_nodes 2 --devices 4
fit --config configs/digits.yaml --run_dir runs/first --resume true
fit --config configs/digits.yaml --config configs/device/multinode.yaml --trainer.strategy.timeout 0:05:00
fit --config configs/digits.yaml --config configs/device/slurm.yaml --config configs/device/fsdp.yaml
fit --run RUN
fit --run RUN --trainer.max_epochs 30
test --run RUN
validate --run RUN
test --config configs/digits.yaml --ckpt_path RUN/checkpoints/best.safetensors
test --config configs/digits.yaml --ckpt_path RUN/checkpoints/best.ckpt --run_dir elsewhere
predict --run RUN
predict --run RUN --images a.png some_folder/
"""


@pytest.mark.parametrize("line", COMMANDS.strip().splitlines())
def test_a_command_of_the_earlier_readme_still_parses(run: Run, trained: Path, line: str) -> None:
    outcome = run(*line.replace("RUN", str(trained)).split(), "--print_config")
    assert outcome.code == 0, outcome.err
    assert yaml.safe_load(outcome.out)["data"]


def test_exports_of_the_earlier_readme_still_parse(run: Run, own_run: Path) -> None:
    outcome = run("export", "--run", own_run, "--formats", "torchscript", "--export.torchscript.method", "script")
    assert outcome.code == 0, outcome.err
    assert json.loads((own_run / "results.json").read_text())["exports"][-1]["method"] == "script"


@pytest.mark.parametrize(
    "line", ["check --fix quarantine", "check --output out", "check --near_bits 3", "show --output out", "show --samples 8"]
)
def test_looking_at_data_still_parses(run: Run, line: str) -> None:
    command, *more = line.split()
    outcome = run("data", command, "--config", "configs/folder.yaml", "--data.root", "photos", *more, "--print_config")
    assert outcome.code == 0, outcome.err


# --- run directories and configurations that 0.1.0 wrote


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the package and the recipes of version 0.1.0, out of this repository's history."""
    archive = subprocess.run(
        ["git", "archive", EARLIER, "lit_guide", "configs", "pyproject.toml"], cwd=ROOT, capture_output=True, check=False
    )
    if archive.returncode != 0:
        pytest.skip(f"commit {EARLIER} is not in this history, as in a shallow clone: git fetch --unshallow")
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as content:
        content.extractall(folder, filter="data")
    return folder


def started(package: Path, cwd: Path, *args: str) -> subprocess.Popen[str]:
    """A command of version 0.1.0; on one thread, since sums in another order differ in the last bits."""
    environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lit_guide", *args]
    return subprocess.Popen(command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def then(package: Path, cwd: Path, *args: str) -> None:
    """A command of version 0.1.0."""
    process = started(package, cwd, *args)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said


@pytest.fixture
def now(earlier: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """Run a command of today in the folder of the earlier runs, on one thread as they did; gives what it says."""
    monkeypatch.chdir(earlier)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def call(*args: str) -> str:
        code = main(list(args))
        said = capsys.readouterr()
        assert code == 0, said.err
        return said.out

    yield call
    torch.set_num_threads(threads)


KINDS = {
    "plain": ["--config", "configs/digits.yaml"],
    "schedule": [
        *["--config", "configs/digits.yaml", "--model.scheduler", "OneCycleLR", "--model.scheduler.max_lr", "0.01"],
        *["--model.class_weights", "auto", "--checkpoint.every_n_steps", "5"],
    ],
    "photos": [
        *["--config", "configs/folder.yaml", "--data.root", "photos", "--data.image_size", "32", "--data.batch_size", "8"],
        *["--model.network", "cnn", "--data.num_workers", "0", "--data.crop", "0.8"],
        *["--model.scheduler", "StepLR", "--model.scheduler.step_size", "1", "--model.class_weights", "[1,2]"],
    ],
}


@pytest.fixture(scope="module", params=KINDS)
def earlier(request: pytest.FixtureRequest, package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run`, of two epochs, and `whole`, of three: both by version 0.1.0; and `photos`."""
    folder = tmp_path_factory.mktemp("runs")
    random = np.random.default_rng(0)
    for number in range(60):
        path = folder / "photos" / ("dark" if number % 2 else "light") / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 120, (48, 64, 3), dtype=np.uint8) + np.uint8(0 if number % 2 else 130)
        Image.fromarray(pixels).save(path)
    args = [*KINDS[request.param], *QUIET, "--export.onnx.enabled=false", "--export.pt2.enabled=false"]
    then(package, folder, "fit", *args, "--trainer.max_epochs", "2", "--run_dir", "run")
    then(package, folder, "fit", *args, "--trainer.max_epochs", "3", "--run_dir", "whole")
    for what, more in (("split", []), ("images", ["--images", "photos"])):
        then(package, folder, "predict", "--run", "whole", *more, "--run_dir", f"earlier_{what}")
    return folder


def figures(run_dir: Path) -> dict[str, object]:
    return json.loads((run_dir / "results.json").read_text())


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def assert_same_weights(one: Path, other: Path, name: str = "last.ckpt") -> None:
    first, second = (read_checkpoint(run_dir / "checkpoints" / name)["state_dict"] for run_dir in (one, other))
    assert [key for key in first if not torch.equal(first[key], second[key])] == []
    assert first.keys() == second.keys()


@pytest.mark.slow
def test_a_run_is_repeated_by_its_configuration_to_the_same_bits(earlier: Path, now: Callable[..., str]) -> None:
    now("fit", "--config", "whole/config.yaml", "--run_dir", "again")
    for name in ("best.ckpt", "last.ckpt"):
        assert_same_weights(earlier / "whole", earlier / "again", name)
    assert rows(earlier / "whole") == rows(earlier / "again")
    before, now = figures(earlier / "whole"), figures(earlier / "again")
    assert [now[key] for key in ("epochs", "steps", "val", "test")] == [before[key] for key in ("epochs", "steps", "val", "test")]


@pytest.mark.slow
def test_a_run_is_gone_on_with(earlier: Path, now: Callable[..., str]) -> None:
    if "OneCycleLR" in (earlier / "run/config.yaml").read_text():
        pytest.skip("it takes no more steps than the run began with, in 0.1.0 neither")
    folder = Path(shutil.copytree(earlier / "run", earlier / "further"))
    now("fit", "--run", "further", "--trainer.max_epochs", "3")
    assert read_checkpoint(folder / "checkpoints/last.ckpt")["epoch"] == 2
    assert figures(folder)["epochs"] == 3
    assert (folder / "export/model.torchscript.pt").is_file()
    assert len([row for row in rows(folder) if "train/loss" in row]) == 3
    if "StepLR" in (folder / "config.yaml").read_text():  # WarmupCosine's would be of three epochs, not of two
        assert_same_weights(earlier / "whole", folder)
    assert "Nothing was left to train." in now("fit", "--run", "further")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no POSIX signals")
def test_a_run_that_was_broken_off_in_the_middle_ends_as_if_it_had_not_been(
    earlier: Path, now: Callable[..., str], package: Path
) -> None:
    last = earlier / "broken/checkpoints/last.ckpt"
    settings = ["--config", "whole/config.yaml", "--checkpoint.every_n_steps", "1"]
    process = started(package, earlier, "fit", *settings, "--run_dir", "broken")
    while process.poll() is None and not last.is_file():
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 143, said
    steps = read_checkpoint(last)["global_step"]
    assert 0 < steps < figures(earlier / "whole")["steps"]
    now("fit", "--run", "broken")
    for name in ("best.ckpt", "last.ckpt"):
        assert_same_weights(earlier / "whole", earlier / "broken", name)
    assert rows(earlier / "whole") == rows(earlier / "broken")


@pytest.mark.slow
def test_a_run_is_scored_and_exported(earlier: Path, now: Callable[..., str]) -> None:
    before = figures(earlier / "whole")
    for command, section in (("test", "test"), ("validate", "val")):
        now(command, "--run", "whole", "--run_dir", f"scored_{command}")
        assert figures(earlier / f"scored_{command}")[section] == before[section]
    now("test", "--run", "run")
    (exported,) = (earlier / "run/export").iterdir()
    exported.unlink()
    now("export", "--run", "run", "--formats", "torchscript,onnx")
    assert {path.name for path in (earlier / "run/export").iterdir()} == {"model.torchscript.pt", "model.onnx"}
    crop, before = (metadata(earlier / run / "export/model.torchscript.pt")["crop"] for run in ("run", "whole"))
    assert crop == before
    assert crop == (0.8 if (earlier / "run/config.yaml").read_text().endswith("name: folder\n") else None)


def metadata(path: Path) -> dict[str, object]:
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("extra/metadata.json")]
        return json.loads(archive.read(name))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["split", "images"])
def test_a_run_predicts_what_it_predicted(earlier: Path, now: Callable[..., str], what: str) -> None:
    more = ["--images", "photos"] if what == "images" else []
    shared = ["--config", "whole/config.yaml", "--ckpt_path", "whole/checkpoints/best.safetensors"]
    for name, used in (("run", ["--run", "whole"]), ("shared", shared)):
        now("predict", *used, *more, "--run_dir", f"{name}_{what}")
        found, before = (json.loads((earlier / f"{one}_{what}/predictions.json").read_text()) for one in (name, "earlier"))
        assert len(found) == len(before) > 10
        assert [(row["file"], row["class"], row.get("label")) for row in found] == [
            (row["file"], row["class"], row.get("label")) for row in before
        ]
        probabilities = [[top["probability"] for row in rows for top in row["top"]] for rows in (found, before)]
        assert probabilities[0] == pytest.approx(probabilities[1], abs=2e-6)
