"""A generated project as its owner uses it: code of their own, `make lint test demo`; and what is left without any part."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.test_readme import apply

from .conftest import Bake, lend_environment, must, must_be_tidy, must_be_typed, must_keep_its_contracts, package_of
from .test_bakes import ANSWERS, LONG

ON_CPU = ["--accelerator", "cpu"]

pytestmark = pytest.mark.slow


def do_what_the_page_says(project: Path, page: str) -> dict[str, object]:
    """Write the files of a page that came with the project, run its one command; the run's results.json."""
    text = (project / "docs/howto" / page).read_text(encoding="utf-8")
    for name, content in re.findall(r"[Ww]rite\s(?:\w+\s)*`([\w/.]+)`:\n\n```\w+\n(.*?)```", text, flags=re.DOTALL):
        (project / name).write_text(content, encoding="utf-8")
    for name, diff in re.findall(r"in\s`([\w/.]+)`:\n\n```diff\n(.*?)```", text, flags=re.DOTALL):
        apply(diff, project / name)
    (command,) = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    words = command.split()
    assert words[0] == project.name
    run_dir = Path(page).stem
    must(
        sys.executable, "-m", package_of(project), *words[1:], "--run_dir", run_dir, *ON_CPU, cwd=project, PYTHONPATH=str(project)
    )
    results: dict[str, object] = json.loads((project / run_dir / "results.json").read_text(encoding="utf-8"))
    shutil.rmtree(project / run_dir)
    return results


@pytest.mark.skipif(sys.platform == "win32", reason="the environment is lent by links")
def test_code_of_ones_own_and_make(own_bake: Bake) -> None:
    """The longest name, a network and a dataset from the project's own pages, then what the README says: make."""
    project = own_bake(**ANSWERS[LONG])
    for page in ("network.md", "dataset.md"):
        results = do_what_the_page_says(project, page)
        assert results["test"]["accuracy"] > 0.9  # type: ignore[index]
        exports = results["exports"]
        assert isinstance(exports, list)
        assert [entry["max_abs_diff"] < 1e-4 for entry in exports] == [True, True, True]

    lent = lend_environment(project)
    out = must("make", "lint", "test", cwd=project, **lent)
    assert "Success: no issues found" in out
    assert int(re.findall(r"(\d+) passed", out)[-1]) > 10
    demo = must("make", "demo", cwd=project, **lent)
    assert "export/model.onnx" in demo
    (run_dir,) = (project / "runs/arrays").iterdir()
    assert f" predict --run runs/arrays/{run_dir.name} " in demo
    assert json.loads((run_dir / "results.json").read_text(encoding="utf-8"))["test"]["accuracy"] > 0.9


def test_a_project_without_any_part(own_bake: Bake) -> None:
    """Every part is deleted by hand, under the shortest name: all its tests, its demo, and the commands after it."""
    project = own_bake(project_slug="ab", parts="all", data="all")
    for folder in (project / "ab/parts").iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    must_be_tidy(project)
    must_be_typed(project)
    must_keep_its_contracts(project)
    path = {"PYTHONPATH": str(project)}
    out = must(sys.executable, "-m", "pytest", "--quiet", cwd=project, **path)
    assert int(re.findall(r"(\d+) passed", out)[-1]) > 10

    command = [sys.executable, "-m", "ab"]
    (demo,) = re.findall(r"^DEMO \?= (.*)", (project / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    shown = must(*command, "fit", *demo.split(), *ON_CPU, cwd=project, **path)
    assert "export/model.onnx" in shown
    from PIL import Image

    Image.new("L", (8, 8), 128).save(project / "a.png")
    must(*command, "predict", "--run", "latest", "--images", "a.png", cwd=project, **path)
    must(*command, "export", "--run", "latest", "--formats", "onnx", cwd=project, **path)
    (run_dir,) = (project / "runs/digits").iterdir()
    assert json.loads((run_dir / "results.json").read_text(encoding="utf-8"))["test"]["accuracy"] > 0.97
    assert (run_dir / "predictions.csv").read_text(encoding="utf-8").count("\n") == 2
