"""Build the guide: a site for each language, and each chapter as a notebook. Warnings are errors.

python docs/build.py [FOLDER]    into FOLDER, docs/_build if not given
"""

import os
import re
import sys
from pathlib import Path

import jupytext
from nbformat import NotebookNode
from sphinx.cmd.build import build_main

DOCS = Path(__file__).parent
LANGUAGES = {"en": "en", "zh": "zh_CN"}
LINK = re.compile(r"(?<=\]\()([^)#:]+)(#[^)]*)?(?=\))")  # to a file, not to a place in the same one or on the web
DETAILS = re.compile(r"</?details>|<summary>|</summary>")
SKIP = re.compile(r"^<!--- skip: next (.*) -->\Z", re.MULTILINE)  # ends the text before a block that can't run everywhere


def notebook(chapter: Path, site: Path = DOCS / "_build") -> NotebookNode:
    """A chapter as a Jupyter notebook below `site`; its hidden answer is a cell that is folded.

    "Run all" goes through: what is never run here is text, and what needs a GPU may fail.
    """
    book = jupytext.read(chapter)
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    folded, skip = False, None
    for cell in book.cells:
        if skip and cell.cell_type == "code":
            if skip[1].startswith("if("):
                cell.metadata["tags"] = ["raises-exception"]
            else:
                cell.cell_type, cell.source = "markdown", f"```bash\n{cell.source.removeprefix('%%bash').strip()}\n```"
                del cell["outputs"], cell["execution_count"]
        skip = SKIP.search(cell.source) if cell.cell_type == "markdown" else None
        if cell.cell_type == "markdown":
            marks = re.findall("</?details>", cell.source)
            folded = marks[-1] == "<details>" if marks else folded
            cell.source = LINK.sub(lambda link: link_from(site, chapter, *link.groups()), DETAILS.sub("", cell.source)).strip()
        elif folded:
            cell.metadata["jupyter"] = {"source_hidden": True}
    book.cells = [cell for cell in book.cells if cell.source]
    for number, cell in enumerate(book.cells):
        cell["id"] = str(number)  # jupytext's are random: the same chapter would make another file each time
    return book


def link_from(site: Path, chapter: Path, path: str, anchor: str | None) -> str:
    """A link of a chapter, as it is where the notebook lies: to notebooks, pages of the site, and files of the repository."""
    if re.fullmatch(r"\d\w*\.md", path):
        return path.removesuffix(".md") + ".ipynb" + (anchor or "")
    here = site / "notebooks" / chapter.parent.name
    target = (chapter.parent / path).resolve()
    if target.suffix == ".md" and any((DOCS / folder).resolve() in target.parents for folder in LANGUAGES):
        target = site / target.relative_to(DOCS.resolve()).with_suffix(".html")
    try:
        return Path(os.path.relpath(target, here)).as_posix() + (anchor or "")
    except ValueError:  # on another drive of Windows
        return target.as_uri() + (anchor or "")


def main(args: list[str]) -> int:
    site, failed = Path(args[0]) if args else DOCS / "_build", 0
    site = site.resolve()
    for folder, language in LANGUAGES.items():
        # All pages anew each time: Sphinx would neither warn of an old page again nor tell it of new ones.
        options = ["-q", "-E", "-a", "-W", "--keep-going", "-c", str(DOCS), "-D", f"language={language}"]
        options += ["-d", str(site / "doctrees" / folder)]
        failed |= build_main([*options, str(DOCS / folder), str(site / folder)])
        (site / "notebooks" / folder).mkdir(parents=True, exist_ok=True)
        for chapter in sorted((DOCS / folder).glob("[0-9]*.md")):
            jupytext.write(notebook(chapter, site), site / "notebooks" / folder / f"{chapter.stem}.ipynb")
    if not failed:
        print(f"Open {site / 'en' / 'index.html'}")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
