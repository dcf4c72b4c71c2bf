"""`checkpoints/best.ckpt` and `checkpoints/last.ckpt`: always these two, under plain names."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class RunCheckpoint(ModelCheckpoint):
    """ModelCheckpoint with one file under one name, in the directory of a run that may have been moved.

    Args:
        run_dir: the run directory.
        name: best or last.
        continued: whether this goes on with that run; a new run that starts from a checkpoint has a best of its own.
        kwargs: further arguments of ModelCheckpoint.
    """

    def __init__(self, run_dir: Path, name: str, continued: bool = False, **kwargs: Any) -> None:
        super().__init__(run_dir / "checkpoints", filename=name, enable_version_counter=False, **kwargs)
        self.continued = continued

    def on_train_batch_end(self, *args: Any) -> None:
        """Nothing: these are saved when an epoch ends, and asking after each batch costs time."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score; Lightning would drop it where the directory has another path than before."""
        if self.continued:
            old, new = str(state_dict["dirpath"]), str(self.dirpath)
            paths = ("dirpath", "best_model_path", "kth_best_model_path", "last_model_path")
            moved = {key: str(state_dict[key]).replace(old, new) for key in paths}
            best = {path.replace(old, new): score for path, score in state_dict["best_k_models"].items()}
            super().load_state_dict({**state_dict, **moved, "best_k_models": best})


def best_checkpoint(trainer: Trainer) -> Path | None:
    """The best checkpoint of this run; None where none was saved (`fast_dev_run`)."""
    saving = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    ours = [callback for callback in saving if isinstance(callback, RunCheckpoint) and callback.filename == "best"]
    paths = [Path(callback.best_model_path) for callback in ours or saving if callback.best_model_path]
    return paths[0] if paths and paths[0].is_file() else None
