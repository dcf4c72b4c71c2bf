"""Training on a CPU bears other programs on its cores, and a quota, and loses nothing where there are none.

Claims, for the digits (CNN, batch 64) and ResNet-18 at 96 px (batch 32, random images in memory), each the smaller of the two
networks' medians of 3 rounds (n = 3; alone 5), on two cores:

(a) alone, (b) beside two busy loops, (c) under a quota of half of the cores: training is >= 0.5 times as fast as the best of
    three settings found by hand: torch's defaults, OMP_NUM_THREADS=1, OMP_WAIT_POLICY=passive.
(d) alone, it is >= 0.97 times as fast as with torch's defaults.

- ours: the trainer of `lit-guide fit` with all of its callbacks, nothing set.
- default, one, passive: the same without the callback `Threads`, with these variables of the environment.

A round trains each side once, in a process of its own, for some seconds of which the first two don't count; each round starts
with another side. The quota is a control group's where one can be made (as root), else the process is stopped and continued in
turns of 50 ms, which takes the same share of the cores. Training ends by the clock, so a setting that collapses costs little.

    python benchmarks/busy_cores.py [--quick]
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fits
import record
from step_overhead import clock

ROUNDS = {"alone": 5, "busy": 3, "quota": 3}  # alone the claim is of 3%, and one training is 3% off another
LIMIT, LIMIT_ALONE = 0.5, 0.97
WARM_S, SECONDS = 2.0, {"digits": 8, "resnet18": 12}  # the second counts the first
SIDES: dict[str, dict[str, str]] = {
    "ours": {},
    "default": {},
    "one": {"OMP_NUM_THREADS": "1"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
}
SITUATIONS = ("alone", "busy", "quota")
LOOP = (sys.executable, "-c", "while True: pass")
TURN_S = 0.05


def options(folder: Path, quick: bool) -> dict[str, list[str]]:
    """Network -> the flags of fit."""
    usual = ["--trainer.max_epochs", "1000", "--trainer.limit_val_batches", "0", "--trainer.enable_checkpointing", "false"]
    usual += ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    images = [
        *fits.random_images(folder, 32 * (4 if quick else 40), 96),
        "--model.network",
        "resnet18",
        "--data.batch_size",
        "32",
    ]
    return {"digits": [*usual, "--data", "DigitsData", "--data.batch_size", "64"], "resnet18": [*usual, *images]}


def worker(figures: str, side: str, seconds: str, flags: Sequence[str]) -> int:
    """In a process of its own: train for some seconds, and write the steps a second."""
    import lit_guide.engine.config.parser  # noqa: F401  # Lightning sets its logging up when it is imported

    record.silence_lightning()
    with tempfile.TemporaryDirectory() as folder:
        cli = fits.build([*flags, "--trainer.max_time", f"00:00:00:{int(seconds):02}"], Path(folder))
        if side != "ours":
            cli.trainer.callbacks[:] = [one for one in cli.trainer.callbacks if type(one).__name__ != "Threads"]
        callback, starts = clock()
        cli.trainer.callbacks.append(callback)
        fits.train(cli, cli.datamodule)
    counted = [at for at in starts if at >= starts[0] + WARM_S]
    counted = counted if len(counted) > 1 else starts
    # One that made a single step has made it in all of its time, or in more.
    rate = (len(counted) - 1) / (counted[-1] - counted[0]) if len(counted) > 1 else 1 / float(seconds)
    Path(figures).write_text(json.dumps(rate), encoding="utf-8")
    return 0


@contextmanager
def group() -> Iterator[Path | None]:
    """A control group with a quota of half of the cores, of either version; None where none can be made."""
    half, name = int(100_000 * fits.CORES / 2), f"busy-cores-{os.getpid()}"
    for path, file, text in (
        (Path("/sys/fs/cgroup/cpu") / name, "cpu.cfs_quota_us", f"{half}"),
        (Path("/sys/fs/cgroup") / name, "cpu.max", f"{half} 100000"),
    ):
        if not path.parent.is_dir():
            continue
        with suppress(OSError):
            path.mkdir()
            try:
                (path / file).write_text(text)
            except OSError:
                path.rmdir()
                continue
            try:
                yield path
            finally:
                path.rmdir()
            return
    yield None


@contextmanager
def in_turns(pid: int) -> Iterator[None]:
    """Stop a process half of the time."""
    end = threading.Event()

    def turns() -> None:
        with suppress(ProcessLookupError):
            while not end.is_set():
                for number in (signal.SIGSTOP, signal.SIGCONT):
                    os.kill(pid, number)
                    time.sleep(TURN_S)

    thread = threading.Thread(target=turns)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


@contextmanager
def situation(name: str, limit: Path | None) -> Iterator[list[str]]:
    """Make it busy around; the words before a command that put it into the control group."""
    busy = [subprocess.Popen(LOOP) for _ in range(2 if name == "busy" else 0)]
    enter = ["sh", "-c", f'echo $$ > {limit}/cgroup.procs && exec "$@"', "sh"]
    try:
        yield enter if name == "quota" and limit else []
    finally:
        for process in busy:
            process.kill()
            process.wait()


def rate(side: str, where: str, limit: Path | None, seconds: int, flags: Sequence[str]) -> float:
    """Steps a second of one side."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_", "MKL_"))}
    with tempfile.TemporaryDirectory() as folder, situation(where, limit) as enter:
        file = Path(folder) / "figures.json"
        command = [*enter, sys.executable, __file__, "--worker", str(file), side, str(seconds), *flags]
        process = subprocess.Popen(command, env=kept | SIDES[side], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if where == "quota" and limit is None:
            with in_turns(process.pid):
                errors = process.communicate()[1]
        else:
            errors = process.communicate()[1]
        if process.returncode:
            raise SystemExit(f"fit ended with {process.returncode}:\n{errors}")
        return float(json.loads(file.read_text(encoding="utf-8")))


def compare(index: int, where: str, limit: Path | None, seconds: int, flags: Sequence[str]) -> dict[str, Any]:
    """Steps a second of all sides, and what they come to; each round starts with another side."""
    names = list(SIDES)
    first = index % len(names)
    rates = {name: rate(name, where, limit, seconds, flags) for name in names[first:] + names[:first]}
    best = max(rates[name] for name in names if name != "ours")
    figures = {f"{name}_steps_per_s": round(rates[name], 4) for name in names}
    return {**figures, "of_best": round(rates["ours"] / best, 4), "of_default": round(rates["ours"] / rates["default"], 4)}


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        figures, side, seconds, *flags = sys.argv[2:]
        return worker(figures, side, seconds, flags)
    given = record.arguments(__doc__).parse_args()
    quick, wait = given.quick, None if given.quick else given.wait
    fits.two_cores()
    rounds: list[dict[str, Any]] = []
    ratios: dict[str, list[float]] = {}
    middle: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, group() as limit:
        for network, flags in options(Path(name), quick).items():
            seconds = 4 if quick else SECONDS[network]
            for where in SITUATIONS:
                found = record.repeat(
                    1 if quick else ROUNDS[where],
                    lambda index, where=where, seconds=seconds, flags=flags: compare(index, where, limit, seconds, flags),
                    wait,
                )
                counted = record.undisturbed(found)
                middle[f"{network} {where}"] = record.medians(found)
                ratios.setdefault(where, []).append(statistics.median(item["of_best"] for item in counted))
                if where == "alone":
                    ratios.setdefault("default", []).append(statistics.median(item["of_default"] for item in counted))
                rounds += [{"network": network, "situation": where, **item} for item in found]
        way = "stopped and continued in turns" if limit is None else "control group"
    print(json.dumps(middle, indent=1))
    n = dict.fromkeys(SITUATIONS, 1) if quick else ROUNDS
    text = "speed of training over the best of torch's defaults, one thread and passive waiting"
    around = {"alone": "alone", "busy": "beside two busy loops", "quota": "under a quota of half of the cores"}
    claims = [record.claim(f"{text}, {around[at]}", min(ratios[at]), LIMIT, n[at], at_most=False) for at in SITUATIONS]
    alone = "speed of training over that with torch's defaults, alone"
    claims.append(record.claim(alone, min(ratios["default"]), LIMIT_ALONE, n["alone"], at_most=False))
    settings = {"cores": fits.CORES, "seconds": SECONDS, "warm_s": WARM_S, "quota": way}
    return record.finish("busy_cores", claims, rounds, middle, settings, quick)


if __name__ == "__main__":
    sys.exit(main())
