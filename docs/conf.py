"""Sphinx: one site a language, with the same pages. `make docs` builds both."""

import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from sphinx.search.en import SearchEnglish

sys.path.insert(0, str(Path(__file__).parent))

import reference  # beside this file

from lit_guide import __version__

LANGUAGES = {"en": "English", "zh": "中文"}
HAN = "\u3400-\u4dbf\u4e00-\u9fff"


class SearchChinese(SearchEnglish):
    """Finds Chinese text by its characters and pairs of them: what is typed is split as the pages are, without a dictionary."""

    lang = "zh"
    js_splitter_code = f"""
var splitQuery = (query) =>
  query
    .split(/[^\\p{{Letter}}\\p{{Number}}_]+/gu)
    .flatMap((part) => part.match(/[{HAN}]+|[^{HAN}]+/gu) || [])
    .flatMap((run) =>
      /[{HAN}]/.test(run) && run.length > 1
        ? Array.from({{ length: run.length - 1 }}, (_, i) => run.slice(i, i + 2))
        : [run],
    );
"""

    def split(self, input: str) -> list[str]:
        """Characters and pairs of characters of Chinese, words of other scripts."""
        words: list[str] = []
        for run in re.findall(rf"[{HAN}]+|[^\W{HAN}]+", input):
            words += [*run, *map("".join, pairwise(run))] if re.match(f"[{HAN}]", run) else [run]
        return words


project = "lit-guide"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
templates_path = ["_templates"]
default_role = "code"  # docstrings write code as Markdown does
html_theme = "furo"
html_title = "lit-guide"
html_static_path = ["_static"]
html_css_files = ["guide.css"]
html_copy_source = False
html_show_copyright = False
html_use_index = False
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"


def add_languages(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Let the template link to the same page in the other language, and to its notebook."""
    here = Path(app.srcdir).name
    other = next(code for code in LANGUAGES if code != here)
    up = "../" * (page.count("/") + 1)
    context["other_language"] = {"name": LANGUAGES[other], "code": other, "link": f"{up}{other}/{page}.html"}
    is_chapter = doctree is not None and page[:2].isdigit()
    context["notebook"] = f"{up}notebooks/{here}/{page}.ipynb" if is_chapter else None


def link_to_repository(app: Any, page: str, source: list[str]) -> None:
    """Let links to Markdown files outside of the guide, such as the README, lead to these files."""
    source[0] = re.sub(r"\]\(((?:(?:\.\./){2,}|\.\./howto/)[\w/]+\.md)", r"](path:\1", source[0])


def setup(app: Any) -> None:
    app.add_search_language(SearchChinese)
    app.connect("builder-inited", lambda app: reference.write(Path(app.srcdir)))
    app.connect("source-read", link_to_repository)
    app.connect("html-page-context", add_languages)
