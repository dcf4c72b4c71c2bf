"""Checkpoints from anywhere, within bounds: a small one costs little, and holds what is used of it, of the right kinds."""

import codecs
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import UninitializedParameter
from torch.utils.hooks import RemovableHandle

TIMES, SPARE = 16, 1 << 21  # what a file of tensors may come to in memory: so many times its size, with so much added to that
EXPANDING = ("hex", "uu", "base64", "quopri")  # encodings that make more bytes of bytes

KINDS: dict[str, Callable[[Any], bool]] = {
    "a count": lambda value: isinstance(value, int) and 0 <= value < 1 << 53,
    "a number": lambda value: isinstance(value, int | float),
    "a share of 1": lambda value: isinstance(value, int | float) and 0 < value <= 1,
    "a tensor": lambda value: isinstance(value, torch.Tensor),
    "a table of 3 columns": lambda value: isinstance(value, torch.Tensor) and value.ndim == 2 and value.shape[1] == 3,
}
COUNTS: dict[str, Any] = {"": "a count", "state_dict": None}  # a tree of them, beside what loaders keep
COUNTS["*"] = COUNTS
# What is used of a checkpoint: key -> its kind; "*" for the other keys of a mapping, [kind] for a list. null may stand for any.
HELD: dict[str, Any] = {
    **dict.fromkeys(("epoch", "global_step", "metrics_rows", "white_level", "least_side"), "a count"),
    **dict.fromkeys(("val_loss", "lr_factor"), "a number"),
    **{"state_dict": {"*": "a tensor"}, "train_sums_W3": "a table of 3 columns", "crop": "a share of 1", "callbacks": {"*": {}}},
    "hyper_parameters": {},  # of any model
    "optimizer_states": [{"state": {"*": {}}, "param_groups": [{}]}],
    **{"loops": COUNTS, "place": {"by_step": ["a count"], "*": "a count"}, "lr_schedulers": [{}]},
}


def misfit(value: Any, kind: Any = HELD, key: str = "") -> str:
    """What is of another kind than `HELD` says: the key, what stands there, and what should; empty where all fits."""
    inside: Any = ()
    if isinstance(kind, dict) and isinstance(value, dict):
        inside = ((one, kind.get(name, kind.get("*")), f"{key}.{name}".strip(".")) for name, one in value.items())
    elif isinstance(kind, list) and isinstance(value, list | tuple):
        inside = ((one, kind[0], f"{key}.{at}") for at, one in enumerate(value))
    elif kind is not None and value is not None and not key.endswith("_extra_state"):
        wanted = kind.get("", "a mapping") if isinstance(kind, dict) else "a list" if isinstance(kind, list) else kind
        return "" if KINDS.get(wanted, lambda _: False)(value) else f"its {key} is {str(value)[:80]}, not {wanted}"
    return next(filter(None, (misfit(*one) for one in inside)), "")


def load_tensors(path: Path, device: str = "cpu") -> Any:
    """What a file of torch.save holds; an UnpicklingError where it could run code, or comes to much more than its size."""
    with path.open("rb") as file:  # of which one byte is enough: a file with holes may be larger than memory
        if file.read(1) == b"\x80" and not zipfile.is_zipfile(path):
            raise pickle.UnpicklingError("Unsupported: a pickle")
    with zipfile.ZipFile(path) as packed:
        left, entries = path.stat().st_size, packed.infolist()
        fits = sum(entry.file_size for entry in entries) <= left and not any(entry.compress_type for entry in entries)
        for entry in entries:
            entry.CRC = None  # type: ignore[assignment]  # `CheckpointWriter` writes none
        codes = [packed.read(entry) for entry in entries if fits and entry.filename.lower().endswith(".pkl")]
    code = codes[0] if len(codes) == 1 else b"\nbytearray\n"  # of several, who knows which one torch takes
    names = [name for _, name, _ in pickletools.genops(code) if isinstance(name, str)] if b"\nencode\n" in code else []
    fits &= b"\nbytearray\n" not in code and not any(map(_expands, names))
    content = torch.load(path, map_location=device, weights_only=True) if fits else None
    left, inside = TIMES * (left + SPARE), [content]
    while inside and fits:
        one = inside.pop()
        more = [*one, *one.values()] if isinstance(one, dict) else one if isinstance(one, list | tuple | set) else ()
        left -= TIMES * len(more) + (len(one) if isinstance(one, str | bytes) else 0)
        left -= one.numel() * one.element_size() if isinstance(one, torch.Tensor) else 0
        fits = left > 0
        inside += more if fits else ()
    if not fits:
        raise pickle.UnpicklingError("Unsupported: it would come to much more than its size")
    return content


def _expands(name: str) -> bool:
    with suppress(Exception):  # most are no encoding
        return codecs.lookup(name).name in EXPANDING
    return False


def no_larger_than(weights: Mapping[str, Any]) -> RemovableHandle:
    """Refuse, by a ValueError, inside of `with`, to build a model much larger than these weights, before it takes its memory."""
    held = sum(weight.numel() for weight in weights.values() if isinstance(weight, torch.Tensor))
    left = 4 * (held + 1000 * len(weights) + SPARE)

    def count(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> None:
        nonlocal left
        left -= 1000 + (0 if isinstance(parameter, UninitializedParameter) else parameter.numel())
        if left < 0:
            raise ValueError(f"they ask for a network that is much larger than its {held:,} weights")

    return register_module_parameter_registration_hook(count)
