"""Checkpoints, results and configurations of damaged or hostile values: every command ends with a message that names the file."""

import copy
import json
import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lit_guide.cli import main
from tests.conftest import Outcome, Run

SHORT = [
    "--accelerator=cpu",
    "--trainer.max_epochs=2",
    "--trainer.limit_train_batches=4",
    "--trainer.limit_val_batches=2",
    "--trainer.limit_test_batches=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.callbacks=EarlyStopping",
    "--trainer.callbacks.monitor=val/loss",
    "--model.network_args={widths: [4, 8]}",
    *(f"--export.{name}.enabled=false" for name in ("onnx", "pt2")),
]
HOSTILE = [None, "x", "", b"x", -1, 10**30, 1 << 40, -0.5, math.nan, math.inf, True, [], {}, set(), ["x"], {"x": -1}]
HOSTILE += [torch.zeros(3, 7, dtype=torch.int8), torch.tensor(1.0), torch.zeros(0)]
LAST, BEST = "checkpoints/last.ckpt", "checkpoints/best.ckpt"
ON = ["--trainer.max_epochs=3"]
COMMANDS = ["test", *(pytest.param(command, marks=pytest.mark.slow) for command in ("fit", "export", "predict"))]


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of a few steps, to be read."""
    run_dir = tmp_path_factory.mktemp("short") / "run"
    assert main(["fit", "--config", "configs/digits.yaml", "--run_dir", str(run_dir), *SHORT]) == 0
    return run_dir


@pytest.fixture
def mine(short: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(short, tmp_path / "mine"))


def places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value of a tree, by keys and indices."""
    if at:
        yield at
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    for key, value in items:
        yield from places(value, (*at, key))


def replaced(tree: Any, at: tuple[Any, ...], value: Any) -> Any:
    """A copy of a tree with another value at one place."""
    if not at:
        return value
    tree = list(tree) if isinstance(tree, tuple) else copy.copy(tree)
    tree[at[0]] = replaced(tree[at[0]], at[1:], value)
    return tree


def check_told(outcome: Outcome, file: Path) -> None:
    """Harmless, or an error in words that names the file."""
    assert outcome.code in (0, 1, 2), outcome
    assert "Traceback" not in outcome.err
    assert "LIT_GUIDE_DEBUG" not in outcome.err, outcome.err
    assert outcome.code == 0 or str(file) in outcome.err, outcome.err


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(n, marks=pytest.mark.slow) for n in range(3, 60))])
def test_f39_a_checkpoint_with_one_odd_value_is_harmless_or_told(mine: Path, run: Run, seed: int) -> None:
    draw = random.Random(seed)
    content = torch.load(mine / LAST, weights_only=True)
    at = draw.choice([at for at in places(content) if at[0] != "state_dict"])
    at = at[: draw.randint(1, len(at))]
    odd = replaced(content, at, draw.choice(HOSTILE))
    for name in (LAST, BEST):
        torch.save(odd, mine / name)
    last = mine / LAST
    check_told(run("test", f"--run={mine}"), mine / BEST)
    check_told(run("validate", f"--run={mine}", f"--ckpt_path={last}"), last)
    check_told(run("predict", f"--run={mine}", f"--ckpt_path={last}"), last)
    check_told(run("export", f"--ckpt_path={last}", "--formats=torchscript"), last)
    check_told(run("fit", f"--run={mine}", *ON), last)


# What the kinds of values can't tell: Lightning finds it where it restores, or where training works on it

LATE: dict[str, tuple[tuple[Any, ...], Any]] = {
    "callbacks": (("callbacks", "EarlyStopping{'monitor': 'val/loss', 'mode': 'min'}", "best_score"), "x"),
    "optimizers": (("optimizer_states", 0, "param_groups"), []),
    "optim": (("optimizer_states", 0, "state", 0, "exp_avg"), torch.zeros(7)),
    "loops": (("loops", "fit_loop", "epoch_loop.automatic_optimization.optim_progress"), {}),
}


@pytest.mark.parametrize("key", LATE)
def test_f39_what_fails_while_it_is_restored_or_used_is_told_with_the_file_and_its_part(mine: Path, run: Run, key: str) -> None:
    content = torch.load(mine / LAST, weights_only=True)
    torch.save(replaced(content, *LATE[key]), mine / LAST)
    outcome = run("fit", f"--run={mine}", *ON)
    assert outcome.code == 1, outcome
    assert f"{mine / LAST}: its state of " in outcome.err
    assert key in outcome.err.partition("can't be gone on with")[0].partition("its state of ")[2]
    check_told(outcome, mine / LAST)


@pytest.mark.parametrize("value", ["x", math.nan, math.inf, -1, 0, 10**30, [0.5]], ids=str)
@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_f39_a_crop_that_is_no_share_is_refused(mine: Path, run: Run, value: Any, suffix: str) -> None:
    from lit_guide.engine.run.checkpoint import read_checkpoint
    from lit_guide.export.weights import write_weights

    content, path = {**read_checkpoint(mine / BEST), "crop": value}, mine / f"odd.{suffix}"
    torch.save(content, path) if suffix == "ckpt" else write_weights(content, path)
    for command in (["export", "--formats=torchscript", f"--run_dir={mine}"], ["test", "--config=configs/digits.yaml"]):
        outcome = run(*command, f"--ckpt_path={path}")
        assert outcome.code == 1
        assert f"{path} was refused: its crop is " in outcome.err


# results.json

RESULTS = ["[1]", "{", '"x"', "null", "5", "", "[" * 100_000, "9" * 5000, "\xff"]
RESULTS += ['{"exports": 5}', '{"exports": [1]}', '{"exports": [{}]}', '{"exports": "x"}']


@pytest.mark.parametrize("text", RESULTS, ids=lambda text: text[:20])
@pytest.mark.parametrize("command", COMMANDS)
def test_f39_broken_results_are_told_before_anything_is_done(mine: Path, run: Run, command: str, text: str) -> None:
    (mine / "results.json").write_text(text, encoding="latin1")
    outcome = run(command, f"--run={mine}", *(ON if command == "fit" else []))
    assert outcome.code == 1
    assert f"{mine / 'results.json'} can't be read: " in outcome.err
    check_told(outcome, mine / "results.json")
    assert (mine / "results.json").read_text(encoding="latin1") == text


# Configurations

SETTINGS = {
    "export null": "export: null",
    "export text": "export: text",
    "export of null": "export: {torchscript: null}",
    "export of a number": "export: {torchscript: {enabled: [1]}}",
    "model text": 'model: "x"',
    "model number": "model: 5",
    "class_path number": "model: {class_path: 5}",
    "trainer null": "trainer: null",
    "data list": "data: [1]",
    "checkpoint number": "checkpoint: 5",
    "name null": "name: null",
    "seed below 0": "seed_everything: -1",
    "key number": "1: 2",
    "depth in a text": "model: {network_args: '" + "[" * 3000 + "'}",
    "list": "[1, 2]",
    "nothing": "",
    "aliases": "a: &a [x]\n" + "\n".join(f"b{n}: &b{n} [{', '.join([f'*b{n - 1}' if n else '*a'] * 9)}]" for n in range(12)),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_f39_odd_settings_in_a_recipe_are_a_wrong_configuration(run: Run, kind: str) -> None:
    Path("odd.yaml").write_text(SETTINGS[kind])
    outcome = run("fit", "--config=configs/digits.yaml", "--config=odd.yaml", *SHORT, "--trainer.fast_dev_run=true")
    assert outcome.code == 2 or kind == "export null", outcome
    assert "Traceback" not in outcome.err
    assert "LIT_GUIDE_DEBUG" not in outcome.err


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("command", COMMANDS[:3])
def test_f39_a_run_whose_config_was_edited_to_nonsense_is_told(mine: Path, run: Run, command: str, kind: str) -> None:
    (mine / "config.yaml").write_text(SETTINGS[kind])
    outcome = run(command, f"--run={mine}", *(["--formats=torchscript"] if command == "export" else []))
    assert outcome.code == 2 or (command == "export" and outcome.code == 0), outcome  # which may need none of it
    assert "Traceback" not in outcome.err
    assert "LIT_GUIDE_DEBUG" not in outcome.err


# Links that lead to themselves


def loop(path: Path) -> Path:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to(path.name)
    return path


@pytest.mark.parametrize("command", ["fit", "test", "export", "predict"])
def test_f39_a_checkpoint_that_is_a_link_to_itself_is_told(mine: Path, run: Run, command: str) -> None:
    path = loop(mine / (LAST if command == "fit" else BEST))
    outcome = run(command, f"--run={mine}")
    assert outcome.code == 1
    assert f"{path} is a link that leads nowhere" in outcome.err
    outcome = run("test", f"--run={mine}", f"--ckpt_path={path}")
    assert outcome.code == 1
    assert f"{path} is a link that leads nowhere" in outcome.err


@pytest.mark.parametrize("target", ["loop.ckpt", "nowhere", "../loop.ckpt"])
def test_f39_a_link_that_leads_nowhere_beside_a_broken_checkpoint_is_passed_over(mine: Path, run: Run, target: str) -> None:
    (mine / "checkpoints/loop.ckpt").symlink_to(target)
    (mine / "loop.ckpt").symlink_to("checkpoints/loop.ckpt")
    (mine / LAST).write_bytes(b"")
    outcome = run("fit", f"--run={mine}", *ON)
    assert outcome.code == 1
    assert f"{mine / LAST} can't be read" in outcome.err
    assert f"Use {mine / BEST} instead." in outcome.err


@pytest.mark.parametrize("name", [BEST, "checkpoints/best.safetensors", "results.json", "metrics.csv", "loop", "predictions.csv"])
def test_f39_a_run_goes_on_beside_links_to_themselves(mine: Path, run: Run, name: str) -> None:
    loop(mine / name)
    assert run("fit", f"--run={mine}", *ON).code == 0
    assert torch.load(mine / LAST, weights_only=True)["epoch"] == 2
    assert json.loads((mine / "results.json").read_text())["epochs"] == 3


@pytest.mark.parametrize("name", ["checkpoints", "export", "config.yaml"])
def test_f39_folders_and_settings_that_are_links_to_themselves_are_told(mine: Path, run: Run, name: str) -> None:
    loop(mine / name)
    for command in ("fit", "test", "export", "predict"):
        outcome = run(command, f"--run={mine}")
        assert outcome.code in (1, 2)
        check_told(outcome, mine / name if name != "checkpoints" else mine)


@pytest.mark.parametrize("images", [[], ["--images", "photo.png"]])
def test_f39_weights_that_do_not_fit_are_told_by_predict(mine: Path, run: Run, images: list[str]) -> None:
    Image.new("L", (8, 8)).save("photo.png")
    file = mine / "checkpoints/best.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["state_dict"].pop("network.body.head.2.bias")
    torch.save(checkpoint, file)
    outcome = run("predict", "--run", mine, *images)
    assert outcome.code == 1
    assert f"{file}: its weights do not fit the network it names: " in outcome.err
    assert "network.body.head.2.bias" in outcome.err
