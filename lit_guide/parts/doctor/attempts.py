"""What `doctor` tries for real, each for about two seconds. `trials` runs these functions in other processes.

Each returns what JSON can write, and raises where the feature does not work. Imports stay inside: they belong to the attempt.
"""

import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from lit_guide.engine.machine import PRECISIONS
from lit_guide.parts.doctor.trials import LIMIT_S, Attempt, NotHereError

EXPORTS = ("torchscript", "onnx", "pt2")
LONG_LIMIT_S = 90.0  # two more processes import torch; a first compilation loads much, and waits for the C++ compiler


def attempt(name: str, function: Callable[..., Any], *args: Any, limit_s: float = LIMIT_S) -> Attempt:
    """An attempt at a function of this file."""
    return Attempt(name, f"{__name__}:{function.__name__}", args, limit_s)


def plan(devices: Sequence[str]) -> tuple[list[Attempt], list[Attempt]]:
    """What is worth trying, in two groups that take about equally long.

    Args:
        devices: those besides the CPU: cuda:0, cuda:1, mps; precisions and the compiler are tried on the first.
    """
    cuda, device = [name for name in devices if name != "mps"], [*devices, "cpu"][0]
    first = [attempt("torchvision", torchvision_operator), attempt("decode a JPEG", decode_jpeg)]
    first.append(attempt("train on cpu", train, "cpu", None, "32-true"))
    first += [attempt(f"train on {name}", train, "gpu", index, "32-true") for index, name in enumerate(cuda)]
    first += [attempt("train on mps", train, "mps", None, "32-true")] if "mps" in devices else []
    first += [attempt(f"{precision} on {device}", train, "auto", None, precision, 1) for precision in PRECISIONS]
    first += [attempt(f"export {format}", export, format) for format in EXPORTS]
    first.append(attempt("loader processes", load_with_workers))
    second = [attempt("ddp on 2 x cpu", ddp, "gloo", limit_s=LONG_LIMIT_S)]
    second += [attempt("ddp on 2 x cuda", ddp, "nccl", limit_s=LONG_LIMIT_S)] if len(cuda) > 1 else []
    second.append(attempt("torch.compile", compile_network, device, limit_s=LONG_LIMIT_S))
    return first, second


def about_torch() -> dict[str, Any]:
    """Multiply two matrices; returns what torch says of itself and of the devices."""
    import torch

    cuda: Any = torch.cuda  # untyped in part
    ones_NN = torch.ones(256, 256)
    assert (ones_NN @ ones_NN == 256).all(), "256 x 256 matrices are multiplied wrongly"
    reason = None
    try:
        cuda.init()
    except (RuntimeError, AssertionError) as error:
        reason = str(error)
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())] if reason is None else []
    devices: list[dict[str, Any]] = [
        {"device": f"cuda:{i}", "name": p.name, "memory_gb": round(p.total_memory / 1e9, 1), "capability": f"{p.major}.{p.minor}"}
        for i, p in enumerate(gpus)
    ]
    if torch.backends.mps.is_available():
        memory = round(torch.mps.recommended_max_memory() / 1e9, 1)
        devices.append({"device": "mps", "name": "Apple GPU", "memory_gb": memory, "capability": None})
    cudnn: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    nccl = cuda.nccl.version() if torch.distributed.is_available() and torch.distributed.is_nccl_available() else None
    return {
        "torch": torch.__version__,
        "cuda_build": torch.version.cuda or (f"ROCm {torch.version.hip}" if torch.version.hip else "CPU only"),
        "cuda_error": reason,
        "cudnn": None if cudnn is None else f"{cudnn // 10000}.{cudnn // 100 % 100}.{cudnn % 100}",  # 9.0 and later
        "nccl": None if nccl is None else ".".join(map(str, nccl)),
        "devices": devices,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def torchvision_operator() -> None:
    """Call an operator that is compiled for one version of torch."""
    import torch
    import torchvision

    boxes_N4 = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]])
    assert torchvision.ops.nms(boxes_N4, torch.tensor([0.9, 0.8]), 0.5).tolist() == [0], "torchvision.ops.nms is wrong"


def decode_jpeg() -> None:
    """Write a JPEG and decode it as training does."""
    from PIL import Image

    from lit_guide.engine.photos.decode import decode

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.jpg"
        Image.new("RGB", (64, 48), (200, 100, 50)).save(path)
        mean_C = decode(path).float().mean(dim=(1, 2)).tolist()
    assert all(abs(a - b) < 5 for a, b in zip(mean_C, (200, 100, 50), strict=True)), f"colours are wrong: {mean_C}"


def train(accelerator: str, device: int | None, precision: str, threads: int | None = None) -> float:
    """Train on one batch for a second, three steps at least; its loss must fall.

    Args:
        accelerator: cpu, gpu, mps or auto.
        device: index of the GPU; None: any one.
        precision: as --precision.
        threads: of torch, from here on; with one, the time of a step depends little on what else the cores do.

    Returns:
        Seconds of the quickest step: other processes may slow down any of them.

    Raises:
        NotHereError: another precision takes its place on this device.
    """
    import torch
    from lightning.pytorch import Callback, Trainer
    from torch.utils.data import DataLoader

    from lit_guide.engine.machine import ON_CPU
    from lit_guide.model import LitClassifier

    losses: list[float] = []
    ends: list[float] = []

    class Clock(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            losses.append(float(trainer.callback_metrics["train/loss_step"]))
            ends.append(time.perf_counter())
            enough = len(ends) >= 3 and ends[-1] - ends[0] > 1
            trainer.should_stop = enough or not math.isfinite(losses[-1])

    torch.manual_seed(0)
    torch.set_num_threads(threads or torch.get_num_threads())
    trainer = Trainer(
        accelerator=accelerator,
        devices=1 if device is None else [device],
        precision=precision,  # type: ignore[arg-type]  # a str, where Lightning lists them all
        max_steps=200,
        callbacks=[Clock()],
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    used = ON_CPU.get(precision, precision) if trainer.strategy.root_device.type == "cpu" else trainer.precision
    if used != precision:
        raise NotHereError(f"this device trains in {used} instead")
    batch = (torch.rand(16, 3, 16, 16), torch.randint(10, (16,)))
    batches: Any = [batch] * 200  # a list serves as a Dataset
    small = {"widths": [16, 32, 64]}
    model = LitClassifier([str(label) for label in range(10)], (3, 16, 16), [0.5] * 3, [0.3] * 3, network_args=small)
    trainer.fit(model, DataLoader(batches, batch_size=None))
    assert min(losses[1:]) < losses[0], f"the loss of a batch did not fall: {losses[0]:.2f}, then {losses[-1]:.2f}"
    return min(after - before for before, after in pairwise(ends))


def load_with_workers() -> None:
    """Pass four batches of 64 photos, 154 MB in all, from two worker processes through shared memory."""
    import torch
    from torch.utils.data import DataLoader

    photos: Any = [torch.ones(3, 224, 224)] * 256  # a list serves as a Dataset
    batches = list(DataLoader(photos, batch_size=64, num_workers=2))
    assert all(batch.shape == (64, 3, 224, 224) for batch in batches), "batches are incomplete"


def ddp(backend: str) -> None:
    """Average a gradient over two real processes.

    Args:
        backend: gloo on the CPU, nccl on the first two GPUs.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]
    from torch.multiprocessing.spawn import spawn

    # In this process, which outlives both: a rank whose store goes away first aborts.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    spawn(_rank, args=(backend, store.port), nprocs=2)  # type: ignore[no-untyped-call]


def _rank(rank: int, backend: str, port: int) -> None:
    import torch
    from torch import distributed, nn
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore("127.0.0.1", port, is_master=False)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=2, timeout=timedelta(seconds=LONG_LIMIT_S))
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    network = nn.parallel.DistributedDataParallel(nn.Linear(4, 1).to(device))
    network(torch.full((1, 4), rank + 1.0, device=device)).sum().backward()
    gradient_14 = next(network.parameters()).grad
    assert gradient_14 is not None
    assert gradient_14.tolist() == [[1.5] * 4], f"the mean of the gradients 1 and 2 came out as {gradient_14.tolist()}"
    distributed.barrier()
    distributed.destroy_process_group()


def export(format: str) -> None:
    """Export a small network; the exporter compares the file with it."""
    from lit_guide.export import proof as export
    from lit_guide.model import LitClassifier

    model = LitClassifier(["a", "b"], (3, 8, 8), [0.5] * 3, [0.3] * 3, network_args={"widths": [4]})
    write: dict[str, Callable[[LitClassifier, Path], Any]] = {
        "torchscript": export.export_torchscript,
        "onnx": export.export_onnx,
        "pt2": export.export_program,
    }
    with tempfile.TemporaryDirectory() as folder:
        write[format](model, Path(folder) / f"model.{format}")


def compile_network(device: str) -> None:
    """Compile a small network and train it for a step."""
    # Only its own kernels are compiled, without probing which vector instructions the compiler knows: a dozen programs, 20 s.
    os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "0")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    import torch

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()).to(device)
    input_BF = torch.rand(4, 8, device=device)
    output_BF = torch.compile(network)(input_BF)
    output_BF.sum().backward()
    assert torch.allclose(output_BF, network(input_BF), atol=1e-5), "the compiled network computes something else"
