"""Write the pages of the reference that can be read off the code: every command, every key, every public class."""
# ruff: noqa: RUF001  # Chinese punctuation

import contextlib
import functools
import inspect
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import lit_guide
from lit_guide import cli
from lit_guide.parts.doctor.command import HELP as DOCTOR_HELP
from lit_guide.parts.inspect.command import HELP as DATA_HELP

WORDS = {
    "en": {
        "commands": "Commands",
        "keys": "Configuration keys",
        "api": "Python API",
        "own": "Besides all [configuration keys](keys.md):",
        "short": "`--accelerator`, `--devices`, `--strategy` and `--precision` stand for `--trainer.accelerator` and so on.",
        "commands_note": "Made from the program's own help, which `lit-guide COMMAND --help` prints.",
        "keys_note": "Made from the program's own help. Each key is a flag, and has a place in a YAML file: "
        "`--model.network resnet18` is `model:` and below it, indented, `network: resnet18`. "
        "`fit`, `validate`, `test`, `predict`, `data check` and `data show` take all of them. What is given later wins. "
        "A key whose value is a class takes the name of the class, and the arguments of that class as keys below it: as flags "
        "`--data DigitsData --data.batch_size 32`, in YAML `class_path: lit_guide.DigitsData` and, below `init_args:`, "
        "`batch_size: 32`. `--KEY.help CLASS` lists them.",
        "api_note": "Made from the docstrings. All names can be imported from `lit_guide`.",
        "comma": ", ",
        "default": "default",
        "required": "required",
        "classes": "Classes:",
        "alias": "also",
        "general": "General",
        "all": "Of all data",
        "photos": "Of all photos: {}",
        "of": "Of {}",
    },
    "zh": {
        "commands": "命令",
        "keys": "配置项",
        "api": "Python API",
        "own": "除全部[配置项](keys.md)之外：",
        "short": "`--accelerator`、`--devices`、`--strategy` 和 `--precision` 是 `--trainer.accelerator` 等配置项的简写。",
        "commands_note": "本页由程序自带的帮助生成，因此说明文字为英文；`lit-guide COMMAND --help` 打印的就是这些内容。",
        "keys_note": "本页由程序自带的帮助生成，因此说明文字为英文。每个配置项既是命令行参数，也可以写进 YAML 文件："
        "`--model.network resnet18` 等同于在 `model:` 下面缩进写 `network: resnet18`。"
        "`fit`、`validate`、`test`、`predict`、`data check` 和 `data show` 都接受全部配置项。后给出的值覆盖先给出的值。"
        "如果配置项的值是一个类，就写类名，这个类的参数是它下一级的配置项：命令行上写 `--data DigitsData --data.batch_size 32`，"
        "YAML 中写 `class_path: lit_guide.DigitsData`，并在 `init_args:` 下面写 `batch_size: 32`。"
        "用 `--KEY.help CLASS` 可以列出这些参数。",
        "api_note": "本页由代码中的文档字符串生成，因此为英文。所有名称都可以从 `lit_guide` 导入。",
        "comma": "，",
        "default": "默认值",
        "required": "必填",
        "classes": "可用的类：",
        "alias": "也可写作",
        "general": "通用",
        "all": "所有数据源共有",
        "photos": "所有照片数据源共有：{}",
        "of": "{} 的配置项",
    },
}
TRAINING = ("fit", "validate", "test", "predict", "data check", "data show")  # these take the configuration
PHOTOS = ("FolderData", "TableData", "TorchvisionData")
SOURCES = ("DigitsData", "ArraysData", *PHOTOS)
CLASSES = {"model.optimizer": ("Adam", "AdamW", "SGD"), "model.scheduler": ("WarmupCosine",)}  # any other: --KEY.help CLASS

ENTRY = re.compile(r"^  (-\S.*?)(?:\n {10,}|  +|$)(.*)$", re.MULTILINE)
FACTS = re.compile(r" ?\((required, )?type: (.+?)(?:, default: (.+?))?(?:, known subclasses: (.+?))?\)$")


class Option(NamedTuple):
    """A flag, as the help tells of it."""

    flags: tuple[str, ...]
    value: str  # what stands for its value
    text: str
    type: str
    default: str
    required: bool
    classes: tuple[str, ...]


@functools.cache
def shown(*args: str) -> str:
    """What a command prints, a paragraph to a line."""
    out = io.StringIO()
    with patch.dict(os.environ, COLUMNS="100000"), contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        cli.main([*args])
    return out.getvalue().rstrip()


def options(text: str) -> Iterator[Option]:
    """The options in a part of a help text."""
    for names, about in ENTRY.findall(text):
        names = re.sub(r"[^ -~]", "", names)  # jsonargparse puts a character that can't be seen before [=flags]
        pairs = [name.partition(" ") for name in re.split(r", (?=-)", names)]
        flags = tuple(flag for flag, _, _ in pairs)
        if flags[0].endswith(".help"):
            continue
        facts = FACTS.search(about)
        required, kind, default, classes = facts.groups() if facts else (None, "", None, None)
        short = tuple(dict.fromkeys(name.rpartition(".")[2] for name in (classes or "").split(", ") if name))
        yield Option(flags, pairs[-1][2], FACTS.sub("", about), kind, default or "", bool(required), short)


def groups(text: str) -> dict[str, list[Option]]:
    """Heading of a part of the help -> its options."""
    parts = re.split(r"^(\S.*):$", text, flags=re.MULTILINE)
    found = {title: list(options(body)) for title, body in zip(parts[1::2], parts[2::2], strict=True)}
    return {title: listed for title, listed in found.items() if listed}


def plain(text: str) -> str:
    """Text of the help as Markdown: what would be markup is escaped, outside of code."""
    pieces = re.split(r"(`+[^`]+`+)", re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text))  # roles of reStructuredText
    return "".join(piece if piece.startswith("`") else re.sub(r"([\\<>*_\[\]#~|])", r"\\\1", piece) for piece in pieces)


def entry(option: Option, words: dict[str, str]) -> str:
    """An option as an item of a definition list."""
    first, *others = (f"`{flag}`" for flag in option.flags if not flag.endswith("+"))
    term = f"{first} {words['alias']} {words['comma'].join(others)}" if others else first
    facts = [f"`{option.type}`"] if option.type else [f"`{option.value}`"] if option.value else []
    facts += [words["required"]] if option.required else []
    is_told = option.default == "null" and "Default: ``" in option.text
    facts += [f"{words['default']} `{option.default}`"] if option.default and not is_told else []
    lines = [words["comma"].join(facts), plain(option.text)]
    lines += [f"{words['classes']} {', '.join(f'`{name}`' for name in option.classes)}"] if option.classes else []
    return f"{term}\n: " + "\n\n  ".join(line for line in lines if line) + "\n"


def entries(listed: list[Option], words: dict[str, str]) -> list[str]:
    return [entry(option, words) for option in listed]


def block(text: str) -> str:
    return f"```text\n{text}\n```\n"


def helps() -> dict[str, str]:
    return {name: shown(*name.split(), "--help") for name in (*TRAINING, "export")}


def common(texts: dict[str, str]) -> dict[str, list[Option]]:
    """The options that all commands share, by the heading that they stand under."""
    first, *others = ([option for listed in groups(texts[name]).values() for option in listed] for name in TRAINING)
    shared = {option.flags for option in first}.intersection(*({option.flags for option in listed} for listed in others))
    return {title: [o for o in listed if o.flags in shared] for title, listed in groups(texts["fit"]).items()}


def commands(words: dict[str, str], texts: dict[str, str]) -> str:
    """The page of all commands, each with the options that it alone has."""
    parts = [f"# {words['commands']}\n", f"{words['commands_note']}\n", block(shown("--help"))]
    shared = {option.flags for listed in common(texts).values() for option in listed}
    for name, text in texts.items():
        usage, about = text.split("\n\n")[:2]
        if name == "data check":
            parts += ["## lit-guide data\n", block(DATA_HELP.rstrip())]
        level = "###" if name.startswith("data") else "##"
        sentence = plain(about.partition(". ")[0].rstrip("."))
        parts += [f"{level} lit-guide {name}\n", block(usage.removeprefix("usage: ")), f"{sentence}.\n"]
        own = [option for listed in groups(text).values() for option in listed if name == "export" or option.flags not in shared]
        parts += [f"{words['own']}\n"] if name != "export" else []
        parts += entries(own, words)
    parts += ["## lit-guide doctor\n", block(DOCTOR_HELP.rstrip())]
    return "\n".join(parts)


def keys(words: dict[str, str], texts: dict[str, str]) -> str:
    """The page of all configuration keys."""
    parts = [f"# {words['keys']}\n", f"{words['keys_note']}\n", f"{words['short']}\n"]
    for title, listed in common(texts).items():
        prefix = listed[0].flags[0].removeprefix("--")
        if title == "options":
            parts.append(f"## {words['general']}\n")
        else:
            parts.append(f"## `{prefix}`\n\n{plain(title)}.\n")
        parts += entries(listed, words)
        if prefix == "data":
            parts += sources(words)
        for key, names in CLASSES.items():
            if key.startswith(f"{prefix}."):
                for name in names:
                    about, brought = keys_of(key, name)
                    parts += [f"### `{key}`: `{name}`\n", f"{plain(about)}.\n", *entries(brought, words)]
    return "\n".join(parts)


def sources(words: dict[str, str]) -> list[str]:
    """The keys of each source of data; those that all have, and all sources of photos, once."""
    found = {name: keys_of("data", name) for name in SOURCES}
    every, photos = ([o for o in found[names[0]][1] if all(o in found[n][1] for n in names)] for names in (SOURCES, PHOTOS))
    photos = [option for option in photos if option not in every]
    parts = [f"### {words['all']}\n", *entries(every, words)]
    parts += [f"### {words['photos'].format(', '.join(f'`{name}`' for name in PHOTOS))}\n", *entries(photos, words)]
    for name, (about, listed) in found.items():
        own = [option for option in listed if option not in every and (option not in photos or name not in PHOTOS)]
        parts += [f"### {words['of'].format(f'`{name}`')}\n", f"{plain(about)}.\n", *entries(own, words)]
    return parts


def keys_of(key: str, name: str) -> tuple[str, list[Option]]:
    """The keys that a class brings with it, and what it is."""
    ((about, listed),) = groups(shown("fit", f"--{key}.help", name).partition("\n\nHelp for")[2]).items()
    return about, listed


def api(words: dict[str, str]) -> str:
    """The page of all public names, from their docstrings."""
    parts = [f"# {words['api']}\n", f"{words['api_note']}\n"]
    for name in lit_guide.__all__:
        thing = getattr(lit_guide, name)
        if callable(thing):
            kind = "autoclass" if inspect.isclass(thing) else "autofunction"
            members = "   :members:\n" if inspect.isclass(thing) else ""
            parts.append(f"## {name}\n\n```{{eval-rst}}\n.. {kind}:: {thing.__module__}.{thing.__name__}\n{members}```\n")
    return "\n".join(parts)


def write(folder: Path) -> None:
    """Write the pages below `folder/reference`, where they are not as they should be yet."""
    words, texts = WORDS[folder.name], helps()
    pages = {"commands": commands(words, texts), "keys": keys(words, texts), "api": api(words)}
    for name, text in pages.items():
        path = folder / "reference" / f"{name}.md"
        path.parent.mkdir(exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
