"""Checks of what goes on inside of a run: the way of a batch, host syncs, guards against NaN and a lack of memory."""

import json
import re
import textwrap
from functools import partial
from typing import Any

from tests.gpu.kit import Check, Where, command, run
from tests.gpu.training import DIGITS, NO_EXPORT

# A network that gives NaN in one training step; the summary's look at its shapes is none.
PLANTED = """
    import sys
    from lit_guide.cli import main
    from lit_guide.networks import CNN, NETWORKS

    class Planted(CNN):
        def __init__(self, channels, classes, at=0):
            super().__init__(channels, classes)
            self.left = at

        def forward(self, image_BCHW):
            self.left -= self.training and not image_BCHW.is_meta
            return super().forward(image_BCHW) * (float("nan") if self.left == 0 else 1)

    NETWORKS["planted"] = Planted
    sys.exit(main())
"""
# The command with so many bytes of the device's memory; 0: all of it, and at the end it says how many it used.
LIMITED = """
    import resource, sys
    import torch
    import lit_guide.fit
    from lit_guide.cli import main

    device, most = sys.argv.pop(1), int(sys.argv.pop(1))

    def used(field):
        lines = open("/proc/self/status").read().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))

    if device == "cuda" and most:
        torch.cuda.set_per_process_memory_fraction(most / torch.cuda.get_device_properties(0).total_memory)
    before = used("VmSize:") if device == "cpu" else 0
    if device == "cpu" and most:
        resource.setrlimit(resource.RLIMIT_AS, (before + most, resource.RLIM_INFINITY))
    code = main()
    if not most:
        print("used:", torch.cuda.max_memory_allocated() if device == "cuda" else used("VmPeak:") - before)
    sys.exit(code)
"""


def write(where: Where, name: str, text: str) -> list[str]:
    """A program in the check's folder, as Python is told to run it."""
    (where.folder / name).write_text(textwrap.dedent(text), encoding="utf-8")
    return [name]


def nan(where: Where, at: int) -> str:
    """A NaN loss ends the run with the step it was in, though losses are read later on a GPU; what was saved is finite."""
    import torch

    flags = ["--model.network", "planted", "--model.network_args", f"{{at: {at}}}", "--accelerator", where.accelerator]
    program = write(where, "planted.py", PLANTED)
    said = command(where, *DIGITS, *flags, "--devices", 1, "--run_dir", "run", *NO_EXPORT, code=1, program=program)
    epoch, batch = divmod(at - 1, 19)  # of 1,168 digits, in batches of 64, of which the last has 16
    named = f"The loss became nan in step {at} (epoch {epoch + 1}, batch {batch + 1})"
    assert named in said, f"the guard says {re.findall('lit-guide: .*', said)}, not {named}"
    assert re.search(r"Images of this batch: row \d+, ", said), "the guard does not name the images"
    if not epoch:
        assert "Last finite checkpoint: none was saved." in said
        return f"{named}; nothing was saved"
    saved = torch.load(where.folder / "run/checkpoints/last.ckpt", weights_only=True, map_location="cpu")
    assert saved["global_step"] == 19 * epoch, f"last.ckpt is of step {saved['global_step']}"
    assert all(weight.isfinite().all() for weight in saved["state_dict"].values()), "last.ckpt is not finite"
    return named


def memory(where: Where) -> str:
    """What the message for a lack of memory says to type fits into that memory."""
    side, batch = (128, 256) if where.device == "cuda" else (48, 192)
    program = write(where, "limited.py", LIMITED)
    data = ["--data.image_size", side, "--data.augment", "false", "--trainer.limit_train_batches", 4, "--trainer.max_epochs", 1]
    rest = ["--trainer.limit_val_batches", 0, "--trainer.num_sanity_val_steps", 0, "--trainer.enable_checkpointing", "false"]
    fit = [*DIGITS, *data, *rest, *NO_EXPORT, "--accelerator", where.accelerator, "--devices", 1]
    start = ["--data.batch_size", batch]
    used = int(re.findall(r"used: (\d+)", command(where, where.device, 0, *fit, *start, program=program))[0])
    most, tried = int(0.75 * used), [str(batch)]
    said = command(where, where.device, most, *fit, *start, program=program, code=1)
    root = "cuda:0" if where.device == "cuda" else "cpu"
    for _ in range(3):
        assert f"lit-guide: Out of memory on {root} with batches of {tried[-1]} images, when" in said, said.splitlines()[-1]
        flags = re.findall(r"(--data\.batch_size (\d+) --trainer\.accumulate_grad_batches \d+) \((\d+) images a step", said)
        assert flags, f"it does not say what to type: {said.splitlines()[-1]}"
        (typed, smaller, step), *_ = flags
        assert (int(smaller), int(step)) == (int(tried[-1]) // 2, batch), typed
        tried.append(smaller)
        done = run(where, where.device, most, *fit, *typed.split(), program=program)
        if done.returncode == 0:
            return f"in {most / 2**20:.0f} of {used / 2**20:.0f} MiB: batches of {' -> '.join(tried)}"
        said = done.stderr
    raise AssertionError(f"in {most} of {used} bytes not even batches of {tried[-1]} fit")


def started(where: Where, *flags: object) -> Any:
    """What `fit` builds for these flags, on the device, in this process; as quiet as it can be."""
    import fits

    return fits.build([*map(str, flags), "--accelerator", where.accelerator], where.folder)


def batches(where: Where, workers: int) -> str:
    """A batch lies in pinned memory as uint8 and is augmented on the device: each image is moved, by a shift of its own."""
    import torch
    from lightning.pytorch.callbacks import Callback

    shift = ["--data.shift", 0.125, "--data.rotate", 0, "--data.num_workers", workers, "--trainer.limit_val_batches", 0]
    cli = started(where, "--data", "DigitsData", *shift)
    seen: dict[str, list[Any]] = {"host": [], "device": [], "model": []}
    data, transfer, augment = cli.datamodule, cli.datamodule.on_before_batch_transfer, cli.datamodule.augment_batch

    def on_host(batch: Any, index: int) -> Any:
        if isinstance(batch, list | tuple):  # not the summary's example
            seen["host"].append((batch[0].clone(), batch[0].is_pinned()))
        return transfer(batch, index)

    def on_device(image_BCHW: Any) -> Any:
        seen["device"].append((image_BCHW.device.type, image_BCHW.dtype))
        return augment(image_BCHW)

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            seen["model"].append(batch[0])

    data.on_before_batch_transfer, data.augment_batch = on_host, on_device
    cli.trainer.callbacks.append(Watch())
    cli.trainer.fit(cli.model, datamodule=data)
    assert len(seen["host"]) == len(seen["device"]) == len(seen["model"]) == 19, {key: len(value) for key, value in seen.items()}
    pinned, shifts = where.device == "cuda", set()
    assert all(is_pinned == pinned for _, is_pinned in seen["host"]), "batches are not in pinned memory"
    assert set(seen["device"]) == {(where.device, torch.uint8)}, f"augmented: {set(seen['device'])}"
    for (before_BCHW, _), after_BCHW in zip(seen["host"], seen["model"], strict=True):
        assert (after_BCHW.device.type, after_BCHW.dtype) == (where.device, torch.float32)
        padded = torch.nn.functional.pad(before_BCHW.float() / 255, (1, 1, 1, 1))
        moved = torch.stack([padded[:, :, y : y + 8, x : x + 8] for y in range(3) for x in range(3)])
        same_9B = (moved - after_BCHW.cpu()).abs().amax(dim=(2, 3, 4)) < 1e-6
        assert same_9B.any(dim=0).all(), "an augmented image is no moved copy of what came in"
        shifts |= set(same_9B.int().argmax(dim=0).tolist())
    assert len(shifts) == 9, f"images were moved in {len(shifts)} of 9 ways"
    return f"{'pinned' if pinned else 'not pinned (CPU)'}, 9 shifts, {workers} workers"


def syncs(where: Where, flags: list[str]) -> str:
    """In 50 steps of a real run, with its loader and its augmentation, the host waits for the device once: to log the loss."""
    import fits

    length = ["--data.batch_size", 8, "--trainer.max_epochs", 1, "--trainer.log_every_n_steps", 50, "--devices", 1]
    cli = started(where, "--data", "DigitsData", *length, "--trainer.limit_val_batches", 0, *flags)
    found = fits.syncs(cli, cli.datamodule, first=20, last=119)
    if where.device == "cpu":
        return "100 steps; on the CPU nothing is counted"
    assert len(found) <= 2, f"{len(found)} in 100 steps, in {sorted(set(found))}"
    return f"{len(found) / 2:g} in 50 steps"


def doctor(where: Where) -> str:
    """`doctor` trains on the device in every precision."""
    said = command(where, "doctor", "--json", code=0)
    features = {item["name"]: item for item in json.loads(said[said.index("{") : said.rindex("}") + 1])["features"]}
    name = "cuda:0" if where.device == "cuda" else "cpu"
    needed = [f"train on {name}", *(f"{precision} on {name}" for precision in ("32-true", "16-mixed", "bf16-mixed", "bf16-true"))]
    bad = {key: f"{item['state']}: {item['reason']}" for key, item in features.items() if item["state"] in ("no", "slow")}
    told = "; ".join(f"{key}: {reason}" for key, reason in bad.items())
    assert not set(needed) & set(bad), told
    return f"all works on {name}{f', but for {told}' if bad else ''}"


CHECKS = [
    Check("doctor", doctor, limit_s=200),
    Check("out of memory", memory, limit_s=150),
    Check("NaN in step 26", partial(nan, at=26)),
    Check("NaN in the first step", partial(nan, at=1)),
    Check("pinned memory, augmentation", partial(batches, workers=0)),
    Check("the same from loader processes", partial(batches, workers=2)),
    Check("host syncs", partial(syncs, flags=[])),
    Check("host syncs, bf16-mixed", partial(syncs, flags=["--precision", "bf16-mixed", "--model.channels_last", "true"])),
]
