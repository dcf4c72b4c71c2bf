"""Each message that lit-guide can print has an entry in docs/*/troubleshooting.md, and no entry is of a message that is gone."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGES = {language: ROOT / "docs" / language / "troubleshooting.md" for language in ("en", "zh")}
# What messages are passed to, besides whatever is raised or asserted.
SINKS = {
    "UserError",
    "ConfigError",
    "warn",
    "misfit",
    "_raise_for",
    "fail",
    "Finding",
    "Verdict",
    "Driver",
    "Result",
    "exit",
    "print",
    "say",
}
# What makes messages that go another way: as values of a dictionary, over a pipe, by os.write.
MAKERS = {"_sample_problem", "_ending", "compared", "find_images", "list_folder", "_on_signal", "name_problem", "problems"}
FOLLOWED = {"str", "str | None", "list[str]"}  # a function that returns this may give a part of a message
NO_TEXT = {
    "get_close_matches",
    "removesuffix",
    "getattr",
    "startswith",
    "endswith",
    "glob",
    "partition",
    "split",
    "replace",
    "Parser",
}
LEFT_OUT = {ast.IfExp: "test", ast.Subscript: "slice", ast.Dict: "keys", ast.FormattedValue: "format_spec"}
SHORTEST = 8  # characters of a literal part that is looked for
# What needs no entry: words of success, what is typed next, helps, and parts of messages that have one.
NO_ENTRY = (
    "Everything is in|predict --run|test --run|--formats onnx|Written|Run directory|All findings are in|nothing must be mended",
    "worth a look|Put back where|the same command with --fix undo|batches a step|and predictions.json|cookiecutter",
    "train, check and export image classifiers|Use one of|and more|none at all|train on a GPU|not here",
    "pip install --upgrade|nvidia-smi; in Docker|CUDA build|decode every image|What is in this|usage|unset CUDA_VIS",
    "lists a command's options|import main; main|is ready|numbers are taken|head is its own too|head is new, for|which was of",
)
VARIABLE = "…"
CODE = re.compile(r"(`+) ?(.+?) ?\1(?!`)")
# An entry of the page: its messages, the first lines of a list item. A name before them, such as torch, says whose they are.
ENTRY = re.compile(r"^- ((?:\w+: )?)(`.+`(?: /\n  `.+`)*)\\$", re.MULTILINE)


class Message(NamedTuple):
    """A literal of the code, with … in place of its variable parts."""

    where: str
    text: str


class Module:
    """The messages of one file."""

    def __init__(self, path: Path) -> None:
        self.name = path.relative_to(ROOT).as_posix()
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.scope: dict[ast.AST, ast.AST] = {}  # node -> the outermost function that it is in, or the module
        self.given: dict[tuple[ast.AST, str], list[ast.AST]] = {}  # scope, name -> what the name is given there
        self._note(self.tree, self.tree)

    def _note(self, node: ast.AST, scope: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            inside = child if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and scope is self.tree else scope
            self.scope[child] = inside
            for name, value in given_by(child):
                self.given.setdefault((inside, name), []).append(value)
            self._note(child, inside)

    def functions(self) -> Iterator[ast.FunctionDef]:
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef))

    def messages(self) -> Iterator[Message]:
        for node in ast.walk(self.tree):
            makes: list[ast.AST | None] = []
            if isinstance(node, ast.Raise):
                makes = [node.exc]
            elif isinstance(node, ast.Assert):
                makes = [node.msg]
            elif isinstance(node, ast.Call) and called(node) in SINKS:
                makes = [*node.args, *(keyword.value for keyword in node.keywords)]
            elif isinstance(node, ast.FunctionDef) and node.name in MAKERS:
                makes = list(node.body[1:] if ast.get_docstring(node) else node.body)
            for made in makes:
                if made is not None:
                    yield from self.strings(made, set())

    def strings(self, node: ast.AST, seen: set[ast.AST]) -> Iterator[Message]:
        """The literals that may get into what an expression gives: directly, by a name, or by a function that gives text."""
        if node in seen:
            return
        seen.add(node)
        if text := template(node):
            yield Message(f"{self.name}:{getattr(node, 'lineno', 0)}", text)
        if isinstance(node, ast.Compare):
            return
        if isinstance(node, ast.Call):
            if called(node) in NO_TEXT or ast.unparse(node.func).startswith("re."):
                return
            for module, value in returned().get(called(node), ()):
                yield from module.strings(value, seen)
        if isinstance(node, ast.Name):
            values = self.given.get((self.scope[node], node.id)) or self.given.get((self.tree, node.id), [])
            for value in values:
                yield from self.strings(value, seen)
        for field, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                own = isinstance(node, ast.JoinedStr) and isinstance(child, ast.Constant)  # in the template already
                if isinstance(child, ast.AST) and field != LEFT_OUT.get(type(node)) and not own:
                    yield from self.strings(child, seen)


def given_by(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Name and value of what a statement assigns, adds, appends, or takes in turn."""
    targets: list[ast.expr] = []
    values: list[ast.expr | None] = []
    if isinstance(node, ast.Assign):
        targets, values = node.targets, [node.value]
    elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr):
        targets, values = [node.target], [node.value]
    elif isinstance(node, ast.For | ast.comprehension):
        targets, values = [node.target], [node.iter]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("append", "extend"):
        targets, values = [node.func.value], list(node.args)
    names = {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    yield from ((name, value) for name in names for value in values if value is not None)


def called(call: ast.Call) -> str:
    """The last part of the name of what is called: warn, append, find_run."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def template(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else VARIABLE for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


@cache
def modules() -> list[Module]:
    return [Module(path) for folder in ("lit_guide", "hooks") for path in sorted((ROOT / folder).rglob("*.py"))]


@cache
def returned() -> dict[str, list[tuple[Module, ast.AST]]]:
    """Name of a function -> what it returns, for those that return text."""
    found: dict[str, list[tuple[Module, ast.AST]]] = {}
    for module in modules():
        for function in module.functions():
            if function.returns is not None and ast.unparse(function.returns) in FOLLOWED:
                values = [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value is not None]
                found.setdefault(function.name, []).extend((module, value) for value in values)
    return found


@cache
def messages() -> list[Message]:
    found = dict.fromkeys(message for module in modules() for message in module.messages())
    return [message for message in found if wanted(message.text)]


@cache
def pieces() -> frozenset[str]:
    """The literal parts of all strings of the code."""
    return frozenset(part for module in modules() for node in ast.walk(module.tree) for part in parts(template(node)))


def parts(text: str) -> list[str]:
    """The literal parts between what varies: values, and all numbers, so that another limit breaks nothing."""
    plain = " ".join(text.replace("{}", VARIABLE).split())
    return [part for found in re.split(rf"{VARIABLE}|\d[\d.,]*", plain) if (part := found.strip(" .,:;()"))]


def wanted(text: str) -> str:
    """The part that the page must hold: the longest of the first sentence, or of all where that has none; empty if too short."""
    for piece in (re.split(r"(?<=[.?!]) |\n", text.strip())[0], text):
        prose = (part for part in parts(piece) if " " in part and "://" not in part)
        longest = max((part for part in prose if re.search(r"(^| )[a-z']+( |$)", part)), key=len, default="")
        if len(longest) >= SHORTEST:
            return longest
    return ""


def said(part: str) -> bool:
    """Whether a part of an entry is in a string of the code, or is the end of one with the beginning of another."""
    cuts = [at for at, letter in enumerate(part) if letter == " "]
    return any(part in piece for piece in pieces()) or any(
        any(piece.endswith(left) for piece in pieces()) and begins(part[at:])
        for at in cuts
        if (left := part[:at].strip(" .,:;()"))
    )


def begins(text: str) -> bool:
    """Whether a string of the code begins like this; perhaps after other strings that are in it whole."""
    text = text.strip(" .,:;()")
    whole = (piece for piece in pieces() if text.startswith(f"{piece} ") or text.startswith(f"{piece}, "))
    return any(piece.startswith(text) for piece in pieces()) or any(begins(text[len(piece) :]) for piece in whole)


def entries(language: str) -> list[tuple[str, list[str]]]:
    """Whose each entry is (empty: lit-guide's), and its messages."""
    found = ENTRY.findall(PAGES[language].read_text(encoding="utf-8"))
    return [(owner.strip(": "), [code for _, code in CODE.findall(codes)]) for owner, codes in found]


@pytest.mark.parametrize("language", PAGES)
def test_each_message_of_the_code_has_an_entry(language: str) -> None:
    held = {part for owner, codes in entries(language) if not owner for code in codes for part in parts(code)}
    needed = [message for message in messages() if not re.search("|".join(NO_ENTRY), wanted(message.text))]
    lacking = [message for message in needed if not any(wanted(message.text) in part for part in held)]
    told = "\n".join(f"{where}: {text!r}\n  looked for: {wanted(text)!r}" for where, text in lacking)
    assert not lacking, f"docs/{language}/troubleshooting.md says nothing about:\n{told}"


@pytest.mark.parametrize("language", PAGES)
def test_each_entry_is_a_message_of_the_code(language: str) -> None:
    gone = [
        f"{code!r}: no string of the code has {part!r}"
        for owner, codes in entries(language)
        if not owner
        for code in codes
        for part in parts(code)
        if not said(part)
    ]
    assert not gone, f"docs/{language}/troubleshooting.md has entries for what is not said:\n" + "\n".join(gone)


def test_both_languages_have_the_same_entries() -> None:
    assert entries("en") == entries("zh")


def test_what_newcomers_meet_is_there() -> None:
    page = [code for owner, codes in entries("en") if owner for code in codes]
    for words in (
        "CUDA out of memory",
        "Expected all tensors to be on the same device",
        "mat1 and mat2 shapes cannot be multiplied",
        "element 0 of tensors does not require grad",
        "grad can be implicitly created only for scalar outputs",
        "Trying to backward through the graph a second time",
        "is out of bounds",
        "expected scalar type",
        "and weight type",
        "size mismatch for",
        "Missing key(s) in state_dict",
        "DataLoader worker",
        "shared memory",
        "CUDA driver version is insufficient",
        "no kernel image",
        "Watchdog caught collective operation timeout",
        "address already in use",
        "torchvision::nms does not exist",
        "Weights only load failed",
    ):
        assert any(words in code for code in page), words


def test_a_message_that_is_made_of_parts_is_found_by_file_and_line() -> None:
    found = {message.text: message.where for message in messages()}
    joined, returned_elsewhere = found["Images of this batch: …."], found["Go on with: …"]
    assert re.fullmatch(r"lit_guide/parts/guards/callback\.py:\d+", joined)  # appended to a list that a UserError joins
    assert re.fullmatch(r"lit_guide/engine/run/runs\.py:\d+", returned_elsewhere)
    assert said("Try again with: lit-guide export --run")
    assert not said("Try once more with: lit-guide export --run")
    assert len(messages()) > 250
