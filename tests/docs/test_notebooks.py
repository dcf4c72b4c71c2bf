"""Every chapter runs as a Jupyter notebook, and its cells print what the guide shows."""

import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import jupytext
import pytest
import torch
from nbclient import NotebookClient
from nbformat import NotebookNode

from tests.docs.test_guide import BLOCK, CHAPTERS, DOCS, TERMINAL, is_shown, text_of

OUTPUT = re.compile(r"\s*(?:<!--- skip: next ([^\n]*) -->\n)?```output\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# In one stream, stopping at a failure, and without the colours that the kernel asks programs for.
LIKE_THE_GUIDE = "exec 2>&1; set -euo pipefail; unset FORCE_COLOR CLICOLOR CLICOLOR_FORCE; export TERM=dumb"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = spec_from_file_location("build_docs", DOCS / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code(book: NotebookNode) -> list[str]:
    return [cell.source for cell in book.cells if cell.cell_type == "code"]


def is_left_out(skip: str) -> bool:
    """Whether the condition of a `skip: next if(CONDITION, reason="...")` holds here."""
    condition = re.fullmatch(r'if\((.*), reason=".*"\)', skip)
    assert condition is not None
    return bool(eval(condition[1], {"torch": torch}))


def printed(cell: NotebookNode) -> str:
    """What a cell wrote to standard output; of a shell, what it wrote to either stream."""
    streams = ("stdout", "stderr") if cell.source.startswith("%%bash") else ("stdout",)
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name in streams)


@pytest.mark.skipif(sys.platform == "win32", reason="the guide's commands are for a POSIX shell")
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_notebook_runs_and_its_cells_print_what_the_guide_shows(
    build: ModuleType, chapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in TERMINAL.items():
        monkeypatch.setenv(name, value)
    book = build.notebook(DOCS / "en" / f"{chapter}.md")
    for cell in book.cells:
        if cell.cell_type == "code" and cell.source.startswith("%%bash"):
            cell.source = cell.source.replace("%%bash\n", f"%%bash\n{LIKE_THE_GUIDE}\n", 1)
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    compared = left_out = 0
    for cell, after in zip(book.cells, book.cells[1:], strict=False):
        wanted = OUTPUT.match(after.source) if cell.cell_type == "code" and after.cell_type == "markdown" else None
        if wanted is not None and wanted[1] and is_left_out(wanted[1]):
            left_out += 1
        elif wanted is not None:
            assert is_shown(wanted[2], printed(cell)), f"{cell.source}\n--- prints\n{printed(cell)}"
            compared += 1
    outputs = [language for _, language, _ in BLOCK.findall(text_of("en", chapter))]
    assert compared + left_out == outputs.count("output")
    assert compared > left_out


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_both_languages_have_the_same_cells(build: ModuleType, chapter: str) -> None:
    english, chinese = (build.notebook(DOCS / language / f"{chapter}.md") for language in ("en", "zh"))
    assert code(english) == code(chinese)
    for language, book in (("en", english), ("zh", chinese)):
        blocks = [skip for skip, kind, _ in BLOCK.findall(text_of(language, chapter)) if kind in ("python", "bash")]
        assert len(code(book)) == len([skip for skip in blocks if "network" not in skip])  # no other became text


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_answer_is_folded(build: ModuleType, chapter: str) -> None:
    for language in ("en", "zh"):
        book = build.notebook(DOCS / language / f"{chapter}.md")
        answers = re.findall(r"<details>(.*?)</details>", text_of(language, chapter), re.DOTALL)
        folded = [cell.source for cell in book.cells if cell.metadata.get("jupyter", {}).get("source_hidden")]
        assert len(folded) >= 1
        assert len(folded) == sum(len(re.findall(r"^```(?:python|bash)$", answer, re.MULTILINE)) for answer in answers)
        assert not any("<details>" in cell.source for cell in book.cells)


def test_a_notebook_is_read_by_jupyter(build: ModuleType, tmp_path: Path) -> None:
    jupytext.write(build.notebook(DOCS / "en" / "03_autograd.md"), tmp_path / "chapter.ipynb")
    book = jupytext.read(tmp_path / "chapter.ipynb")
    assert book.metadata["kernelspec"]["name"] == "python3"
    assert len(code(book)) >= 4
