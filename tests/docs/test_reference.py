"""The reference: nothing of the program is missing on the generated pages, and results.json is what its schema says."""

import inspect
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from lightning.pytorch.cli import LightningArgumentParser
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_guide import cli
from lit_guide.data import ImageDataModule
from lit_guide.engine.config.cli import ClassifierCLI
from lit_guide.engine.config.parser import Parser
from lit_guide.engine.train.optim import find_class, subclasses
from lit_guide.export.command import formats
from lit_guide.fit import flags
from lit_guide.model import LitClassifier
from lit_guide.parts.inspect.command import ACTIONS, DataCLI
from tests.conftest import Run
from tests.docs.test_guide import GUIDE

DOCS = Path(__file__).parents[2] / "docs"
LANGUAGES = ("en", "zh")
SCHEMA = json.loads((DOCS / "results.schema.json").read_text(encoding="utf-8"))
DATA_COMMANDS = tuple(f"data {name}" for name in ACTIONS)


class Asked(Exception):  # noqa: N818  # no error
    """Comes with the parser, in place of parsing."""


def keys_of(command: str) -> dict[str, Any]:
    """Every key that a command takes -> its default, from the parser itself."""

    class Asking(DataCLI if command in DATA_COMMANDS else ClassifierCLI):  # type: ignore[misc]
        def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
            raise Asked(parser)

    with pytest.raises(Asked) as asked:
        Asking(command, ["--help"], LitClassifier, flags())
    return defaults(asked.value.args[0])


def defaults(parser: LightningArgumentParser) -> dict[str, Any]:
    found = parser.get_defaults(skip_validation=True)
    linked = {f"model.{name}" for name in ("class_names", "input_shape", "mean", "std", "crop")}  # come from the data
    return {key: value for key, value in found.items() if key not in linked}


@pytest.fixture(scope="module")
def reference() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        patch.delitem(sys.modules, "reference", raising=False)
        import reference

        yield reference


@pytest.fixture(scope="module", params=LANGUAGES)
def pages(reference: ModuleType, request: pytest.FixtureRequest) -> dict[str, str]:
    words, texts = reference.WORDS[request.param], reference.helps()
    return {
        "commands": reference.commands(words, texts),
        "keys": reference.keys(words, texts),
        "api": reference.api(words),
        **{word: words[word] for word in ("default", "required", "comma", "all")},
    }


def section(page: str, title: str) -> str:
    """The part of a page below a heading, up to the next one."""
    (found,) = re.findall(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", page, re.MULTILINE | re.DOTALL)
    return str(found)


def fault(pages: dict[str, str], page: str, key: str, default: Any) -> str | None:
    """What is wrong with the entry of a key on a page: it has a type, and the default as it is, or in its text."""
    and_, word, required = (re.escape(pages[name]) for name in ("comma", "default", "required"))
    facts = rf"`(?P<type>[^\n]+?)`(?:{and_}{word} `(?P<default>[^\n]*)`|(?P<required>{and_}{required}))?"
    found = re.search(rf"`--{re.escape(key)}`[^\n]*\n: {facts}\n\n  (?P<text>[^\n]*)", page)
    if found is None:
        return f"{key} has no entry with type and text"
    if found["required"] or (default is None and ("Default: ``" in found["text"] or key == "config")):
        return None
    plain = json.dumps(default) if default is None else str(default)
    return None if found["default"] == plain else f"{key} has the default {found['default']}, not {plain}"


def test_every_command_has_a_section(pages: dict[str, str]) -> None:
    for command in cli.COMMANDS:
        assert section(pages["commands"], f"lit-guide {command}").strip()
    for command in DATA_COMMANDS:
        assert section(pages["commands"], f"lit-guide {command}").strip()


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", *DATA_COMMANDS])
def test_every_key_of_a_command_has_an_entry_with_its_default(pages: dict[str, str], command: str) -> None:
    page = pages["keys"] + section(pages["commands"], f"lit-guide {command}")
    values = keys_of(command)
    optimizer = [key for key in values if key.startswith("model.optimizer.")]  # shown as a whole
    whole = {"class_path": values[optimizer[0]], "init_args": {"lr": values["model.optimizer.init_args.lr"]}}
    values = {key: value for key, value in values.items() if key not in optimizer} | {"model.optimizer": whole}
    assert [told for key, value in values.items() if (told := fault(pages, page, key, value))] == []


def test_export_has_all_its_options(pages: dict[str, str], run: Run) -> None:
    flags = re.findall(r"^  (?:-\w, )?(--[\w.]+)", run("export", "--help").out, re.MULTILINE)
    entries = section(pages["commands"], "lit-guide export")
    assert "--formats" in flags
    assert [flag for flag in flags if f"`{flag}`" not in entries] == []
    for name, callback in formats().items():
        for key, parameter in inspect.signature(callback).parameters.items():
            assert fault(pages, entries, f"export.{name}.{key}", parameter.default) is None


def test_doctor_has_its_option(pages: dict[str, str]) -> None:
    assert "--json" in section(pages["commands"], "lit-guide doctor")


def test_every_class_that_is_listed_has_its_arguments(pages: dict[str, str], reference: ModuleType) -> None:
    for key, names in reference.CLASSES.items():
        base = Optimizer if key == "model.optimizer" else LRScheduler
        for name in names:
            cls = find_class(name, base)
            assert cls is not None
            first, *arguments = inspect.signature(cls).parameters.values()  # what Lightning fills in, and the others
            there = section(pages["keys"], f"`{key}`: `{name}`")
            assert arguments, first
            for argument in arguments:
                if argument.default is not inspect.Parameter.empty:
                    assert fault(pages, there, f"{key}.{argument.name}", argument.default) is None


def test_every_source_of_data_has_all_its_keys(pages: dict[str, str], reference: ModuleType) -> None:
    sources = [cls for cls in subclasses(ImageDataModule) if cls.__module__.startswith("lit_guide.")]
    concrete = [cls for cls in sources if not getattr(cls, "__abstractmethods__", None)]
    assert {cls.__name__ for cls in concrete} == set(reference.SOURCES)
    for cls in concrete:
        parser = Parser()
        parser.add_class_arguments(cls, "data")
        titles = re.findall(r"^### (.*)$", pages["keys"], re.MULTILINE)
        wanted = [title for title in titles if f"`{cls.__name__}`" in title]
        there = "".join(section(pages["keys"], title) for title in (*wanted, pages["all"]))
        assert [told for key, value in defaults(parser).items() if (told := fault(pages, there, key, value))] == []


def test_the_api_has_every_public_class_and_function(pages: dict[str, str]) -> None:
    import lit_guide

    for name in lit_guide.__all__:
        if callable(thing := getattr(lit_guide, name)):
            assert f" {thing.__module__}.{thing.__name__}\n" in section(pages["api"], name)
            assert len(str(inspect.getdoc(thing))) > 60


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_blocks_of_hand_written_pages_run(
    language: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_dir = Path("runs/digits/2026-01-31_12-00-00")
    shutil.copytree(trained, run_dir)
    for page in ("exit_codes", "results", "run_directory"):
        for example in GUIDE.parse(DOCS / language / "reference" / f"{page}.md").examples():
            example.evaluate()


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_of_the_run_directory_has_all_files(language: str, own_run: Path, run: Run) -> None:
    page = (DOCS / language / "reference" / "run_directory.md").read_text(encoding="utf-8")
    assert run("predict", "--run", own_run, "--accelerator", "cpu").code == 0
    files = {path.relative_to(own_run).as_posix() for path in own_run.rglob("*") if path.is_file()}
    assert {name for name in files if f"`{name}`" not in page} == set()
    rows = json.loads((own_run / "predictions.json").read_text())
    columns = [*(own_run / "predictions.csv").read_text().splitlines()[0].split(","), *rows[0]]
    logged = [name.replace("val/", "`val/`").replace("test/", "`test/`") for name in metrics_columns(own_run)]
    told_of = [name.partition("/`")[0] + "/`" if "/`" in name else f"`{name}`" for name in logged]
    assert [name for name in (*(f"`{name}`" for name in columns), *told_of) if name not in page] == []


def metrics_columns(run_dir: Path) -> list[str]:
    return (run_dir / "metrics.csv").read_text().splitlines()[0].split(",")


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_of_exit_codes_has_all(language: str) -> None:
    page = (DOCS / language / "reference" / "exit_codes.md").read_text(encoding="utf-8")
    assert re.findall(r"^`(\d+)`(?::|\uff1a)", page, re.MULTILINE) == ["0", "1", "2", "130", "143"]


# results.json


def read(run_dir: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((run_dir / "results.json").read_text())
    return results


def faults(results: dict[str, Any]) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(SCHEMA).iter_errors(results)]


def documented(schema: dict[str, Any], path: str) -> Iterator[str]:
    """The paths of all keys, such as device.name and exports[].path."""
    if "$ref" in schema:
        yield from documented(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]], path)
    for name, below in schema.get("properties", {}).items():
        yield (here := f"{path}.{name}".lstrip("."))
        yield from documented(below, here)
    if "items" in schema:
        for choice in schema["items"].get("oneOf", ()):
            yield from documented(choice, f"{path}[]")


def test_the_schema_is_one_and_describes_every_key() -> None:
    Draft202012Validator.check_schema(SCHEMA)

    def check(schema: Any) -> None:
        if isinstance(schema, dict):
            if schema.get("type") == "object":
                assert schema["additionalProperties"] is False
                assert all(below["description"] for below in schema["properties"].values())
            for value in schema.values():
                check(value)
        elif isinstance(schema, list):
            for value in schema:
                check(value)

    check(SCHEMA)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_key_of_the_schema_is_on_the_page(language: str) -> None:
    page = (DOCS / language / "reference" / "results.md").read_text(encoding="utf-8")
    keys = set(documented(SCHEMA, ""))
    assert {"exports[].sha256", "val.top5", "versions.torch"} <= keys
    assert sorted(key for key in keys if f"`{key}`" not in page) == []
    told_of = set(re.findall(r"`((?:versions|device|val|test|exports)(?:\[\])?\.\w+)`", page))
    assert told_of <= keys


def test_results_of_fit_fit_the_schema(trained: Path) -> None:
    results = read(trained)
    assert faults(results) == []
    assert set(results) == set(SCHEMA["properties"])


@pytest.mark.slow
def test_results_of_evaluations_and_exports_fit_the_schema(run: Run, trained: Path, own_run: Path) -> None:
    for command, sections in (("validate", {"versions", "device", "val"}), ("test", {"versions", "device", "test"})):
        assert run(command, "--run", trained, "--run_dir", command, "--accelerator", "cpu").code == 0
        assert set(read(Path(command))) == sections
        assert faults(read(Path(command))) == []
    script = ("--formats", "torchscript", "--export.torchscript.method", "script")
    assert run("export", "--run", trained, "--run_dir", "export", *script).code == 0
    assert set(read(Path("export"))) == {"exports"}
    assert faults(read(Path("export"))) == []
    assert run("test", "--run", own_run, "--accelerator", "cpu").code == 0
    assert faults(read(own_run)) == []


def test_results_of_a_failed_export_fit_the_schema(run: Run, own_run: Path) -> None:
    (own_run / "export/model.onnx").unlink()
    (own_run / "export/model.onnx").mkdir()  # nothing can be written under this name
    assert run("export", "--run", own_run, "--formats", "onnx").code == 1
    assert "error" in next(entry for entry in read(own_run)["exports"] if entry["format"] == "onnx")
    assert faults(read(own_run)) == []


def test_results_without_checkpoint_validation_and_test_fit_the_schema(run: Run) -> None:
    fit = ("fit", "--config", "configs/digits.yaml", "--accelerator", "cpu")
    empty = ("--data.val_fraction", "0", "--data.test_fraction", "0")
    assert run(*fit, "--trainer.fast_dev_run", "true", "--run_dir", "fast", *empty).code == 0
    assert read(Path("fast"))["val"] == read(Path("fast"))["test"] == {}
    assert faults(read(Path("fast"))) == []


def test_f54_results_that_name_a_file_of_the_confusion_matrix_fit_the_schema(trained: Path) -> None:
    results = read(trained)
    results["test"]["confusion_matrix"] = "confusion_test.csv"
    assert faults(results) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("extra", 1),
        ("device.extra", 1),
        ("val.extra", 1),
        ("versions.torch", None),
        ("epochs", -1),
        ("seconds", "7"),
        ("test.accuracy", 1.5),
        ("test.confusion_matrix", [[0.5]]),
        ("test.confusion_matrix", "../confusion_test.csv"),
        ("exports.0.sha256", "x"),
        ("exports.0.max_abs_diff", 0.1),
        ("exports.0.error", "and yet a file"),
        ("exports.1.format", "coreml"),
        ("exports.2.opset", 20),
    ],
)
def test_the_schema_refuses_what_lit_guide_never_writes(trained: Path, path: str, value: object) -> None:
    results = read(trained)
    place: Any = results
    *parts, last = path.split(".")
    for part in parts:
        place = place[int(part)] if part.isdigit() else place[part]
    place[last] = value
    assert faults(results)


@pytest.mark.parametrize("key", ["device", "steps", "images_per_second", "versions"])
def test_the_schema_wants_what_belongs_together(trained: Path, key: str) -> None:
    results = read(trained)
    del results[key]
    assert faults(results)
