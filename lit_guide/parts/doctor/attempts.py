"""What `doctor` tries for real, in other processes: a function raises where its feature fails. Imports belong to the attempt."""

import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.multiprocessing.spawn import spawn
from torch.utils.data import DataLoader

from lit_guide.engine.machine import ON_CPU
from lit_guide.parts.doctor.trials import NotHereError


def about_torch() -> dict[str, Any]:
    """Multiply two matrices; returns what torch says of itself and of the devices."""
    cuda: Any = torch.cuda  # untyped in part
    ones_NN = torch.ones(256, 256)
    assert (ones_NN @ ones_NN == 256).all(), "256 x 256 matrices are multiplied wrongly"
    gpus, reason = [], None
    try:
        cuda.init()
        gpus = [cuda.get_device_properties(index) for index in range(cuda.device_count())]
    except (RuntimeError, AssertionError) as error:
        reason = str(error)
    devices: list[Any] = [(f"cuda:{i}", p.name, p.total_memory, f"{p.major}.{p.minor}") for i, p in enumerate(gpus)]
    if torch.backends.mps.is_available():
        devices.append(("mps", "Apple GPU", torch.mps.recommended_max_memory(), None))
    cudnn: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    nccl = cuda.nccl.version() if distributed.is_available() and distributed.is_nccl_available() else None
    return {
        "torch": torch.__version__,
        "cuda_build": torch.version.cuda or (f"ROCm {torch.version.hip}" if torch.version.hip else "CPU only"),
        "cuda_error": reason,
        "cudnn": cudnn and f"{cudnn // 10000}.{cudnn // 100 % 100}.{cudnn % 100}",  # 9.0 and later
        "nccl": nccl and ".".join(map(str, nccl)),
        "devices": [{"device": d, "name": n, "memory_gb": round(m / 1e9, 1), "capability": c} for d, n, m, c in devices],
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def torchvision_operator() -> None:
    """Call an operator that is compiled for one version of torch."""
    import torchvision

    boxes_N4 = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]])
    assert torchvision.ops.nms(boxes_N4, torch.tensor([0.9, 0.8]), 0.5).tolist() == [0], "torchvision.ops.nms is wrong"


def decode_jpeg() -> None:
    """Write a JPEG and decode it as training does."""
    from PIL import Image

    from lit_guide.engine.photos.decode import decode

    path = Path(tempfile.mkdtemp()) / "image.jpg"  # in the folder that `trials` makes and removes
    Image.new("RGB", (64, 48), (200, 100, 50)).save(path)
    mean_C = decode(path).float().mean(dim=(1, 2)).tolist()
    assert all(abs(a - b) < 5 for a, b in zip(mean_C, (200, 100, 50), strict=True)), f"colours are wrong: {mean_C}"


def train(device: str, precision: str, threads: int | None = None) -> float:
    """Train on one batch for a second, three steps at least, on cpu, mps or cuda:0; its loss must fall.

    Returns the seconds of the quickest step: with one of torch's `threads` they depend little on what else the cores do. Raises
    NotHereError where another precision takes the place of this one.
    """
    from lightning.pytorch import Callback, Trainer

    from lit_guide.model import LitClassifier

    steps: list[tuple[float, float]] = []

    class Clock(Callback):
        def on_train_batch_end(self, trainer: Trainer, _: Any, outputs: Any, *__: Any) -> None:
            steps.append((float(outputs["loss"]), time.perf_counter()))
            trainer.should_stop = len(steps) >= 3 and steps[-1][1] - steps[0][1] > 1

    torch.manual_seed(0)
    torch.set_num_threads(threads or torch.get_num_threads())
    kind, _, index = device.partition(":")
    flags: Any = {"accelerator": kind, "devices": [int(index)] if index else 1, "precision": precision}
    trainer = Trainer(**flags, barebones=True, max_steps=200, callbacks=[Clock()])
    used = ON_CPU.get(precision, precision) if trainer.strategy.root_device.type == "cpu" else trainer.precision
    if used != precision:
        raise NotHereError(f"this device trains in {used} instead")
    batches: Any = [(torch.rand(16, 3, 16, 16), torch.randint(10, (16,)))] * 200  # a list serves as a Dataset
    model = LitClassifier(list("0123456789"), (3, 16, 16), [0.5] * 3, [0.3] * 3, network_args={"widths": [16, 32, 64]})
    trainer.fit(model, DataLoader(batches, batch_size=None))
    losses = [loss for loss, _ in steps]
    assert min(losses[1:]) < losses[0], f"the loss of a batch did not fall: {losses[0]:.2f}, then {losses[-1]:.2f}"
    return min(after - before for (_, before), (_, after) in pairwise(steps))


def load_with_workers() -> None:
    """Pass four batches of 64 photos, 154 MB in all, from two worker processes through shared memory."""
    photos: Any = [torch.ones(3, 224, 224)] * 256  # a list serves as a Dataset
    batches = list(DataLoader(photos, batch_size=64, num_workers=2))
    assert all(batch.shape == (64, 3, 224, 224) for batch in batches), "batches are incomplete"


def ddp(backend: str) -> None:
    """Average a gradient over two real processes: by gloo on the CPU, by nccl on the first two GPUs."""
    if backend == "nccl" and torch.cuda.device_count() < 2:
        raise NotHereError(f"it takes two GPUs that torch can use; here: {torch.cuda.device_count()}")
    spawn(_rank, args=(backend, f"{tempfile.mkdtemp()}/store"), nprocs=2)  # type: ignore[no-untyped-call]


def _rank(rank: int, backend: str, path: str) -> None:
    store = distributed.FileStore(path, 2)  # type: ignore[attr-defined]
    distributed.init_process_group(backend, store=store, rank=rank, world_size=2)
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    network = nn.parallel.DistributedDataParallel(nn.Linear(4, 1, bias=False).to(device))
    network(torch.full((1, 4), rank + 1.0, device=device)).sum().backward()
    gradients_14 = [parameter.grad.tolist() for parameter in network.parameters() if parameter.grad is not None]
    assert gradients_14 == [[[1.5] * 4]], f"the mean of the gradients 1 and 2 came out as {gradients_14}"
    distributed.barrier()
    distributed.destroy_process_group()


def export(format: str) -> None:
    """Export a small network; the exporter compares the file with it."""
    from lit_guide.export.command import formats
    from lit_guide.model import LitClassifier

    model = LitClassifier(["a", "b"], (3, 8, 8), [0.5] * 3, [0.3] * 3, network_args={"widths": [4]})
    formats()[format]().write(model, Path(tempfile.mkdtemp()) / f"model.{format}")


def compile_network(device: str) -> None:
    """Compile a small network and train it for a step."""
    network = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).to(device)
    input_BF = torch.rand(4, 8, device=device)
    output_BF = torch.compile(network)(input_BF)
    output_BF.sum().backward()
    assert torch.allclose(output_BF, network(input_BF), atol=1e-5), "the compiled network computes something else"
