"""Writing checkpoints beside the training, so that a crash never leaves half a file."""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection

from lit_guide.engine.errors import UserError
from lit_guide.engine.run import runs
from lit_guide.engine.run.checkpoint import SUFFIX, read_checkpoint


class CheckpointWriter(TorchCheckpointIO):
    """Writes checkpoints in a thread of its own, one at a time; training goes on once the tensors are copied.

    A file gets its name when it is whole and on the disk. Until then the one before it keeps that name. `folder` is the run's
    `checkpoints/`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.folders = folder, {folder}  # its own, and all that checkpoints may be written to
        self._writing: Future[None] | None = None
        self._written: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Copy the checkpoint and begin to write it, once the one before is written; what `wait` raises is about that one."""
        self.wait()
        if not any(Path(path).parent.resolve().is_relative_to(folder.resolve()) for folder in self.folders):
            raise UserError(f"{path} lies outside of {self.folder}: it is not written. Its name, or a link, leads there.")
        self._written.add(Path(path).absolute())
        copied = apply_to_collection(checkpoint, torch.Tensor, lambda tensor: tensor.detach().to("cpu", copy=True))
        thread = ThreadPoolExecutor(1, "checkpoint-writer")
        self._writing = thread.submit(_write, copied, Path(path), self.folder)
        thread.shutdown(wait=False)  # it ends with the file

    def wait(self) -> None:
        """Wait until nothing is being written; raises a UserError that says why it could not be. Lightning ends a run with it."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    teardown = wait

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a file of the run's own `checkpoints/`, or one that was written here; nothing else that a checkpoint names."""
        file = Path(path).absolute()
        own = file in self._written or file.parent.resolve() == self.folder.resolve()
        if own and file.is_file() and not file.is_symlink():
            file.unlink()

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load one that may be on its way, or a .safetensors, as `read_checkpoint` does."""
        self.wait()
        return read_checkpoint(path)


def _write(checkpoint: dict[str, Any], path: Path, own: Path) -> None:
    torch.serialization.set_crc32_options(False)  # torch.load never looks at it, and it is most of the work of writing
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with runs.whole_file(path) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        if path.name == runs.BEST.name and path.parent.resolve() == own.resolve():  # those to share are of the model before
            path.with_suffix(SUFFIX).unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError after the first failed write
        cause = error if isinstance(error, OSError) else error.__context__
        reason = getattr(cause, "strerror", None) or str(error).splitlines()[0]
        kept = f" The {path.name} from before is whole." if path.is_file() else ""
        raise UserError(
            f"{path} can't be written: {reason}.{kept} Make room. {runs.how_to_go_on(path.parent.parent)}".rstrip()
        ) from None
