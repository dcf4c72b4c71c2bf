"""What the export formats share: the settings of each are flags, and each can be a callback of a Trainer of your own."""

from abc import abstractmethod
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lit_guide.engine.errors import UserError, warn
from lit_guide.engine.run import runs
from lit_guide.engine.run.checkpoint import load_model
from lit_guide.engine.train.checkpoints import best_checkpoint


class Export(Callback):
    """One format: `fit` and `export` call `run`; as a callback of a Trainer of your own it does so when training ends.

    A failure is recorded and told at the end; in `fit` and `export` the exit code is 1. The training before it is kept.

    Args:
        enabled: whether to write it.
    """

    format: str
    file: str

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    @abstractmethod
    def write(self, model: LightningModule, path: Path, crop: float | None = None) -> dict[str, Any]:
        """Export and verify; returns the entry of results.json."""

    def run(self, model: LightningModule, run_dir: Path, crop: float | None = None) -> dict[str, Any]:
        """Export `model` below a run directory and record it in results.json; returns the entry."""
        try:
            path = run_dir / "export" / self.file
            entry = {**self.write(model, path, crop), "path": f"export/{self.file}"}
        except UserError as error:
            entry = {"format": self.format, "error": str(error)}
        others = [e for e in runs.read_results(run_dir).get("exports", []) if e["format"] != self.format]
        runs.update_results(run_dir, {"exports": [*others, entry]})
        return entry

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export the best checkpoint; nothing where the run saves none (`fast_dev_run`)."""
        best = best_checkpoint(trainer)
        if self.enabled and trainer.is_global_zero and best is not None:
            model, checkpoint = load_model(best, type(pl_module))
            entry = self.run(model, Path(trainer.default_root_dir), checkpoint["crop"])
            if "error" in entry:
                warn(f"the {self.format} export failed: {entry['error']}")
