"""Checks of whole trainings by the real command: precisions, layouts, compilers, resuming, exports, FSDP."""

import csv
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from tests.gpu.kit import Check, SkippedError, Where, command

DIGITS = ("fit", "--config", "configs/digits.yaml", "--trainer.enable_model_summary", "false")
NO_EXPORT = [f"--export.{name}.enabled=false" for name in ("onnx", "torchscript", "pt2")]
EPOCHS = {"cuda": 20, "cpu": 8}
ACCURACY = {"cuda": 0.98, "cpu": 0.95}  # on the test split of 359 digits; float32 on a CPU: 0.99 after 20 epochs, 0.97 after 8
# Between the losses of two runs on the same batches, without augmentation and dropout, in float64. In float32 another device adds
# in another order, and the losses of 4 epochs come to differ by 0.01: as much as with another order of the images.
NEAR = 1e-4
LOGIT = 1e-3  # largest difference of a logit between a GPU in true float32 and the files on the CPU


def results(where: Where, run: str) -> dict[str, Any]:
    """What a run left in results.json."""
    return json.loads((where.folder / run / "results.json").read_text(encoding="utf-8"))


def trained(where: Where, *flags: object, run: str = "run", precision: str = "32-true") -> str:
    """Train on the digits on the device, and see that it was this device, this precision, and that they were learnt."""
    device = ["--accelerator", where.accelerator, "--devices", "1"] if "fsdp" not in str(flags) else []
    length = ["--trainer.max_epochs", EPOCHS[where.device], "--precision", precision, "--run_dir", run]
    command(where, *DIGITS, *length, *device, *NO_EXPORT, *flags)
    found = results(where, run)
    used, accuracy = found["device"], found["test"]["accuracy"]
    assert used["accelerator"] == where.device, f"it ran on {used['accelerator']}"
    assert used["precision"] == precision, f"it ran in {used['precision']}"
    assert accuracy >= ACCURACY[where.device], f"test accuracy {accuracy:.4f}, less than {ACCURACY[where.device]}"
    return f"accuracy {accuracy:.4f}, {found['images_per_second']:,.0f} images/s"


def auto(where: Where) -> str:
    """Without a flag the GPU is taken, in float32."""
    flags = ["--accelerator", "auto"] if where.device == "cuda" else []
    return trained(where, *flags)


def fit(where: Where, flags: list[str], precision: str = "32-true") -> str:
    return trained(where, *flags, precision=precision)


def fused(where: Where, precision: str) -> str:
    """The optimizer that the checkpoint holds is the fused one."""
    import torch

    said = trained(where, "--model.optimizer.fused", "true", precision=precision)
    saved = torch.load(where.folder / "run/checkpoints/last.ckpt", weights_only=True, map_location="cpu")
    assert saved["optimizer_states"][0]["param_groups"][0]["fused"] is True, "the optimizer in last.ckpt is not fused"
    return said


def compiled(where: Where, flags: list[str], precision: str) -> str:
    """Compile. Where there is no compiler, that is said: it is not for Python to install."""
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang", "g++")):
        raise SkippedError("torch.compile needs a C compiler, and there is none")
    return trained(where, "--model.compile", "true", *flags, precision=precision)


def resumed(where: Where, first: str, second: str) -> str:
    """Two epochs on one device, two more on another: the losses are those of four epochs on the first."""
    plain = ["--data.augment", "false", "--model.network_args", "{dropout: 0.0}", "--model.scheduler", "null"]
    plain += ["--precision", "64-true", *NO_EXPORT]
    kinds = {"gpu": where.accelerator, "cpu": "cpu"}

    def train(run: list[object], kind: str, epochs: int) -> None:
        command(where, *run, "--accelerator", kinds[kind], "--devices", 1, "--trainer.max_epochs", epochs, *plain)

    train([*DIGITS, "--run_dir", "whole"], first, 4)
    train([*DIGITS, "--run_dir", "parts"], first, 2)
    train(["fit", "--run", "parts"], second, 4)
    whole, parts = losses(where.folder / "whole"), losses(where.folder / "parts")
    assert len(whole) == len(parts) == 8, f"metrics.csv has {len(parts)} losses in place of 8"
    assert results(where, "parts")["device"]["accelerator"] == {"gpu": where.device, "cpu": "cpu"}[second]
    off = max(abs(a - b) for a, b in zip(whole, parts, strict=True))
    assert off <= NEAR, f"a loss differs by {off:.2g} from the uninterrupted run's: {parts}, not {whole}"
    assert whole[-1] < 0.7 * whole[0], f"it learnt nothing: {whole}"
    return f"the losses of 4 epochs differ by {off:.2g} at most"


def losses(run: Path) -> list[float]:
    """Training and validation loss of each epoch; not those of the best weights, which are validated once more at the end."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    last_steps = [row["step"] for row in rows if row["train/loss"]]
    return [float(row[name]) for name in ("train/loss", "val/loss") for row in rows if row[name] and row["step"] in last_steps]


def exported(where: Where) -> str:
    """Every format agrees with the trained model as it computes on the device."""
    import numpy as np
    import onnxruntime
    import torch

    from lit_guide import DigitsData, load_classifier

    flags = ["--trainer.max_epochs", 4, "--accelerator", where.accelerator, "--devices", 1, "--precision", "bf16-mixed"]
    command(where, *DIGITS, *flags, "--run_dir", "run")
    entries = {entry["format"]: entry for entry in results(where, "run")["exports"]}
    assert set(entries) == {"torchscript", "onnx", "pt2"}, f"exported: {', '.join(entries)}"
    torch.backends.cudnn.allow_tf32 = False
    model = load_classifier(where.folder / "run/checkpoints/best.ckpt").to(where.device)
    image_BCHW = next(iter(DigitsData().test_dataloader()))[0].float() / 255
    files = {name: str(where.folder / "run" / entry["path"]) for name, entry in entries.items()}
    script = torch.jit.load(files["torchscript"], map_location=where.device)
    session = onnxruntime.InferenceSession(files["onnx"], providers=["CPUExecutionProvider"])
    with torch.no_grad():
        eager_BK = model(image_BCHW.to(where.device)).cpu()
        found = {"torchscript": script(image_BCHW.to(where.device)).cpu()}
        found["pt2"] = torch.export.load(files["pt2"]).module()(image_BCHW)
    found["onnx"] = torch.from_numpy(np.asarray(session.run(None, {"input": image_BCHW.numpy()})[0]))
    off = {name: (logits_BK - eager_BK).abs().max().item() for name, logits_BK in found.items()}
    assert max(off.values()) <= LOGIT, f"logits differ by {off}"
    return f"logits of {len(image_BCHW)} digits differ by {max(off.values()):.1e} at most ({', '.join(sorted(off))})"


def sharded(where: Where) -> str:
    """FSDP on one device learns, and its checkpoint scores the same on the CPU without it."""
    said = trained(where, "--config", "configs/device/fsdp.yaml", "--devices", 1, precision="bf16-mixed")
    before = results(where, "run")["test"]["accuracy"]
    plain = ["--accelerator", "cpu", "--strategy", "auto", "--precision", "32-true"]
    command(where, "test", "--run", "run", *plain, "--run_dir", "again")
    after = results(where, "again")["test"]["accuracy"]
    assert abs(after - before) <= 0.01, f"its checkpoint scores {after:.4f} on the CPU, {before:.4f} on the GPU"
    return f"{said}; on the CPU {after:.4f}"


LAYOUT = ["--model.channels_last", "true"]
ALL = [*LAYOUT, "--model.optimizer.fused", "true", "--trainer.gradient_clip_val", "1.0"]
FP16 = "the CPU has no mixed precision in float16"
ONCE = "one compilation is rehearsal enough"
CHECKS = [  # the longest first
    Check("compile, all flags, bf16-mixed", partial(compiled, flags=ALL, precision="bf16-mixed"), limit_s=180, needs_gpu=ONCE),
    Check("compile", partial(compiled, flags=[], precision="32-true"), limit_s=180),
    Check("fit 32, on what is there", auto),
    Check("fit 16-mixed", partial(fit, flags=[], precision="16-mixed"), needs_gpu=FP16),
    Check("fit bf16-mixed", partial(fit, flags=[], precision="bf16-mixed")),
    Check("fit bf16-true", partial(fit, flags=[], precision="bf16-true")),
    Check("channels_last", partial(fit, flags=LAYOUT)),
    Check("channels_last bf16-mixed", partial(fit, flags=LAYOUT, precision="bf16-mixed")),
    Check("fused optimizer", partial(fused, precision="32-true")),
    Check("fused optimizer 16-mixed", partial(fused, precision="16-mixed"), needs_gpu=FP16),
    Check("resume GPU to CPU", partial(resumed, first="gpu", second="cpu")),
    Check("resume CPU to GPU", partial(resumed, first="cpu", second="gpu")),
    Check("resume GPU to GPU", partial(resumed, first="gpu", second="gpu")),
    Check("exports from a GPU model", exported, limit_s=120),
    Check("FSDP on one device", sharded, limit_s=120, needs_gpu="FSDP needs an NVIDIA GPU"),
]
