"""TorchScript: `export/model.torchscript.pt`."""

import io
import json
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lit_guide.export.callback import Export
from lit_guide.export.proof import METADATA, Run, metadata, prove


def export_torchscript(
    model: LightningModule, path: Path, method: Literal["trace", "script"] = "trace", crop: float | None = None
) -> dict[str, Any]:
    """Write a TorchScript archive; see `prove` for what is returned and raised."""

    def write(network: nn.Module, example_BCHW: Tensor, target: Path) -> None:
        with warnings.catch_warnings():
            # torch 2.9 and later announce TorchScript's retirement; users still deploy it, and this is the one place.
            warnings.filterwarnings("ignore", "`torch.jit")
            jit: Any = torch.jit  # untyped
            warnings.simplefilter("ignore", DeprecationWarning)  # it looks at every property, of metrics too
            warnings.simplefilter("ignore", jit.TracerWarning)  # whether the trace is right is what `parity` finds
            scripted = jit.trace(network, example_BCHW) if method == "trace" else jit.script(network)
            # Through memory: torch's own writer ends the process where the disk is full.
            buffer = io.BytesIO()
            jit.save(scripted, buffer, _extra_files={METADATA: json.dumps(metadata(model, crop))})
        target.write_bytes(buffer.getvalue())

    def load(target: Path) -> Run:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit")
            jit: Any = torch.jit
            loaded: Run = jit.load(str(target), map_location="cpu")
        return loaded

    return {**prove("torchscript", model, path, write, load), "method": method}


class ExportTorchScript(Export):
    """`export/model.torchscript.pt`, for `torch.jit.load` in Python and C++.

    Args:
        enabled: whether to write it.
        method: trace follows one example through the network; script compiles its code and keeps control flow.
    """

    format, file = "torchscript", "model.torchscript.pt"

    def __init__(self, enabled: bool = True, method: Literal["trace", "script"] = "trace") -> None:
        super().__init__(enabled)
        self.method: Literal["trace", "script"] = method

    def write(self, model: LightningModule, path: Path, crop: float | None = None) -> dict[str, Any]:
        """Export and verify; returns the entry of results.json."""
        return export_torchscript(model, path, self.method, crop)
