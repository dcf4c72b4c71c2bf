"""The README's commands and code are run as they stand there; nothing in it can go stale unseen."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Only arguments are added: to keep a run short, off a GPU, and in a place of its own.
SHORT = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
STAGES = ("fit", "validate", "test", "predict", "export")
COMMANDS = list(dict.fromkeys(re.findall(rf"`lit-guide ((?:{'|'.join(STAGES)})[^`]*)`", README)))
ELSEWHERE = (
    "--accelerator gpu",
    "device/ddp.yaml",
    "--strategy ddp",
    "--model.weights",
)  # tests/test_processes.py, or no network

pytestmark = pytest.mark.slow


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
    for command in COMMANDS:
        if any(words in command for words in ELSEWHERE):
            continue
        args = shlex.split(command)
        if args[0] == "fit" and "--help" not in args and "--print_config" not in args:
            epochs = ["--trainer.max_epochs", "3"] if "--run" in args else SHORT
            args += [*epochs, "--accelerator", "cpu"]
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
