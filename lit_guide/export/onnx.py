"""ONNX: `export/model.onnx`."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lit_guide.export.callback import Export
from lit_guide.export.proof import Run, metadata, prove, quiet


def export_onnx(
    model: LightningModule,
    path: Path,
    opset: int = 20,
    input_name: str = "input",
    output_name: str = "output",
    crop: float | None = None,
) -> dict[str, Any]:
    """Write one self-contained ONNX file, checked in ONNX Runtime; see `prove` for what is returned and raised."""
    import onnx
    import onnxruntime

    def write(network: nn.Module, example_BCHW: Tensor, target: Path) -> None:
        with quiet():
            program = torch.onnx.export(
                network,
                (example_BCHW,),
                dynamo=True,
                opset_version=opset,
                input_names=[input_name],
                output_names=[output_name],
                dynamic_shapes=({0: torch.export.Dim("N")},),
                verbose=False,
            )
        assert program is not None
        proto = program.model_proto
        onnx.helper.set_model_props(proto, {key: json.dumps(value) for key, value in metadata(model, crop).items()})
        written = {entry.domain: entry.version for entry in proto.opset_import}.get("")
        if written != opset:
            raise ValueError(f"opset {opset} can't be had for this network, only {written}")
        target.write_bytes(proto.SerializeToString())

    def load(target: Path) -> Run:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(target), options, providers=["CPUExecutionProvider"])

        def run(image_BCHW: Tensor) -> Tensor:
            (logits_BK,) = session.run([output_name], {input_name: image_BCHW.numpy()})
            return torch.from_numpy(logits_BK)

        return run

    entry = prove("onnx", model, path, write, load)
    return {**entry, "opset": opset, "input": input_name, "output": output_name}


class ExportONNX(Export):
    """`export/model.onnx`, for ONNX Runtime and every framework that reads ONNX.

    Args:
        enabled: whether to write it.
        opset: ONNX operator set; 20 is read by ONNX Runtime 1.17 and later.
        input_name: name of the input tensor.
        output_name: name of the output tensor.
    """

    format, file = "onnx", "model.onnx"

    def __init__(self, enabled: bool = True, opset: int = 20, input_name: str = "input", output_name: str = "output") -> None:
        super().__init__(enabled)
        self.opset, self.input_name, self.output_name = opset, input_name, output_name

    def write(self, model: LightningModule, path: Path, crop: float | None = None) -> dict[str, Any]:
        """Export and verify; returns the entry of results.json."""
        return export_onnx(model, path, self.opset, self.input_name, self.output_name, crop)
