"""A model becomes a file, and the file proves itself. The callbacks are imported on first use: `--help` needs no torch."""

from importlib import import_module
from typing import Any

_HOME = {"Export": "callback", "ExportONNX": "onnx", "ExportProgram": "program", "ExportTorchScript": "torchscript"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
