"""Make the project: copy this repository's own files under the user's names.

cookiecutter fills in the answers and runs this in the new folder, after the files that differ were written there.
Standard library only. Nothing is installed or asked, and nothing outside the folder is written.
"""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Set
from itertools import zip_longest
from pathlib import Path

# Every other file stays in the template: tests/template/test_bakes.py has that list.
CARRIED = (
    ".gitignore",
    ".pre-commit-config.yaml",
    "Makefile",
    "configs/**/*.yaml",
    "constraints.txt",
    "deploy/*",
    "docs/howto/*.md",
    "lit_guide/**/*.py",
    "lit_guide/data/digits.LICENSE.txt",
    "lit_guide/data/digits.npz",
    "lit_guide/py.typed",
    "pyproject.toml",
    "tests/__init__.py",
    "tests/story/*.py",
)
CARRIED_FOR_CI = {"github": (".github/dependabot.yml", ".github/workflows/ci.yml"), "none": ()}
# The parts of `parts: standard`, as soon as they are there; `all` and the names are what is below lit_guide/parts.
STANDARD = ("cache", "doctor", "earlier", "finetune", "guards", "inspect", "look", "report", "threads")
TEMPLATE_ONLY = ("# template only", "<!-- template only -->")  # the first line of a file that stays here
# A line marked `needs: part doctor, data folder` travels with these only; on a first line of its own it speaks of the whole file.
NEEDS = re.compile(r"[ \t]*(?:#|<!--) needs: ((?:part|data) \w+(?:, (?:part|data) \w+)*)(?: -->|$)")
# What `make demo` trains. Photos have to be there first; arrays have a file to begin with: the digits' own.
DIGITS = "--config configs/digits.yaml"
DEMO = {
    "digits": DIGITS,
    "folder": f"$(if $(wildcard photos/*),--config configs/folder.yaml --data.root photos,{DIGITS})",
    "arrays": "--config configs/arrays.yaml --data.path lit_guide/data/digits.npz",
    "torchvision": "--config configs/torchvision.yaml --data.dataset CIFAR10 --data.root data --trainer.max_epochs 5",
    "all": DIGITS,
}
LINE = 130  # characters at most: line-length of pyproject.toml
SPDX = {"proprietary": "LicenseRef-Proprietary"}  # the others are SPDX identifiers themselves


def main(answers: Mapping[str, str]) -> None:
    """Fill the current folder.

    Raises:
        SystemExit: the template could not be cloned.
    """
    names = {
        "lit_guide": answers["package_name"],
        "lit-guide": answers["project_slug"],
        "LIT_GUIDE": answers["package_name"].upper(),
    }
    project = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        template = template_folder(answers, Path(folder))
        absent = left_out(template, answers)
        for source in carried(template, answers["ci"], absent):
            target = project / renamed(source.relative_to(template).as_posix(), names)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(adapted(source, names, answers, absent))
            shutil.copymode(source, target)
    readme = project / "README.md"
    text = fitting(readme.read_text(encoding="utf-8"), absent)
    readme.write_bytes(with_lists(text, project, answers["package_name"]).encode())
    if not made_to_compare(answers, project):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may have letters that the terminal lacks
        print(what_next(project), flush=True)


def template_folder(answers: Mapping[str, str], clone: Path) -> Path:
    """Where the template's files are: cookiecutter says it; cruft says which commit of which repository to clone."""
    if "_repo_dir" not in answers:
        git("clone", "--quiet", "--no-checkout", answers["_template"], str(clone))
        git("-C", str(clone), "checkout", "--quiet", answers["_commit"])
        return clone
    return Path(answers["_output_dir"], answers["_repo_dir"])  # a relative one starts where cookiecutter was called


def git(*args: str) -> None:
    """Run git, or end with what it says."""
    done = subprocess.run(["git", *args], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"The template could not be cloned: {done.stderr.strip()}")


def left_out(template: Path, answers: Mapping[str, str]) -> set[str]:
    """The parts and sources of data that the project goes without, such as "part doctor" and "data folder"."""
    parts = [path.parent.name for path in template.glob("lit_guide/parts/*/__init__.py")]
    groups = {"core": [], "standard": STANDARD, "all": parts}
    chosen = {name for word in re.findall(r"\w+", answers["parts"]) for name in groups.get(word, [word])}
    sources = {belongs_to(f"lit_guide/data/{path.name}") for path in template.glob("lit_guide/data/[a-z]*.py")}
    kept = sources if answers["data"] == "all" else {"data digits", f"data {answers['data']}"}
    return {f"part {name}" for name in parts if name not in chosen} | (sources - kept)


def belongs_to(name: str) -> str:
    """The part or source of data that a file's place says it belongs to; for most files that is none."""
    if found := re.match(r"lit_guide/parts/(\w+)/", name):
        return f"part {found[1]}"
    found = re.fullmatch(r"(?:lit_guide/data|configs)/(\w+?)(?:_set)?\.(?:py|yaml)", name)
    return f"data {found[1]}" if found else ""


def carried(template: Path, ci: str, absent: Set[str] = frozenset()) -> Iterator[Path]:
    """The files of the template that belong into a project."""
    for pattern in (*CARRIED, *CARRIED_FOR_CI[ci]):
        for path in sorted(template.glob(pattern)):
            if path.is_file() and belongs_to(path.relative_to(template).as_posix()) not in absent:
                with path.open("rb") as file:
                    first = file.readline().decode(errors="replace").rstrip()
                needs = NEEDS.fullmatch(first)
                if first not in TEMPLATE_ONLY and (needs is None or absent.isdisjoint(needs[1].split(", "))):
                    yield path


def adapted(source: Path, names: Mapping[str, str], answers: Mapping[str, str], absent: Set[str]) -> bytes:
    """The content of a file in the project; a binary file stays as it is."""
    content = source.read_bytes()
    if b"\0" in content:
        return content
    text = content.decode().replace("\r\n", "\n")  # a clone on Windows may have both
    text = fitting(without_template_lines(text), absent)
    if source.name == "Makefile":
        text = set_line(text, r"DEMO \?= ", f"DEMO ?= {DEMO[answers['data']]}")
    if source.parent.name == "lit_guide" and source.name == "__init__.py":
        text = set_line(text, "__version__ = ", '__version__ = "0.1.0"')  # the project's own, whatever the template's is
    text = renamed(text, names)
    if source.suffix == ".py":
        text = wrapped(text)
    if source.name == "pyproject.toml":
        text = with_metadata(text, answers)
    return text.encode()


def renamed(text: str, names: Mapping[str, str]) -> str:
    """The text, or path, with the template's names exchanged."""
    return re.sub("|".join(names), lambda match: names[match[0]], text)


def wrapped(text: str) -> str:
    """Break the imports that a longer name makes too long, as `ruff format` does: one name a line."""

    def break_up(match: re.Match[str]) -> str:
        indent, start, names = match.groups()
        if len(match[0]) <= LINE:
            return match[0]
        lines = "".join(f"{indent}    {name},\n" for name in names.split(", "))
        return f"{indent}{start} (\n{lines}{indent})"

    return re.sub(r"^( *)(from \S+ import) ([\w, ]+)$", break_up, text, flags=re.MULTILINE)


def without_template_lines(text: str) -> str:
    """Leave out what only the template needs: lines marked `# template only`, and `# template only:` to `# end`."""
    text = re.sub(r"^# template only:\n.*?^# end\n\n?", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"^.*(?:#|<!--) template only\b.*\n", "", text, flags=re.MULTILINE)


def fitting(text: str, absent: Set[str]) -> str:
    """Leave out the lines that need what the project goes without, and from the other lines what they need."""
    kept = []
    for line in text.split("\n"):
        needs = NEEDS.search(line)
        if needs is None:
            kept.append(line)
        elif absent.isdisjoint(needs[1].split(", ")) and needs[0] != line:
            kept.append(line.replace(needs[0], ""))
    return "\n".join(kept)


def set_line(text: str, start: str, line: str) -> str:
    """Exchange the one line that starts so (a regular expression)."""
    text, count = re.subn(f"^{start}.*$", lambda _: line, text, flags=re.MULTILINE)
    if count != 1:
        sys.exit(f"{count} lines of the template start with {start!r}, not one: please report this.")
    return text


def with_metadata(text: str, answers: Mapping[str, str]) -> str:
    """pyproject.toml with the user's description, author and licence. A JSON string is a TOML string too."""

    def toml(value: str) -> str:
        return json.dumps(value, ensure_ascii=False)

    author = f"name = {toml(answers['author_name'])}"
    if answers["author_email"]:
        author += f", email = {toml(answers['author_email'])}"
    text = set_line(text, "description = ", f"description = {toml(answers['description'])}")
    text = set_line(text, "authors = ", "authors = [{ " + author + " }]")
    text = set_line(text, "license = ", f"license = {toml(SPDX.get(answers['license'], answers['license']))}")
    if answers["license"] == "proprietary":
        text = set_line(text, r"classifiers = \[", 'classifiers = [\n  "Private :: Do Not Upload",')
    return text


def with_lists(text: str, project: Path, package: str) -> str:
    """The project's README, its lists written out: what is there stands in them, in the words of the files themselves."""

    def files(match: re.Match[str]) -> str:
        paths = [path for pattern in match[1].split() for path in sorted((project / package).glob(pattern))]
        return "\n".join(
            f"| `{path.relative_to(project).as_posix()}{'/' * path.is_dir()}` | {phrase(path)} |"
            for path in paths
            if path.name[0] != "_"
        )

    pages = sorted((project / "docs" / "howto").glob("*.md"))
    heads = [page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ") for page in pages]
    links = [f"[{head}](docs/howto/{page.name})" for head, page in zip(heads, pages, strict=True)]
    rows = [f"| {left} | {right} |" for left, right in zip_longest(links[::2], links[1::2], fillvalue="")]
    return re.sub("<!-- files: (.+) -->", files, text).replace("<!-- pages -->", "\n".join(rows))


def phrase(path: Path) -> str:
    """What a module, or a package's folder, says of itself in the first line of its docstring."""
    module = path / "__init__.py" if path.is_dir() else path
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].rstrip(".")


def made_to_compare(answers: Mapping[str, str], project: Path) -> bool:
    """Whether `cruft update`, `diff` or `check` makes this one in a temporary folder, which nobody will go to."""
    temporary = Path(tempfile.gettempdir()).resolve()
    in_temporary = project.parent.parent == temporary and project.parent.name.startswith(tempfile.gettempprefix())
    return "_repo_dir" not in answers and in_temporary


def what_next(project: Path) -> str:
    """The commands that lead on, to be pasted where cookiecutter or cruft was called."""
    here = Path(os.environ.get("PWD", ""))
    place = project.relative_to(here) if project.is_relative_to(here) else project
    return f"""
{project.name} is ready. Next:
  cd {shlex.quote(str(place))}
  git init && git add . && git commit -m "Start"
  make demo"""


if __name__ == "__main__":
    main(json.loads(r"""{{ cookiecutter | tojson }}"""))
