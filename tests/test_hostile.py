"""Run directories from elsewhere: going on with one changes and deletes nothing outside of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import test_faults
from tests.test_faults import EPOCHS, LAST, Fit

fit = test_faults.fit  # a fixture

TOP = [
    "--trainer.callbacks=ModelCheckpoint",
    "--trainer.callbacks.monitor=val/loss",
    "--trainer.callbacks.filename=top-{epoch}",
    "--trainer.callbacks.save_top_k=1",
]


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of the user's, outside of any run."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home/notes.txt").write_text("precious")
    return tmp_path / "home"


def poison(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the state of each callback that keeps paths in last.ckpt."""
    content = torch.load(run / LAST, weights_only=True)
    states = [state for state in content["callbacks"].values() if "best_model_path" in state]
    assert len(states) == 2
    for state in states:
        change(state)
    torch.save(content, run / LAST)


@pytest.mark.parametrize("path", ["../../home", "../../home/notes.txt", "../home", "HOME", "HOME/notes.txt"])
def test_f32_paths_in_a_checkpoint_are_never_removed(fit: Fit, victim: Path, path: str) -> None:
    assert fit("--run_dir=run", *TOP, "--trainer.max_epochs=1").code == 0
    theirs = path.replace("HOME", str(victim)) if path.startswith("HOME") else str(Path("run/checkpoints").absolute() / path)

    def change(state: dict[str, Any]) -> None:
        worst = torch.tensor(1e9)  # anything is better: what the state names would make room for it
        state.update(best_k_models={theirs: worst}, kth_best_model_path=theirs, best_model_path=theirs, kth_value=worst)
        state.update(best_model_score=worst, current_score=worst, last_model_path=theirs)

    poison(Path("run"), change)
    assert fit("--run=run", f"--trainer.max_epochs={EPOCHS}").code == 0
    assert (victim / "notes.txt").read_text() == "precious"
    assert torch.load("run/checkpoints/best.ckpt", weights_only=True)["global_step"] > 0


def test_f32_a_users_own_checkpoint_that_is_not_the_best_any_more_is_removed(fit: Fit) -> None:
    assert fit("--run_dir=run", *TOP).code == 0
    names = sorted(path.name for path in Path("run/checkpoints").iterdir())
    assert [name.startswith("top-") for name in names].count(True) == 1
    assert {"best.ckpt", "last.ckpt", "best.safetensors"} < set(names)


@pytest.mark.parametrize("command", ["fit", "test", "export"])
@pytest.mark.parametrize("folder", ["checkpoints", "export"])
def test_f33_a_run_whose_folders_lead_elsewhere_is_refused(fit: Fit, run: Any, victim: Path, command: str, folder: str) -> None:
    assert fit("--run_dir=run", "--trainer.max_epochs=1").code == 0
    moved = victim / folder
    (Path("run") / folder).mkdir(exist_ok=True)
    (Path("run") / folder).rename(moved)
    (Path("run") / folder).symlink_to(moved)
    before = {path: path.read_bytes() for path in victim.rglob("*") if path.is_file()}
    outcome = run(command, "--run=run", *(["--trainer.max_epochs=2"] if command == "fit" else []))
    assert outcome.code == 1
    assert f"{folder} is a link" in outcome.err
    assert {path: path.read_bytes() for path in victim.rglob("*") if path.is_file()} == before


def test_f33_links_in_the_place_of_the_files_of_a_run_are_replaced(fit: Fit, victim: Path) -> None:
    assert fit("--run_dir=run", "--trainer.max_epochs=1").code == 0
    names = ["config.yaml", "metrics.csv", "results.json", "checkpoints/best.ckpt", "checkpoints/best.safetensors"]
    for name in names:  # what they lead to is read, as it should be
        original = victim / Path(name).name
        original.write_bytes((Path("run") / name).read_bytes())
        (Path("run") / name).unlink()
        (Path("run") / name).symlink_to(original)
    (Path("run") / ".write-test").symlink_to(victim / "notes.txt")
    before = {path: path.read_bytes() for path in victim.iterdir()}
    assert fit("--run=run", "--trainer.max_epochs=2").code == 0
    assert {path: path.read_bytes() for path in victim.iterdir()} == before
    assert json.loads(Path("run/results.json").read_text())["epochs"] == 2
