"""Export callbacks: at the end of `fit`, the best checkpoint becomes files that other programs can run.

Each is switched off by one flag, such as `--export.onnx.enabled false`.
`lit-guide export` does the same later.
"""

from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lit_guide.engine.errors import UserError
from lit_guide.engine.run import runs
from lit_guide.engine.run.checkpoint import load_classifier
from lit_guide.engine.train.checkpoints import best_checkpoint
from lit_guide.export.proof import export_onnx, export_program, export_torchscript
from lit_guide.model import LitClassifier


class Export(Callback):
    """What the three formats share: when to export, and where the result is recorded.

    A failure is recorded and told after the test, with exit code 1: the training that came before it is kept.
    """

    format: str
    file: str

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    @abstractmethod
    def write(self, model: LitClassifier, path: Path) -> dict[str, Any]:
        """Export and verify; returns the entry of results.json."""

    def run(self, model: LitClassifier, run_dir: Path) -> dict[str, Any]:
        """Export `model` below a run directory and record it in results.json; returns the entry."""
        try:
            path = run_dir / "export" / self.file
            entry = {**self.write(model, path), "path": f"export/{self.file}"}
        except UserError as error:
            entry = {"format": self.format, "error": str(error)}
        others = [e for e in runs.read_results(run_dir).get("exports", []) if e["format"] != self.format]
        runs.update_results(run_dir, {"exports": [*others, entry]})
        return entry

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export the best checkpoint. A run of several processes does it later, when none of them waits for this one."""
        if trainer.world_size == 1:
            self.export_best(trainer)

    def export_best(self, trainer: Trainer) -> None:
        """Export the best checkpoint of this run; nothing where the run saves none (`fast_dev_run`)."""
        best = best_checkpoint(trainer)
        if self.enabled and trainer.is_global_zero and best is not None:
            self.run(load_classifier(best), Path(trainer.default_root_dir))


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

    def write(self, model: LitClassifier, path: Path) -> dict[str, Any]:
        """Export and verify; returns the entry of results.json."""
        return export_torchscript(model, path, self.method)


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

    def write(self, model: LitClassifier, path: Path) -> dict[str, Any]:
        """Export and verify; returns the entry of results.json."""
        return export_onnx(model, path, self.opset, self.input_name, self.output_name)


class ExportProgram(Export):
    """`export/model.pt2`, for `torch.export.load`: the whole graph, ready to be compiled ahead of time.

    Args:
        enabled: whether to write it.
    """

    format, file = "pt2", "model.pt2"

    def write(self, model: LitClassifier, path: Path) -> dict[str, Any]:
        """Export and verify; returns the entry of results.json."""
        return export_program(model, path)


# Key below `export` in a configuration, name in results.json and of `--formats` -> callback.
EXPORTS: dict[str, type[Export]] = {"torchscript": ExportTorchScript, "onnx": ExportONNX, "pt2": ExportProgram}
