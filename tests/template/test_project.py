"""A generated project as its owner uses it: its own `make`, its own tests, a network and a dataset of their own."""

import csv
import json
import re
import sys
from pathlib import Path

import pytest

from .conftest import ROOT, Bake, must, must_be_tidy, must_be_typed
from .test_bakes import ANSWERS, LONG

README = (ROOT / "README.md").read_text(encoding="utf-8")
ON_CPU = ["--accelerator", "cpu"]

pytestmark = pytest.mark.slow


def block(section: str, language: str) -> str:
    """The one block of that language in a section of the README."""
    text = README.partition(f"## {section}\n")[2].partition("\n## ")[0]
    (found,) = re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)
    return str(found)


def apply(diff: str, path: Path) -> None:
    """Change a file as the lines of a README's diff say: `+` after the line that stands before it, or in place of `-`."""
    text = path.read_text(encoding="utf-8")
    before, removed = "", False
    for line in diff.splitlines():
        sign, rest = line[:1], line[1:] + "\n"
        if sign == "+":
            assert text.count(before) == 1, before
            text = text.replace(before, rest if removed else before + rest)
        before, removed = rest, sign == "-"
    path.write_text(text, encoding="utf-8")


def fit(project: Path, command: str, *more: str) -> dict[str, object]:
    """Run a command of the README in the project; its results.json."""
    (package,) = [path.parent.name for path in project.glob("*/cli.py")]
    words = command.split()
    assert words[0] == "lit-guide"
    must(sys.executable, "-m", package, *words[1:], "--run_dir", "made", *ON_CPU, *more, cwd=project)
    results: dict[str, object] = json.loads((project / "made/results.json").read_text(encoding="utf-8"))
    return results


def renamed(text: str) -> str:
    return text.replace("lit_guide", "my_classifier")


def test_your_own_network(bake: Bake) -> None:
    project = bake()
    section = "Add your own network"
    (project / "my_classifier/mlp.py").write_text(renamed(block(section, "python")), encoding="utf-8")
    apply(renamed(block(section, "diff")), project / "my_classifier/networks.py")
    results = fit(project, block(section, "bash"))
    assert results["test"]["accuracy"] > 0.9  # type: ignore[index]
    exports = results["exports"]
    assert isinstance(exports, list)
    assert [entry["max_abs_diff"] < 1e-4 for entry in exports] == [True, True, True]
    config = (project / "made/config.yaml").read_text(encoding="utf-8")
    assert "network: mlp\n" in config
    assert "hidden: 128\n" in config
    must_be_tidy(project)
    must_be_typed(project)
    must(sys.executable, "-m", "pytest", "-q", "-m", "not slow", "tests/test_networks.py", cwd=project, PYTHONPATH=str(project))


def test_your_own_dataset(bake: Bake) -> None:
    project = bake()
    section = "Add your own dataset"
    (project / "my_classifier/data/shapes.py").write_text(renamed(block(section, "python")), encoding="utf-8")
    (project / "configs/shapes.yaml").write_text(renamed(block(section, "yaml")), encoding="utf-8")
    results = fit(project, block(section, "bash"))
    assert results["test"]["accuracy"] > 0.9  # type: ignore[index]
    assert results["test"]["confusion_matrix"]  # type: ignore[index]
    with (project / "made/metrics.csv").open(newline="") as file:
        assert len([row for row in csv.DictReader(file) if row["train/loss"]]) == 5
    must_be_tidy(project)
    must_be_typed(project)
    must(sys.executable, "-m", "pytest", "-q", "-m", "not slow", "tests/test_parser.py", cwd=project, PYTHONPATH=str(project))


def test_train_predict_and_export_under_another_name(bake: Bake) -> None:
    project = bake(**ANSWERS["net-2-go"])
    command = [sys.executable, "-m", "net_2_go"]
    shown = must(*command, "fit", "--config", "configs/digits.yaml", *ON_CPU, "--trainer.max_epochs", "4", cwd=project)
    assert "\n  net-2-go predict --run " in shown
    from PIL import Image

    Image.new("L", (8, 8), 128).save(project / "a.png")
    must(*command, "predict", "--run", "latest", "--images", "a.png", cwd=project)
    must(*command, "export", "--run", "latest", "--formats", "onnx", cwd=project)
    (run_dir,) = (project / "runs/digits").iterdir()
    assert json.loads((run_dir / "results.json").read_text())["test"]["accuracy"] > 0.5
    assert (run_dir / "predictions.csv").read_text().count("\n") == 2


def test_the_projects_tests_pass_under_a_short_name(bake: Bake) -> None:
    """Not installed, only on the path; without the tests of the data and the networks, which say no name."""
    project = bake(**ANSWERS["ab"])
    nameless = ("--ignore=tests/data", "--ignore=tests/test_networks.py", "--ignore=tests/test_optim.py")
    out = must(sys.executable, "-m", "pytest", "-q", "-m", "not slow", *nameless, cwd=project, PYTHONPATH=str(project))
    assert int(re.findall(r"(\d+) passed", out)[-1]) > 500


def test_make_in_a_brand_new_environment(bake: Bake) -> None:
    """`make lint test test-slow`: the longest name, an environment of its own, fast tests, slow ones that say a name."""
    project = bake(**ANSWERS[LONG])
    own = dict.fromkeys(("PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTEST_ADDOPTS"), "")
    out = must("make", "lint", "test", f"PYTHON={sys.executable}", cwd=project, **own)
    assert "Success: no issues found" in out
    assert int(re.findall(r"(\d+) passed", out)[-1]) > 500
    # Kills, nodes, networks and large data take minutes, and go the same way under any name.
    nameless = " ".join(
        f"--ignore=tests/{name}" for name in ("data", "test_nodes.py", "test_ranks.py", "test_resume.py", "test_networks.py")
    )
    out = must("make", "test-slow", cwd=project, **(own | {"PYTEST_ADDOPTS": nameless}))
    assert int(re.findall(r"(\d+) passed", out)[-1]) > 40
    demo = must("make", "demo", cwd=project, **own)
    assert "export/model.onnx" in demo
    assert "runs/arrays/" in demo
