"""Which sources there are: a project need not carry all of them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "lit_guide"
SOURCES = {
    "arrays": ["ArraysData"],
    "folder": ["FolderData", "ImageFolderDataset"],
    "table": ["TableData"],
    "torchvision_set": ["TorchvisionData"],
}
LOOK = """
import lit_guide.data
print(len(lit_guide.data.DigitsData().rows["train"]), *[name for name in {names} if hasattr(lit_guide.data, name)])
"""


@pytest.mark.parametrize(
    "kept",
    [pytest.param([], id="none"), *(pytest.param([name], id=name, marks=pytest.mark.slow) for name in SOURCES)],
)
def test_the_digits_and_any_other_source_stand_without_the_rest(tmp_path: Path, kept: list[str]) -> None:
    shutil.copytree(PACKAGE, tmp_path / "lit_guide", ignore=shutil.ignore_patterns("__pycache__"))
    for name in SOURCES.keys() - kept:
        (tmp_path / f"lit_guide/data/{name}.py").unlink()
    names = [name for names in SOURCES.values() for name in names]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", LOOK.format(names=names)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.stderr == ""
    assert done.stdout.split() == ["1168", *(name for source in kept for name in SOURCES[source])]
