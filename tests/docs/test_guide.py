"""Every block of the guide runs as it stands there, and prints what the guide shows: here the Chinese one.

The English one runs as notebooks (test_notebooks.py); that both hold the same blocks is tested too.
"""

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sybil import Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser, SkipParser

DOCS = Path(__file__).parents[2] / "docs"
CHAPTERS = sorted(path.stem for path in (DOCS / "en").glob("[0-9]*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.slow


def run_python(example: Example) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        PythonEvaluator()(example)
    example.namespace["shown"] = out.getvalue()


def run_shell(example: Example) -> None:
    """Both streams, as a terminal shows them."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "100"}
    command = ["bash", "-euo", "pipefail", "-c", example.parsed]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    example.namespace["shown"] = done.stdout


def compare(example: Example) -> None:
    """The output of the block before; `...` stands for what differs each time."""
    wanted, shown = (re.sub(r" +$", "", text, flags=re.MULTILINE) for text in (example.parsed, example.namespace.pop("shown")))
    if not doctest.OutputChecker().check_output(wanted, shown, doctest.ELLIPSIS):
        raise AssertionError(f"{example.path}:{example.line} shows\n{wanted}\nbut the block before prints\n{shown}")


GUIDE = Sybil(
    parsers=[
        CodeBlockParser("python", run_python),
        CodeBlockParser("bash", run_shell),
        CodeBlockParser("output", compare),
        SkipParser(),
    ]
)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """A chapter may set torch's threads; the tests after it have those of before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_runs_and_shows_what_it_prints(chapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    document = GUIDE.parse(DOCS / "zh" / f"{chapter}.md")
    examples = list(document.examples())
    assert len(examples) >= 4
    for example in examples:
        with contextlib.suppress(unittest.SkipTest):  # of one block, where it needs a GPU or the network
            example.evaluate()


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_both_languages_hold_the_same_blocks(chapter: str) -> None:
    english, chinese = (BLOCK.findall((DOCS / folder / f"{chapter}.md").read_text(encoding="utf-8")) for folder in ("en", "zh"))
    assert chinese == english
