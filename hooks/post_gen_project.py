"""Make the project: copy this repository's own files under the user's names.

cookiecutter fills in the answers and runs this in the new folder, after the files that differ were written there.
Standard library only. Nothing is installed or asked, and nothing outside the folder is written.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

# Every other file stays in the template: tests/template/test_bakes.py has that list.
CARRIED = (
    ".gitignore",
    ".pre-commit-config.yaml",
    "Makefile",
    "configs/**/*.yaml",
    "constraints.txt",
    "deploy/*",
    "lit_guide/**/*.py",
    "lit_guide/data/digits.LICENSE.txt",
    "lit_guide/data/digits.npz",
    "lit_guide/py.typed",
    "pyproject.toml",
    "tests/*.py",
    "tests/callbacks/*.py",
    "tests/data/*.py",
)
CARRIED_FOR_CI = {"github": (".github/dependabot.yml", ".github/workflows/ci.yml"), "none": ()}
# What `make demo` trains. Photos have to be there first; arrays have a file to begin with: the digits' own.
DEMO = {
    "digits": "--config configs/digits.yaml",
    "folder": "$(if $(wildcard photos/*),--config configs/folder.yaml --data.root photos,--config configs/digits.yaml)",
    "arrays": "--config configs/arrays.yaml --data.path lit_guide/data/digits.npz",
    "torchvision": "--config configs/torchvision.yaml --data.dataset CIFAR10 --data.root data --trainer.max_epochs 5",
}
SPDX = {"proprietary": "LicenseRef-Proprietary"}  # the others are SPDX identifiers themselves


def main(answers: Mapping[str, str]) -> None:
    """Fill the current folder.

    Raises:
        SystemExit: the template's files are not where cookiecutter says, or could not be cloned.
    """
    names = {
        "lit_guide": answers["package_name"],
        "lit-guide": answers["project_slug"],
        "LIT_GUIDE": answers["package_name"].upper(),
    }
    project = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        template = template_folder(answers, Path(folder))
        for source in carried(template, answers["ci"]):
            target = project / renamed(source.relative_to(template).as_posix(), names)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(adapted(source, names, answers))
            shutil.copymode(source, target)
        readme = project / "README.md"
        text = with_sections(readme.read_text(encoding="utf-8"), (template / "README.md").read_text(encoding="utf-8"), names)
        readme.write_bytes(text.encode())


def template_folder(answers: Mapping[str, str], clone: Path) -> Path:
    """Where the template's files are: cookiecutter says it; cruft says which commit of which repository to clone."""
    if "_repo_dir" not in answers:
        git("clone", "--quiet", "--no-checkout", answers["_template"], str(clone))
        git("-C", str(clone), "checkout", "--quiet", answers["_commit"])
        return clone
    template = Path(answers["_output_dir"], answers["_repo_dir"])  # a relative one starts where cookiecutter was called
    if not (template / "hooks" / "post_gen_project.py").is_file():
        sys.exit(
            f"The template is not at {template}: a relative path to it does not go together with --output-dir. "
            "Give the template's absolute path."
        )
    return template


def git(*args: str) -> None:
    """Run git, or end with what it says."""
    done = subprocess.run(["git", *args], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"The template could not be cloned: {done.stderr.strip()}")


def carried(template: Path, ci: str) -> Iterator[Path]:
    """The files of the template that belong into a project."""
    for pattern in (*CARRIED, *CARRIED_FOR_CI[ci]):
        yield from (path for path in sorted(template.glob(pattern)) if path.is_file())


def adapted(source: Path, names: Mapping[str, str], answers: Mapping[str, str]) -> bytes:
    """The content of a file in the project; a binary file stays as it is."""
    content = source.read_bytes()
    if b"\0" in content:
        return content
    text = without_template_lines(content.decode().replace("\r\n", "\n"))  # a clone on Windows may have both
    if source.name == "Makefile":
        text = set_line(text, r"DEMO \?= ", f"DEMO ?= {DEMO[answers['data']]}")
    if source.parent.name == "lit_guide" and source.name == "__init__.py":
        text = set_line(text, "__version__ = ", '__version__ = "0.1.0"')  # the project's own, whatever the template's is
    text = renamed(text, names)
    if source.name == "pyproject.toml":
        text = with_metadata(text, answers)
    return text.encode()


def renamed(text: str, names: Mapping[str, str]) -> str:
    """The text, or path, with the template's names exchanged."""
    return re.sub("|".join(names), lambda match: names[match[0]], text)


def without_template_lines(text: str) -> str:
    """Leave out what only the template needs: lines marked `# template only`, and `# template only:` to `# end`."""
    text = re.sub(r"^# template only:\n.*?^# end\n\n?", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"^.*(?:#|<!--) template only\b.*\n", "", text, flags=re.MULTILINE)


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


def with_sections(text: str, source: str, names: Mapping[str, str]) -> str:
    """The project's README; `<!-- section: HEADING -->` in it stands for that section of the template's README."""
    found = re.split(r"^(?=## )", without_template_lines(source), flags=re.MULTILINE)
    sections = {part.partition("\n")[0].removeprefix("## "): part.strip() for part in found}
    return re.sub(r"<!-- section: (.+) -->", lambda match: renamed(sections[match[1]], names), text)


if __name__ == "__main__":
    main(json.loads(r"""{{ cookiecutter | tojson }}"""))
