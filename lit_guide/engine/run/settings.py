"""YAML from anywhere, within bounds: what is small costs little."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from lit_guide.engine.errors import ConfigError

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
LONGEST, MOST, DEEPEST, PLAIN = 1 << 20, 50_000, 50, 4096  # of YAML: characters, values with all aliases, levels, digits


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a YAML file; a ConfigError where it has none, or is small and would come to much."""
    try:
        with path.open(encoding="utf-8") as file:
            settings = load_yaml(file.read(LONGEST + 1))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "").split())
        raise ConfigError(f"{path} is no valid YAML: {reason}") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} holds no settings.")
    return settings


def load_yaml(text: str, load: Callable[[str], Any] = lambda text: yaml.load(text, LOADER)) -> Any:
    """What a text of YAML says; a YAMLError where it is none, or small and would come to much."""
    sizes: dict[Any, int] = {}
    begun: list[Any] = []  # of each level, its anchor and the values before it
    count = len(text) // LONGEST * MOST
    event: Any
    try:
        for event in yaml.parse(text, LOADER):
            anchor, value = getattr(event, "anchor", None), getattr(event, "value", "")
            size = sizes.get(anchor, 1) if isinstance(event, yaml.AliasEvent) else 1 + len(value) // 20
            count += size
            if isinstance(event, yaml.CollectionStartEvent):
                begun.append((anchor, count))
                size = MOST  # until it ends: an alias in it has no end
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, before = begun.pop()
                size = count - before
            sizes[anchor] = size
            if count > MOST or len(begun) > DEEPEST or (len(value) > PLAIN and event.implicit[0]):
                raise yaml.YAMLError(f"more than {MOST:,} values with all aliases, {DEEPEST} levels, or {PLAIN:,} digits")
        return load(text)
    except Exception as error:  # also a date that is none, a number of thousands of digits
        raise yaml.YAMLError(str(error) or type(error).__name__) from None
