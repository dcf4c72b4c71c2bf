"""Check the answers before a file is written. cookiecutter fills them in and runs this.

Standard library only, Python 3.10 or newer.
"""

import json
import keyword
import re
import subprocess
import sys
import tempfile
from pathlib import Path

GROUPS = ("core", "standard", "all")  # of parts; what is in them is said in post_gen_project.py
LONGEST = 40  # characters of a name: lines of code with it still fit into 130
# What the project installs or runs, and folders and device names that a package or a command of that name would hide.
TAKEN = re.findall(
    r"\w+",
    """
    build configs cookiecutter cruft execnet filelock functorch hatch hatchling import_linter importlinter jsonargparse
    lightning lightning_fabric lightning_utilities lit_guide matplotlib mlflow mlflow_skinny mpl_toolkits mypy mypyc numpy
    onnx onnxruntime onnxscript packaging pil pillow pi_heif pip pre_commit py pyarrow pylab pytest pytest_xdist python python3
    pytorch_lightning pyyaml rich ruff safetensors scikit_learn scipy setuptools sklearn tensorboard torch torchgen
    torchmetrics torchvision types_pyyaml wandb xdist yaml
    benchmarks data data_show deploy dist docs hooks photos runs src test tests
    aux con nul prn
    """,
)


def name_problem(name: str, shape: str, words: str) -> str | None:
    """What is wrong with a name: its shape (a regular expression, in words), its length, or that it is taken."""
    plain = name.replace("-", "_")
    if not re.fullmatch(shape, name):
        return f"use {words}"
    if len(name) > LONGEST:
        return f"it has {len(name)} characters; {LONGEST} is the most"
    if plain in TAKEN or plain in sys.stdlib_module_names or keyword.iskeyword(plain):
        return "Python or a tool of the project has that name; choose another"
    return None


def parts_problem(answers: dict[str, str]) -> str | None:
    """What is wrong with the answer `parts`: one of its words is neither a group nor a part."""
    words = [word.strip() for word in answers["parts"].split(",")]
    if set(words) <= set(GROUPS):
        return None
    there = part_names(answers)
    unknown = [word for word in words if word not in (*GROUPS, *there)]
    if not unknown:
        return None
    return f"there is no part {unknown[0]!r}; use core, standard, all, or names separated by commas: {', '.join(there)}"


def part_names(answers: dict[str, str]) -> list[str]:
    """The folders below lit_guide/parts. cookiecutter says where they are; cruft only which commit of which repository."""
    if "_repo_dir" in answers:
        paths = template_folder(answers).glob("lit_guide/parts/*/__init__.py")
        return sorted(path.parent.name for path in paths)
    with tempfile.TemporaryDirectory() as clone:
        git("clone", "--quiet", "--bare", "--filter=blob:none", answers["_template"], clone)
        listed = git("-C", clone, "ls-tree", "-d", "--name-only", answers["_commit"], "lit_guide/parts/")
    return [name.rpartition("/")[2] for name in listed.splitlines()]


def git(*args: str) -> str:
    """What git prints; or end with what it says."""
    done = subprocess.run(["git", *args], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"The template could not be cloned: {done.stderr.strip()}")
    return done.stdout


def template_folder(answers: dict[str, str]) -> Path:
    """Where cookiecutter says that the template's files are, or end."""
    template = Path(answers["_output_dir"], answers["_repo_dir"])
    if not (template / "hooks" / "post_gen_project.py").is_file():
        sys.exit(
            f"The template is not at {template}: a relative path to it does not go together with --output-dir. "
            "Give the template's absolute path."
        )
    return template


def problems(answers: dict[str, str]) -> list[str]:
    """What is wrong with the answers, one line each; empty where a valid project will come of them."""
    slug, package = answers["project_slug"], answers["package_name"]
    words = "lowercase letters and digits, with single {} between them, such as {}"
    found = {
        "project_slug": name_problem(slug, r"[a-z0-9]+([-_][a-z0-9]+)*", words.format("- or _", "my-classifier")),
        "package_name": name_problem(package, r"[a-z][a-z0-9]*(_[a-z0-9]+)*", words.format("_", "my_classifier")),
    }
    found["parts"] = parts_problem(answers)
    for key in ("project_name", "author_name"):
        if not answers[key].strip():
            found[key] = "it must not be empty"
    if not re.fullmatch(r"([\w.+-]+@[\w-]+(\.[\w-]+)+)?", answers["author_email"], re.ASCII):
        found["author_email"] = "write it like name@example.com, or leave it empty"
    for key in ("project_name", "description", "author_name"):
        if not answers[key].isprintable():
            found[key] = "it must be one line of printable characters"
    return [f"{key} {answers[key]!r}: {problem}." for key, problem in found.items() if problem]


if __name__ == "__main__":
    answers = json.loads(r"""{{ cookiecutter | tojson }}""")
    if "_repo_dir" in answers:
        template_folder(answers)
    found = problems(answers)
    for problem in found:
        print(problem, file=sys.stderr)
    sys.exit(1 if found else 0)
