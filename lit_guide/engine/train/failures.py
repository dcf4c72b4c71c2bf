"""What an exception of the trainer means: no memory, a full disk, a dead process; and what to type next."""

import errno
import re
import shutil
from pathlib import Path
from traceback import walk_tb

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback

from lit_guide.engine.errors import ConfigError, UserError, causes, first_line
from lit_guide.engine.machine import command
from lit_guide.engine.run import runs

PEERS = r"gloo|nccl|TCPStore|Dist\w*Error|pair closure|\d+ms for \w+ operation"  # gloo does not always name itself
GONE = "closed by peer|reset by peer|likely closed|broken pipe|remote process|timed? ?out|connection refused|was aborted"
MEMORY = "out of memory|(can't|cannot|unable to) allocate|not enough memory|ALLOC_FAILED|bad_alloc"
SHARED = "shared memory|Bus error|/dev/shm|</?torch_"
WORK = ("torch.optim", "lightning.pytorch.callbacks", "lightning.pytorch.loops")  # modules that work on what is restored
FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


def explain_failure(
    error: BaseException, trainer: Trainer, datamodule: LightningDataModule, begun: int | None = None
) -> UserError | None:
    """What an exception of the trainer means for the user: memory, disk, loader processes, peers, anomaly detection.

    `begun` is the step of the checkpoint that a run goes on from: until the next one what was restored may be at fault.

    Returns:
        The error to raise in its place, with what to type next; None where the exception says itself what happened.
    """
    if isinstance(error, UserError):
        return None
    chain = [*causes(error)]
    if told := [cause for cause in chain if isinstance(cause, UserError)]:
        return told[0]
    text = "\n".join(f"{type(cause).__name__}: {cause}" for cause in chain)
    codes = {cause.errno for cause in chain if isinstance(cause, OSError)}
    root, batch_size = Path(trainer.default_root_dir), int(getattr(datamodule, "batch_size", 1))
    go_on = f" {runs.how_to_go_on(root)}".rstrip()
    if "in loading state_dict" in text:
        return UserError(f"{trainer.ckpt_path}: its weights do not fit the network it names: {error}")
    if "more than 1 value per channel" in text:
        return ConfigError("BatchNorm can't train on one image whose maps have one pixel: use --data.batch_size 2 or more.")
    loader_died, workers = "DataLoader worker (pid" in text, getattr(datamodule, "loader_processes", 0)
    if re.search(SHARED, text) and (loader_died or re.search("No space left|insufficient|unable to", text)):
        there = f" (/dev/shm has {shutil.disk_usage('/dev/shm').total / 1e6:.0f} MB)" if Path("/dev/shm").is_dir() else ""
        return UserError(
            f"The loader processes ({workers}) ran out of shared memory{there}. Make it larger (docker run --shm-size=8g), "
            f"or use --data.num_workers {workers // 2}, or --data.batch_size {max(1, batch_size // 2)}.{go_on}"
        )
    if loader_died:
        killed_by = re.search(r"killed by signal: (?!Killed)([\w ]+)", text)
        why = killed_by[1] if killed_by else "most likely because memory ran out"
        return UserError(
            f"A loader process was killed: {why}. Use --data.num_workers {workers // 2} in place of {workers}.{go_on}"
        )
    if any(isinstance(cause, MemoryError | torch.OutOfMemoryError) for cause in chain) or re.search(MEMORY, text, re.IGNORECASE):
        return UserError(_out_of_memory(text, trainer, datamodule, batch_size))
    if trainer.world_size > 1 and re.search(PEERS, text, re.IGNORECASE) and re.search(GONE, text, re.IGNORECASE):
        return UserError(f"Another process of this run ended or can't be reached: its own message says why.{go_on}")
    if codes & FULL or "file write failed" in text:
        return UserError(f"No space is left on the disk of {root}: make room.{go_on}")
    if trainer.ckpt_path and (key := _restored(error, WORK if begun == trainer.global_step else ())):
        what = f"its state of {key} can't be gone on with ({type(error).__name__}: {first_line(error)})"
        return UserError(f"{trainer.ckpt_path}: {what}. Use another checkpoint, or train anew.")
    frames = [frame.f_locals.get("self") for frame, _ in walk_tb(chain[-1].__traceback__)]
    if theirs := [one for one in frames if isinstance(one, Callback) and type(one).__module__.startswith("lightning.")]:
        name, why = type(theirs[0]).__name__, first_line(chain[-1])
        if begun is not None:
            what = f"its state of callbacks can't be gone on with, or {name} does not fit the settings: {why}"
            return UserError(f"{trainer.ckpt_path}: {what}")
        kind = UserError if trainer.global_step else ConfigError
        return kind(f"{name} does not fit this model or these settings: {why}.")
    return None


def _restored(error: BaseException, work: tuple[str, ...]) -> str:
    """The part of a checkpoint that an exception came of, while it was restored, or in a module that works on it; else empty."""
    frames = [(frame.f_globals.get("__name__", ""), frame.f_code.co_name) for frame, _ in walk_tb(error.__traceback__)]
    parts = [name[8:] for module, name in frames if module.endswith("checkpoint_connector") and name.startswith("restore_")]
    makes = any(name == "configure_optimizers" for _, name in frames)  # of settings
    return parts[-1] if parts else frames[-1][0] if frames[-1][0].startswith(work) and not makes else ""


def _out_of_memory(text: str, trainer: Trainer, datamodule: LightningDataModule, batch_size: int) -> str:
    accumulated, root = trainer.accumulate_grad_batches, Path(trainer.default_root_dir)
    asked = re.search(r"allocate ([\d.]+) ?(bytes|[KMGT]i?B)", text)
    size = f"{int(asked[1]) / 2**30:.1f} GiB" if asked and asked[2] == "bytes" else f"{asked[1]} {asked[2]}" if asked else ""
    more = f", when {size} more were needed" if size else ""
    failed = f"Out of memory on {trainer.strategy.root_device} with batches of {batch_size} images{more}."
    half, step = f"--data.batch_size {batch_size // 2}", trainer.state.fn.value if trainer.state.fn else "fit"
    if batch_size == 1:
        tries = [] if str(trainer.precision).startswith(("16", "bf16")) else ["--precision bf16-mixed"]
        tries += [f"--data.image_size {getattr(datamodule, 'input_shape', (2,))[-1] // 2}", "a smaller --model.network"]
        return f"{failed} Try {', '.join(tries if step == 'fit' else [*tries[:-2], 'another device'])}."
    if step == "fit":
        now, then = batch_size * accumulated, batch_size // 2 * accumulated * 2
        as_now = "as now" if then == now else f"now {now}"
        with_half = f"{half} --trainer.accumulate_grad_batches {accumulated * 2}"
        return f"{failed} Half of it at a time needs less: {with_half} ({then} images a step on each device, {as_now})."
    scoring = step in ("validate", "test") and (root / runs.BEST).is_file()
    again = command(step, "--run", str(root)) + " " if scoring else ""
    return f"{failed} Use {again}{half}."
