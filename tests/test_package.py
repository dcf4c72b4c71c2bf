"""The wheel: built, installed elsewhere, and used outside the checkout."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(ROOT)], check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    return wheel


def test_the_wheel_carries_recipes_digits_licences_and_the_typed_marker(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    recipes = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("configs/**/*.yaml")}
    assert len(recipes) >= 9
    shipped = recipes | {"data/digits.npz", "data/digits.LICENSE.txt", "py.typed"}
    assert {f"lit_guide/{name}" for name in shipped} <= names
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    assert not [name for name in names if name.startswith(("tests", "benchmarks"))]


def test_the_installed_wheel_trains_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    scheme = "nt" if sys.platform == "win32" else "venv"
    paths = sysconfig.get_paths(scheme, vars={"base": str(venv), "platbase": str(venv)})
    # The dependencies are those of this environment; the package itself comes from the wheel.
    Path(paths["purelib"], "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    python = Path(paths["scripts"]) / "python"
    # --ignore-installed: pip must not take this environment's own copy away.
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--ignore-installed", str(wheel)]
    subprocess.run(install, check=True, cwd=tmp_path, capture_output=True)
    where = "import lit_guide; print(lit_guide.__file__)"
    found = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert Path(found.strip()).is_relative_to(venv)
    command = Path(paths["scripts"]) / "lit-guide"
    overlay = ["--config", "configs/debug/one_batch.yaml", "--accelerator", "cpu"]
    done = subprocess.run(
        [command, "fit", "--config", "configs/digits.yaml", *overlay],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (run_dir,) = (tmp_path / "runs" / "digits").iterdir()
    assert len(list((run_dir / "export").iterdir())) == 3
