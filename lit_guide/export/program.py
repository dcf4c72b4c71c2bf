"""torch.export: `export/model.pt2`."""

import io
import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lit_guide.export.callback import Export
from lit_guide.export.proof import METADATA, Run, metadata, prove, quiet


def export_program(model: LightningModule, path: Path, crop: float | None = None) -> dict[str, Any]:
    """Write a `torch.export` program; see `prove` for what is returned and raised."""

    def write(network: nn.Module, example_BCHW: Tensor, target: Path) -> None:
        with quiet():
            program = torch.export.export(network, (example_BCHW,), dynamic_shapes=({0: torch.export.Dim("N")},))
            buffer = io.BytesIO()
            torch.export.save(program, buffer, extra_files={METADATA: json.dumps(metadata(model, crop))})
        target.write_bytes(buffer.getvalue())

    def load(target: Path) -> Run:
        with quiet():
            loaded: Run = torch.export.load(str(target)).module()
        return loaded

    return prove("pt2", model, path, write, load)


class ExportProgram(Export):
    """`export/model.pt2`, for `torch.export.load`: the whole graph, ready to be compiled ahead of time.

    Args:
        enabled: whether to write it.
    """

    format, file = "pt2", "model.pt2"

    def write(self, model: LightningModule, path: Path, crop: float | None = None) -> dict[str, Any]:
        """Export and verify; returns the entry of results.json."""
        return export_program(model, path, crop)
