"""The README and the pages in docs/howto: short, linked, and each command and block of code in them runs as it stands there."""

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.conftest import Run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs/howto").glob("*.md"))}
TEXTS = {"README": README, **PAGES}
STAGES = ("fit", "validate", "test", "predict", "export", "data", "doctor")
# Only arguments are added: to keep a run short, off a GPU, and in a place of its own.
SHORT = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
SMALL = ["--model.network", "cnn", "--data.image_size", "32", "--data.num_workers", "0"]
NO_EXPORT = [f"--export.{name}.enabled=false" for name in ("onnx", "torchscript", "pt2")]
# These are parsed, not run: tests/test_processes.py, a GPU, or no network.
ELSEWHERE = (
    "--accelerator gpu",
    "device/gpu.yaml",
    "device/ddp.yaml",
    "device/fsdp.yaml",
    "device/multinode.yaml",
    "--strategy ddp",
    "--model.weights",
)
COMMAND = re.compile(rf"`lit-guide ((?:{'|'.join(STAGES)})[^`\n]*)`|^(?:lit-guide|.*-m lit_guide) (\w[^\n]*)$", re.MULTILINE)
WRITTEN = re.compile(r"Write\s`((?:lit_guide|configs)/[^`]+)`:\n\n```\w+\n(.*?)```", re.DOTALL)
NEEDS = re.compile(r"<!-- needs: ([^>]+) -->")


def commands(text: str) -> list[str]:
    """The arguments of each `lit-guide` command, in code and in blocks, as they follow each other."""
    return list(dict.fromkeys("".join(pair) for pair in COMMAND.findall(text.replace("\\\n", ""))))


def scripts(text: str) -> list[str]:
    """The blocks of Python that are run as they are, not written into a file."""
    return re.findall(r"```python\n(.*?)```", WRITTEN.sub("", text), flags=re.DOTALL)


COMMANDS = {name: commands(text) for name, text in TEXTS.items()}
OWN = [name for name, text in PAGES.items() if "Write\n`lit_guide/" in text or "Write `lit_guide/" in text or name == "allow"]


def links(text: str) -> list[str]:
    """Where the links to files lead."""
    return re.findall(r"\]\(([^)#:]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


# --- what is there


def test_the_readme_is_short() -> None:
    assert README.count("\n") <= 170


def test_each_page_is_linked_from_the_readme_and_no_link_is_broken() -> None:
    assert {f"docs/howto/{name}.md" for name in PAGES} <= set(links(README))
    assert [link for link in links(README) if not (ROOT / link).exists()] == []
    broken = [(name, link) for name, text in PAGES.items() for link in links(text) if not (ROOT / "docs/howto" / link).exists()]
    assert broken == []


def needs(text: str) -> set[str]:
    return {need.strip() for found in NEEDS.findall(text) for need in found.split(",")}


def test_what_a_page_needs_is_there_and_its_links_go_where_it_goes() -> None:
    """A page goes into a project that has what its first line names, and a line of it likewise: no link may dangle there."""
    for name, text in PAGES.items():
        first = text.partition("\n")[0]
        for kind, _, what in (need.partition(" ") for need in needs(text)):
            assert (ROOT / {"part": f"lit_guide/parts/{what}", "data": f"configs/{what}.yaml"}[kind]).exists(), name
        for line in text.splitlines()[1:]:
            if "template only" in f"{first} {line}":
                continue
            for link in links(line):
                target = PAGES.get(Path(link).stem, "").partition("\n")[0]
                assert "template only" not in target, (name, link)
                assert needs(target) <= needs(f"{first} {line}"), (name, link)
                assert not re.match(r"\.\./(en|zh)/|\.\./\.\./(benchmarks|hooks)/", link), (name, link)


def test_the_map_names_every_module_and_no_other() -> None:
    named = set(re.findall(r"`(?:lit_guide/(?:\w+/)*)?(\w+\.py)`", PAGES["files"]))
    there = {path.name for path in (ROOT / "lit_guide").rglob("*.py") if not path.name.startswith("__")}
    assert named == there


def test_the_two_commands_are_make_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    first = README.partition("```bash\n")[2].partition("```")[0]
    for target in re.findall(r"^make (\S+)", first, flags=re.MULTILINE):
        assert re.search(rf"^{target}: ", makefile, flags=re.MULTILINE)


# --- commands


def test_the_pages_show_every_command() -> None:
    every = {command for found in COMMANDS.values() for command in found}
    assert len(every) >= 50
    assert {command.split()[0] for command in every} == set(STAGES)
    assert {command.split()[0] for command in COMMANDS["README"]} == set(STAGES)
    assert len(COMMANDS["README"]) >= 10


def test_each_command_parses(run: Run, own_run: Path) -> None:
    for name in ("runs/digits/2026-01-31_12-00-00", "runs/mine", "runs/first"):
        shutil.copytree(own_run, name)
    for name, found in COMMANDS.items():
        for command in found:
            args = shlex.split(command)
            if args[0] in STAGES[:4] and not {"--help", "--print_config", "--data.help"} & set(args) and name not in OWN:
                outcome = run(*args, "--print_config")
                assert outcome.code == 0, (name, command, outcome.err)
                assert "class_path: " in outcome.out


RECIPES = {
    "--data.": ["configs/folder.yaml", "configs/arrays.yaml", "configs/table.yaml", "configs/torchvision.yaml"],
    "--trainer.strategy.": ["configs/device/multinode.yaml"],
}


@pytest.mark.slow
def test_each_flag_parses(run: Run) -> None:
    seen = []
    for name, text in TEXTS.items():
        for flags in re.findall(r"`(--\w+\.[^`]+ [^`]+)`", text):
            if re.search(r" [A-Z_]+$| [A-Z]+ ", flags):  # stands for a value
                continue
            recipes = next((found for start, found in RECIPES.items() if flags.startswith(start)), ["configs/digits.yaml"])
            outcomes = [run("fit", "--config", recipe, *shlex.split(flags), "--print_config") for recipe in recipes]
            assert any(outcome.code == 0 for outcome in outcomes), (name, flags, outcomes[0].err)
            seen.append(flags)
    assert len(seen) >= 20


def make_photos(root: Path) -> None:
    """Two classes of 20 pictures, all different; one is brighter."""
    import numpy as np
    from PIL import Image

    for number in range(40):
        path = root / ("cat", "dog")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        squares_HWC = np.random.default_rng(number).integers(0, 128, (6, 8, 3), dtype=np.uint8) + np.uint8(120 * (number % 2))
        Image.fromarray(squares_HWC.repeat(10, axis=0).repeat(10, axis=1)).save(path)


def script_with(words: str, page: str) -> str:
    """The one block of Python on a page with these words in it."""
    (block,) = [block for block in scripts(PAGES[page]) if words in block]
    return block


@pytest.mark.slow
def test_four_commands_lead_from_a_folder_of_photos_to_predictions(run: Run) -> None:
    section = README.partition("## Your data\n")[2].partition("\n## ")[0]
    steps = section.partition("```bash\n")[2].partition("```")[0].strip().splitlines()
    assert [command.split()[1] for command in steps] == ["data", "data", "fit", "predict"]
    make_photos(Path("photos"))
    make_photos(Path("new_photos"))
    for command in steps:
        args = shlex.split(command)[1:]
        if args[0] == "fit":
            args += [*SMALL, "--trainer.max_epochs", "12", "--trainer.log_every_n_steps", "1", "--accelerator", "cpu"]
        outcome = run(*args)
        assert outcome.code == 0, (command, outcome.err)
    (predictions,) = Path("runs/folder").glob("*/predictions.csv")
    rows = [line.split(",")[:2] for line in predictions.read_text().splitlines()[1:]]
    assert len(rows) == 40
    assert sum(Path(name).parent.name == label for name, label in rows) >= 36
    block = script_with("ImageFolderDataset", "photos")
    out = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, check=True)
    assert out.stdout == "40 cat (3, 60, 80) torch.uint8\n"


@pytest.fixture
def workspace(run: Run, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the commands read: photos, a table of them, arrays, images, a run, and sets of torchvision as small as can be."""
    import torchvision
    from PIL import Image

    from tests.data.test_torchvision_set import WRITERS

    for folder in ("photos", "new_photos"):
        make_photos(Path(folder))
    rows = [f"{path.as_posix()},{path.parent.name}\n" for path in Path("photos").glob("*/*")]
    Path("photos.csv").write_text("path,label\n" + "".join(rows))
    exec(script_with("np.savez", "arrays"), {})  # writes my.npz
    for name in ("a.png", "some_folder/b.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.new("L", (20, 20), 128).save(name)
    for name in ("runs/digits/2026-01-31_12-00-00", "runs/mine", "runs/first"):
        shutil.copytree(trained, name)
    shutil.copytree(trained / "export", "export")
    for name in ("CIFAR10", "Flowers102", "MNIST"):
        WRITERS[name](Path("data"))

    def refuse(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(torchvision.datasets.utils, "check_md5", lambda path, md5: True)


def without_those_before(name: str) -> list[str]:
    """The commands of a page that no page before it has."""
    pages = list(COMMANDS)
    before = {command for page in pages[: pages.index(name)] for command in COMMANDS[page]}
    return [command for command in COMMANDS[name] if command not in before]


@pytest.mark.slow
@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("name", [name for name in TEXTS if name not in OWN])
def test_the_commands_and_blocks_of_a_page_run(run: Run, name: str) -> None:
    for block in scripts(TEXTS[name]):
        done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    for command in without_those_before(name):
        if any(words in command for words in ELSEWHERE):
            continue
        args = shlex.split(command)
        if args[0] == "fit" and not {"--help", "--print_config", "--data.help"} & set(args):
            epochs = ["--trainer.max_epochs", "3"] if "--run" in args else SHORT
            args += [*epochs, "--accelerator", "cpu"]
            if any(words in command for words in ("photos", "resnet", "Flowers102")):
                args += SMALL if "resnet" not in command else ["--data.num_workers", "0"]
            if "export" not in command:  # each format takes seconds
                args += NO_EXPORT
            if "--run_dir" in args and "--resume" not in args:
                shutil.rmtree(args[args.index("--run_dir") + 1])
        outcome = run(*args)
        assert outcome.code == 0, (command, outcome.err)


@pytest.mark.slow
@pytest.mark.parametrize(("words", "alone"), [("onnxruntime", "torch|lit_guide"), ("torch.jit", "lit_guide")])
def test_a_block_that_uses_an_exported_model_needs_no_more_than_it_says(trained: Path, words: str, alone: str) -> None:
    block = script_with(words, "export")
    assert not re.search(rf"(import|from) ({alone})\b", block)
    done = subprocess.run([sys.executable, "-c", block], cwd=trained, capture_output=True, text=True, check=True)
    assert done.stdout.strip() in [str(digit) for digit in range(10)]


# --- one's own code


def apply(diff: str, path: Path) -> None:
    """Change a file as the lines of a page's diff say: `+` after the line that stands before it, or in place of `-`."""
    text = path.read_text(encoding="utf-8")
    before, removed = "", False
    for line in diff.splitlines():
        sign, rest = line[:1], line[1:] + "\n"
        if sign == "+":
            assert text.count(before) == 1, before
            text = text.replace(before, rest if removed else before + rest)
        before, removed = rest, sign == "-"
    path.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def own_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, with all that the pages write into it, and a package from elsewhere."""
    project = tmp_path_factory.mktemp("own")
    for name in ("lit_guide", "configs"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", project)
    for text in PAGES.values():
        for path, content in WRITTEN.findall(text):
            assert not (project / path).exists(), path
            (project / path).write_text(content, encoding="utf-8")
        for path, diff in re.findall(r"in `(lit_guide/\w+\.py)`:\n\n```diff\n(.*?)```", text, flags=re.DOTALL):
            apply(diff, project / path)
    (project / "other_package.py").write_text("from torch.optim import Adam\n\n\nclass Lion(Adam):\n    pass\n")
    return project


def must(*args: object, cwd: Path) -> str:
    """Run a Python module that must end well; what it printed."""
    words = [sys.executable, "-m", *(str(arg) for arg in args)]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, f"{args}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_the_code_of_the_pages_is_tidy_and_typed(own_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(own_project))
    must("ruff", "check", "--no-cache", "lit_guide", cwd=own_project)
    must("ruff", "format", "--no-cache", "--check", "lit_guide", cwd=own_project)
    must("mypy", "--cache-dir", Path(tempfile.gettempdir()) / "lit-guide-mypy", cwd=own_project)


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_your_own_code_runs(own_project: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """It learns, is exported where it is a network, and the run's own commands know it."""
    monkeypatch.setenv("PYTHONPATH", str(own_project))
    exports = name in ("network", "dataset", "model")
    for number, command in enumerate(COMMANDS[name]):
        args = shlex.split(command)
        assert args[0] == "fit"
        made, short = f"{name}{number}", [] if exports else ["--trainer.max_epochs", "8", *NO_EXPORT]
        must("lit_guide", *args, "--run_dir", made, "--accelerator", "cpu", *short, cwd=own_project)
        results = json.loads((own_project / made / "results.json").read_text(encoding="utf-8"))
        assert results["test"]["accuracy"] > 0.9, command
        found = [entry["format"] for entry in results.get("exports", ()) if entry["max_abs_diff"] < 1e-4]
        assert sorted(found) == (["onnx", "pt2", "torchscript"] if exports else [])
        allow = args[args.index("--allow") :][:2] if "--allow" in args else []
        for again in ("test", "predict"):
            must("lit_guide", again, "--run", made, "--accelerator", "cpu", *allow, cwd=own_project)


@pytest.mark.slow
def test_a_source_goes_by_its_short_name(tmp_path: Path) -> None:
    """In a process of its own: in this one the tests have imported every source."""
    assert "--data.path" in must("lit_guide", "fit", "--data.help", "ArraysData", cwd=tmp_path)
