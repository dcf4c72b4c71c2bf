"""The wheel: built, installed elsewhere, and used outside the checkout."""

import re
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(ROOT)], check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    return wheel


def test_the_tested_versions_install_with_the_oldest_python() -> None:
    """Debian 12 has 3.11.2, where pip ends with an error at what wants a later one."""
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.MULTILINE))
    pins = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    found = {re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower(): one for one in metadata.distributions()}
    here = {name: found[name] for name in pins if name in found and found[name].version == pins[name]}
    assert len(here) > len(pins) / 2
    wanted = {name: one.metadata.get("Requires-Python") or "" for name, one in here.items()}
    assert not [f"{name} {one}" for name, one in wanted.items() if not SpecifierSet(one).contains("3.11.0")]


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
