"""The guide as a site: it builds without a warning, no link of it is broken, and both languages can be searched."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import lit_guide

DOCS = Path(__file__).parents[2] / "docs"
LANGUAGES = {"en": "zh", "zh": "en"}  # and the other one
# The topics of the handbook by their ids, and where they are.
ROWS = {
    "01_environment": {"s1-1", "s1-2"},
    "02_tensors": {"s2-1"},
    "03_autograd": {"s2-2"},
    "04_modules": {"s3-1"},
    "05_training": {"s3-2"},
    "06_data": {"s4-1", "s4-2"},
    "07_devices": {"s5-1", "s5-2"},
    "08_export": {"s6-1", "s6-2"},
    "09_debugging": {"s7-1", "s7-2", "s7-3"},
}
# The build, where every connection fails.
NO_NETWORK = """
import runpy, socket, sys
def refuse(self, address):
    raise OSError(f"the build connects to {address}")
socket.socket.connect = socket.socket.connect_ex = refuse
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

pytestmark = pytest.mark.slow


@dataclass
class Page(HTMLParser):
    """The links, the places that links can lead to, and the switch of a page."""

    path: Path
    links: list[str] = field(default_factory=list)
    resources: list[str] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    switch: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given and tag != "meta"}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
            self.switch += [given["href"]] if "hreflang" in given else []
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"):
            self.resources.append(given["href"])
        if "src" in given:
            self.resources.append(given["src"])


@cache
def page(path: Path) -> Page:
    return Page(path)


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", NO_NETWORK, str(DOCS / "build.py"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"}, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def search_index(site: Path, language: str) -> dict[str, Any]:
    text = (site / language / "searchindex.js").read_text(encoding="utf-8")
    index: dict[str, Any] = json.loads(re.sub(r"^Search\.setIndex\((.*)\)$", r"\1", text.strip()))
    return index


def pages(site: Path) -> list[Page]:
    found = [page(path) for language in LANGUAGES for path in sorted((site / language).rglob("*.html"))]
    assert len(found) >= 2 * 19
    return found


def broken(where: Path, link: str) -> bool:
    """Whether a link of a page or notebook leads to a file, or a place in a page, that is not there."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return False
    target = (where.parent / unquote(parts.path)).resolve() if parts.path else where
    if not target.is_file():
        return True
    return bool(parts.fragment) and target.suffix == ".html" and unquote(parts.fragment) not in page(target).ids | {"", "top"}


def test_no_internal_link_is_broken(site: Path) -> None:
    wrong = {f"{p.path.relative_to(site)}: {link}" for p in pages(site) for link in p.links if broken(p.path, link)}
    assert sorted(wrong) == []


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for p in pages(site):
        assert p.resources
        assert [one for one in p.resources if urlsplit(one).netloc or broken(p.path, one)] == []
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//|@import [\"']http", sheet.read_text(encoding="utf-8"))


def test_every_page_has_its_switch_to_the_same_page(site: Path) -> None:
    for p in pages(site):
        language, name = p.path.relative_to(site).parts[0], p.path.relative_to(site).parts[1:]
        (link,) = p.switch
        assert (p.path.parent / link).resolve() == (site / LANGUAGES[language]).joinpath(*name).resolve()


def test_every_chapter_leads_to_its_notebook_and_no_link_of_a_notebook_is_broken(site: Path) -> None:
    for language in LANGUAGES:
        chapters = sorted(path.stem for path in (DOCS / language).glob("[0-9]*.md"))
        assert len(chapters) == 10
        for chapter in chapters:
            assert f"../notebooks/{language}/{chapter}.ipynb" in page(site / language / f"{chapter}.html").links
            path = site / "notebooks" / language / f"{chapter}.ipynb"
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
            prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "``", text, flags=re.MULTILINE | re.DOTALL)
            links = re.findall(r"\]\(([^)\s]+)\)", prose)
            assert links, path.name
            assert [link for link in links if not link.startswith("#") and broken(path, link)] == []


def test_both_languages_have_the_same_pages_and_all_are_in_the_list(site: Path) -> None:
    names = {path.relative_to(site / "en") for path in (site / "en").rglob("*.html")}
    assert names == {path.relative_to(site / "zh") for path in (site / "zh").rglob("*.html")}
    for language in LANGUAGES:
        listed = {link.partition("#")[0] for link in page(site / language / "index.html").links}
        made = {"index.html", "search.html"}
        assert {name.as_posix() for name in names} - made <= listed


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_row_of_the_handbook_has_its_anchor(site: Path, language: str) -> None:
    for chapter, rows in ROWS.items():
        assert rows <= page(site / language / f"{chapter}.html").ids


@pytest.mark.parametrize(
    ("language", "word", "chapter"),
    [
        ("en", "gradient", "03_autograd"),
        ("zh", "梯度", "03_autograd"),
        ("zh", "检查", "10_your_own"),
        ("zh", "onnx", "08_export"),
    ],
)
def test_the_search_index_finds_a_word(site: Path, language: str, word: str, chapter: str) -> None:
    index = search_index(site, language)
    found = index["terms"].get(word, []), index["titleterms"].get(word, [])
    documents = {index["docnames"][i] for hits in found for i in (hits if isinstance(hits, list) else [hits])}
    assert chapter in documents


@pytest.mark.skipif(not shutil.which("node"), reason="needs Node.js, to run what a browser runs")
@pytest.mark.parametrize("words", ["学习率", "混合精度 GPU", "训练、验证"])
def test_what_is_typed_is_split_into_words_of_the_index(site: Path, words: str) -> None:
    tools = (site / "zh/_static/language_data.js").read_text(encoding="utf-8")
    script = f"var window = {{}};\n{tools}\nconsole.log(JSON.stringify(splitQuery({json.dumps(words)})))"
    done = subprocess.run(["node", "-e", script], capture_output=True, encoding="utf-8", check=True)
    split = json.loads(done.stdout)
    assert len(split) >= 2
    index = search_index(site, "zh")
    assert [word for word in split if word.lower() not in {*index["terms"], *index["titleterms"]}] == []


def test_the_api_shows_every_public_class_and_function(site: Path) -> None:
    public = [thing for name in lit_guide.__all__ if callable(thing := getattr(lit_guide, name))]
    assert {f"{thing.__module__}.{thing.__name__}" for thing in public} <= page(site / "en/reference/api.html").ids


def test_a_second_build_changes_nothing(site: Path) -> None:
    files = [path for path in site.rglob("*") if path.suffix in (".html", ".ipynb", ".js")]
    before = {path: path.read_bytes() for path in files if "doctrees" not in path.parts}
    assert build(site).returncode == 0
    assert [path for path, content in before.items() if path.read_bytes() != content] == []
