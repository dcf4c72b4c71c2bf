"""The README's commands and code are run as they stand there; nothing in it can go stale unseen."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Only arguments are added: to keep a run short, off a GPU, and in a place of its own.
SHORT = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
STAGES = ("fit", "validate", "test", "predict", "export", "data", "doctor")
COMMANDS = list(dict.fromkeys(re.findall(rf"`lit-guide ((?:{'|'.join(STAGES)})[^`]*)`", README)))
ELSEWHERE = (
    "--accelerator gpu",
    "device/ddp.yaml",
    "device/fsdp.yaml",
    "--strategy ddp",
    "--model.weights",
    "configs/torchvision.yaml",
)  # tests/test_processes.py, or no network

SMALL = ["--model.network", "cnn", "--data.image_size", "32", "--data.num_workers", "0"]

pytestmark = pytest.mark.slow


def make_photos(root: Path) -> None:
    """Two classes of 20 pictures, all different; one is brighter."""
    import numpy as np
    from PIL import Image

    for number in range(40):
        path = root / ("cat", "dog")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        squares_HWC = np.random.default_rng(number).integers(0, 128, (6, 8, 3), dtype=np.uint8) + np.uint8(120 * (number % 2))
        Image.fromarray(squares_HWC.repeat(10, axis=0).repeat(10, axis=1)).save(path)


def test_four_commands_lead_from_a_folder_of_photos_to_predictions(run: Run) -> None:
    section = README.partition("## Your own images\n")[2].partition("\n## ")[0]
    commands = section.partition("```bash\n")[2].partition("```")[0].strip().splitlines()
    assert [command.split()[1] for command in commands] == ["data", "data", "fit", "predict"]
    make_photos(Path("photos"))
    make_photos(Path("new_photos"))
    for command in commands:
        args = shlex.split(command)[1:]
        if args[0] == "fit":
            args += [*SMALL, "--trainer.max_epochs", "12", "--trainer.log_every_n_steps", "1", "--accelerator", "cpu"]
        outcome = run(*args)
        assert outcome.code == 0, (command, outcome.err)
    (predictions,) = Path("runs/folder").glob("*/predictions.csv")
    rows = [line.split(",")[:2] for line in predictions.read_text().splitlines()[1:]]
    assert len(rows) == 40
    assert sum(Path(name).parent.name == label for name, label in rows) >= 36
    out = subprocess.run([sys.executable, "-c", python_block("ImageFolderDataset")], capture_output=True, text=True, check=True)
    assert out.stdout == "40 cat (3, 60, 80) torch.uint8\n"


def python_block(words: str) -> str:
    """The one block of Python with these words in it."""
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if words in block]
    return str(block)


def test_the_readme_shows_every_command() -> None:
    assert len(COMMANDS) >= 20
    assert {command.split()[0] for command in COMMANDS} == set(STAGES)


def test_every_command_of_the_readme_runs(run: Run) -> None:
    exec(python_block("np.savez"), {})  # writes my.npz, which later commands read
    assert (
        run("fit", "--config", "configs/digits.yaml", "--config", "configs/debug/one_batch.yaml", "--accelerator", "cpu").code
        == 0
    )
    for name in ("a.png", "some_folder/b.png"):
        Path(name).parent.mkdir(exist_ok=True)
        from PIL import Image

        Image.new("L", (20, 20), 128).save(name)
    make_photos(Path("photos"))
    Path("photos.csv").write_text(
        "path,label\n" + "".join(f"{path.as_posix()},{path.parent.name}\n" for path in Path("photos").glob("*/*"))
    )
    for command in COMMANDS:
        if any(words in command for words in ELSEWHERE):
            continue
        args = shlex.split(command)
        if args[0] == "fit" and "--help" not in args and "--print_config" not in args:
            epochs = ["--trainer.max_epochs", "3"] if "--run" in args else SHORT
            args += [*epochs, "--accelerator", "cpu"]
            if "photos" in command:
                args += SMALL
            if "export" not in command:  # each format takes seconds
                args += [f"--export.{name}.enabled=false" for name in ("onnx", "torchscript", "pt2")]
        outcome = run(*args)
        assert outcome.code == 0, (command, outcome.err)


def test_the_onnx_block_runs_without_this_package(trained: Path) -> None:
    block = python_block("onnxruntime")
    assert not re.search(r"(import|from) lit_guide\b", block)
    done = subprocess.run([sys.executable, "-c", block], cwd=trained, capture_output=True, text=True, check=True)
    assert done.stdout.strip() in [str(digit) for digit in range(10)]


def test_the_two_commands_are_make_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    first = README.partition("```bash\n")[2].partition("```")[0]
    for target in re.findall(r"^make (\S+)", first, flags=re.MULTILINE):
        assert re.search(rf"^{target}: ", makefile, flags=re.MULTILINE)
