"""What the benchmarks of whole trainings share: random images, and the trainer of `lit-guide fit` with a clock in it.

As a script it trains in a process of its own, or in several, as the flags of fit say, and writes how long a step took:

    python benchmarks/fits.py FIGURES.json SKIPPED_STEPS FLAGS_OF_FIT
"""

import contextlib
import gc
import io
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import record
from step_overhead import CLASSES, clock, step_ms

CORES = 2


def two_cores() -> None:
    """Let this process, and those that it starts, run on two cores only, where the system can do that."""
    record.keep_to(CORES)


def prepare() -> None:
    """Make this process ready to train in: two cores, a thread on each, and figures are all that is printed."""
    two_cores()
    import torch

    import lit_guide.engine.config.parser  # noqa: F401  # Lightning sets its logging up when it is imported

    record.silence_lightning()
    torch.set_num_threads(CORES)


def random_images(folder: Path, count: int, side: int) -> list[str]:
    """Write an .npz of `count` random images (3, side, side), uint8, all to train on; the flags of fit for it."""
    rng = np.random.default_rng(0)
    path = folder / f"images_{count}_{side}.npz"
    images_NCHW = rng.integers(0, 256, (count, 3, side, side), dtype=np.uint8)
    np.savez(path, images=images_NCHW, labels=np.arange(count) % CLASSES, split=np.full(count, "train"))
    return ["--data", "ArraysData", "--data.path", str(path)]


def build(options: Sequence[str], folder: Path) -> Any:
    """What `lit-guide fit` builds for these flags, on the CPU, one epoch, in a new run directory below `folder`."""
    from lit_guide.export.command import formats
    from lit_guide.fit import start

    # Exports come after the last step: without them a round is shorter, and the callbacks are there all the same.
    exports = [word for name in formats() for word in (f"--export.{name}.enabled", "false")]
    run_dir = tempfile.mkdtemp(dir=folder) + "/run"
    usual = ["--accelerator", "cpu", "--devices", "1", "--trainer.max_epochs", "1", *exports, "--run_dir", run_dir]
    return start("fit", [*usual, *options])


def train(cli: Any, data: Any) -> None:
    """Fit, in this process and those that the trainer starts; what it prints is dropped."""
    gc.collect()
    with contextlib.redirect_stdout(io.StringIO()):
        cli.trainer.fit(cli.model, datamodule=data)
    for process in getattr(cli.trainer.strategy.launcher, "procs", []):
        process.wait()  # only then do its CPU seconds count as our own


def syncs(cli: Any, data: Any, first: int, last: int) -> list[str]:
    """Where the host waited for a CUDA device in these training steps, counted from 0, as file:line; on a CPU nothing is seen."""
    import torch
    from lightning.pytorch.callbacks import Callback

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == first and module.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("warn")

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == last and module.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")

    cli.trainer.callbacks.append(Watch())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cli.trainer.fit(cli.model, data)
    steps = cli.trainer.global_step
    if steps <= last:
        raise SystemExit(f"the run had {steps} steps only: the syncs of step {last} could not be seen")
    return [f"{item.filename}:{item.lineno}" for item in told if "synchronizing CUDA operation" in str(item.message)]


def step(options: Sequence[str], skipped: int, folder: Path) -> float:
    """Mean milliseconds of a training step after the first few."""
    cli = build(options, folder)
    callback, starts = clock()
    cli.trainer.callbacks.append(callback)
    train(cli, cli.datamodule)
    return step_ms(starts, skipped)


def step_in_processes(options: Sequence[str], skipped: int, threads: int, count: int = 1) -> list[float]:
    """The same in a new process, or in `count` of them at the same time, of `threads` threads each."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{index}.json" for index in range(count)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        running = [
            subprocess.Popen(
                [sys.executable, __file__, str(file), str(skipped), *options],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for file in files
        ]
        for process in running:
            errors = process.communicate()[1]
            if process.returncode:
                raise SystemExit(f"fit ended with {process.returncode}:\n{errors}")
        return [float(json.loads(file.read_text(encoding="utf-8"))) for file in files]


def main() -> int:
    figures, skipped, *options = sys.argv[1:]
    import lit_guide.engine.config.parser  # noqa: F401  # as in `prepare`

    record.silence_lightning()
    with tempfile.TemporaryDirectory() as folder:
        milliseconds = step(options, int(skipped), Path(folder))
    if os.environ.get("LOCAL_RANK", "0") == "0":
        Path(figures).write_text(json.dumps(milliseconds), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
