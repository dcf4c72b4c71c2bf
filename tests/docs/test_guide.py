"""Every block of the guide runs as it stands there, and prints what the guide shows: here the Chinese one.

The English one runs as notebooks (test_notebooks.py); that both hold the same blocks is tested too, and what a chapter has.
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
BLOCK = re.compile(r"(?:^<!--- skip: next ([^\n]*) -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Where commands run: the programs of this environment first, as in an activated one, and a terminal of 80 columns.
TERMINAL = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "80"}
# All that may keep a block from being run; where the condition does not hold, it runs.
SKIPS = {
    '"needs the network"',
    'if(not __import__("shutil").which("nvidia-smi"), reason="needs an NVIDIA GPU")',
    'if(not torch.cuda.is_available(), reason="needs a GPU")',
    'if(torch.cuda.is_available() or not torch.version.cuda, reason="needs a CUDA build, and no GPU")',
}

pytestmark = pytest.mark.slow


def run_python(example: Example) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        PythonEvaluator()(example)
    example.namespace["shown"] = out.getvalue()


def run_shell(example: Example) -> None:
    """Both streams, as a terminal shows them."""
    command, environment = ["bash", "-euo", "pipefail", "-c", example.parsed], {**os.environ, **TERMINAL}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stdout
    example.namespace["shown"] = done.stdout


def is_shown(wanted: str, printed: str) -> bool:
    """Whether a block printed what stands below it; `...` stands for what differs each time."""
    wanted, printed = (re.sub(r" +$", "", text, flags=re.MULTILINE) for text in (wanted, printed))
    return doctest.OutputChecker().check_output(wanted, printed, doctest.ELLIPSIS)


def compare(example: Example) -> None:
    """The output of the block before."""
    printed = example.namespace.pop("shown")
    if not is_shown(example.parsed, printed):
        raise AssertionError(f"{example.path}:{example.line} shows\n{example.parsed}\nbut the block before prints\n{printed}")


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


@pytest.mark.skipif(sys.platform == "win32", reason="the guide's commands are for a POSIX shell")
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_runs_and_shows_what_it_prints(chapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    document = GUIDE.parse(DOCS / "zh" / f"{chapter}.md")
    for example in document.examples():
        with contextlib.suppress(unittest.SkipTest):  # of one block, where it needs a GPU or the network
            example.evaluate()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_no_thread_of_the_process_group_is_left_when_the_ddp_script_ends(tmp_path: Path) -> None:
    """One that is left aborts a process now and then: it may free a tensor while Python ends (pytorch/pytorch#190489)."""
    (command,) = (code for _, _, code in BLOCK.findall(text_of("en", "07_devices")) if code.startswith("cat > ddp.py"))
    count = 'import glob, os; left = sum("gloo" in open(name).read() for name in glob.glob("/proc/self/task/*/comm"))'
    count += '; os.write(1, f"left: {left}\\n".encode())\n'  # in one piece: the other process writes too
    environment = {**os.environ, **TERMINAL}
    done = subprocess.run(
        ["bash", "-c", command.replace("\nEND\n", f"\n    {count}END\n")],
        cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", check=True,
    )  # fmt: skip
    assert done.stdout.count("left: 0") == 2, done.stdout


def text_of(language: str, chapter: str) -> str:
    return (DOCS / language / f"{chapter}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_both_languages_hold_the_same_blocks_headings_links_and_anchors(chapter: str) -> None:
    english, chinese = (
        {
            "blocks": BLOCK.findall(text),
            "headings": re.findall(r"^(#+) ", prose, re.MULTILINE),
            "links": sorted(re.findall(r"\]\(([^)]+)\)", prose)),
            "anchors": re.findall(r'<a id="([^"]+)">', prose),
            "errors": re.findall(r"^\*\*(`.+`)\*\*", prose, re.MULTILINE),
        }
        for language in ("en", "zh")
        for text in [text_of(language, chapter)]
        for prose in [BLOCK.sub("", text)]
    )
    assert chinese == english


def test_hardly_a_block_is_left_out() -> None:
    skips = [skip for chapter in CHAPTERS for skip, _, _ in BLOCK.findall(text_of("en", chapter)) if skip]
    assert set(skips) == SKIPS
    assert skips.count('"needs the network"') == 3  # the installation, a new project, and its update


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_has_code_the_way_to_the_project_errors_and_an_exercise(chapter: str) -> None:
    text = text_of("en", chapter)
    sections = dict(re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", BLOCK.sub(r"<\2>", text), re.MULTILINE | re.DOTALL))
    assert re.search(r"\]\(\.\./\.\./\w", sections["In lit-guide"])
    assert 2 <= len(re.findall(r"^\*\*`", sections["Errors that you will meet"], re.MULTILINE)) <= 4
    (answer,) = re.findall(r"<details><summary>Answer</summary>(.*?)</details>", sections["Exercise"], re.DOTALL)
    assert re.search("<(python|bash)>", answer)
    assert "<output>" in answer


def test_the_readme_leads_to_each_chapter() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (DOCS.parent / "README.md").read_text(encoding="utf-8"))
    assert [link for link in links if not (DOCS.parent / link).exists()] == []
    assert {f"docs/{language}/{chapter}.md" for language in ("en", "zh") for chapter in CHAPTERS} <= set(links)
