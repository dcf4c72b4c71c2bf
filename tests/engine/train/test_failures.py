import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn

from lit_guide.data import DigitsData
from lit_guide.engine.config.started import Started
from lit_guide.engine.errors import Stopped, UserError
from lit_guide.engine.train.failures import explain_failure
from lit_guide.model import LitClassifier
from lit_guide.networks import NETWORKS

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),  # Lightning 2.6 on torch 2.11 and up
]
posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limits and signals")


class Failing(nn.Linear):
    """Fails in a real way once it has seen `images`."""

    def __init__(self, channels: int, classes: int, how: str = "memory", images: int = 0) -> None:
        super().__init__(64 * channels, classes)
        self.how, self.images = how, images

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        self.images -= 0 if image_BCHW.is_meta else len(image_BCHW)
        if self.images < 0 and not image_BCHW.is_meta:
            if self.how == "memory":
                torch.empty(len(image_BCHW), 2**47)  # more than addresses are there for: fails at once
            Path("/dev/full").write_text("x" * 100)
        return super().forward(image_BCHW.flatten(1))


class KilledData(DigitsData):
    """Its loader processes kill themselves."""

    signal = "SIGKILL"

    def samples(self, training):
        number, source = getattr(signal, self.signal), super().samples(training)

        class Killed(type(source)):
            def batch(self, indices):
                time.sleep(0.3)  # the other side must know this process first
                os.kill(os.getpid(), number)

        return Killed(source.images, source.labels) if training else source


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    monkeypatch.setitem(NETWORKS, "failing", Failing)


def failure(tmp_path, data=None, how="memory", images=0, step="fit", **settings):
    """What is said of the error with which a step of a trainer ends."""
    seed_everything(0, verbose=False)
    data = data or DigitsData(batch_size=64, augment=False)
    network = {"how": how, "images": images}
    model = LitClassifier(data.class_names, data.input_shape, [0.5], [0.5], "failing", network)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, num_sanity_val_steps=0, **quiet, **settings)
    with pytest.raises((RuntimeError, OSError, MemoryError)) as caught:
        getattr(trainer, step)(model, datamodule=data)
    return explain_failure(caught.value, trainer, data)


def test_f21_no_memory_gives_the_flags_for_half_the_batch_and_the_same_step(tmp_path):
    told = failure(tmp_path, images=100)
    assert told.exit_code == 1
    assert str(told) == (
        "Out of memory on cpu with batches of 64 images, when 33554432.0 GiB more were needed. Half of it at a time "
        "needs less: --data.batch_size 32 --trainer.accumulate_grad_batches 2 (64 images a step on each device, as now)."
    )
    told = failure(tmp_path, DigitsData(batch_size=33), accumulate_grad_batches=3)
    flags = "--data.batch_size 16 --trainer.accumulate_grad_batches 6 (96 images a step on each device, now 99)."
    assert str(told).endswith(flags)


def test_f21_a_single_image_that_does_not_fit_must_become_smaller(tmp_path):
    data = DigitsData(batch_size=1)
    assert str(failure(tmp_path, data)).endswith("Try --precision bf16-mixed, --data.image_size 4, a smaller --model.network.")
    data = DigitsData(batch_size=1)
    assert str(failure(tmp_path, data, precision="bf16-mixed")).endswith(
        "needed. Try --data.image_size 4, a smaller --model.network."
    )
    assert str(failure(tmp_path, data, step="test")).endswith("Try --precision bf16-mixed, another device.")


def test_f21_scoring_needs_no_accumulation(tmp_path):
    assert str(failure(tmp_path, step="predict")).endswith("more were needed. Use --data.batch_size 32.")
    assert str(failure(tmp_path, step="test")).endswith("more were needed. Use --data.batch_size 32.")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").touch()
    told = str(failure(tmp_path, step="test"))
    assert told.endswith(f"Use lit-guide test --run {tmp_path} --data.batch_size 32.")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.0 GB). Tried to allocate 20.00 GiB on private pool."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:116] DefaultCPUAllocator: not enough memory: you tried to allocate 20.00 GiB."
        ),
        MemoryError("Unable to allocate 20.00 GiB for an array with shape (1,)"),
    ],
)
def test_f21_every_allocator_is_understood(error):
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False, devices=1)
    told = explain_failure(error, trainer, DigitsData(batch_size=64))
    assert str(told).startswith("Out of memory on cpu with batches of 64 images, when 20.00 GiB more were needed.")


@pytest.fixture
def sees_dead_loaders(monkeypatch):
    """torch hears of them through a signal handler that it sets once, and that Lightning removes at the end of the next run."""
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._SIGCHLD_handler_set", False)


@posix
@pytest.mark.usefixtures("sees_dead_loaders")
def test_a_killed_loader_process_is_told_with_fewer_of_them(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    told = str(failure(tmp_path, KilledData(num_workers=1)))
    assert told == (
        "A loader process was killed: most likely because memory ran out. Use --data.num_workers 0 in place of 1. "
        f"Go on with: lit-guide fit --run {tmp_path}"
    )


@posix
@pytest.mark.usefixtures("sees_dead_loaders")
def test_a_bus_error_of_a_loader_process_is_a_lack_of_shared_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(KilledData, "signal", "SIGBUS")
    told = str(failure(tmp_path, KilledData(num_workers=1)))
    assert told.startswith("The loader processes (1) ran out of shared memory")
    assert "docker run --shm-size=8g" in told
    assert told.endswith("or use --data.num_workers 0, or --data.batch_size 32.")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_is_told(tmp_path):
    assert str(failure(tmp_path, how="disk")) == f"No space is left on the disk of {tmp_path}: make room."


def test_what_says_itself_what_happened_stays_as_it_is():
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False, devices=1)
    data, ours = DigitsData(), UserError("out of memory, of our own")
    assert explain_failure(ours, trainer, data) is None
    assert explain_failure(ValueError("shapes do not fit"), trainer, data) is None
    assert explain_failure(RuntimeError("Connection closed by peer"), trainer, data) is None  # there is no peer
    later = RuntimeError("could not clean up")
    later.__context__ = ours
    assert explain_failure(later, trainer, data) is ours


SCRIPT = """
    import os, sys
    import torch
    from torch import nn
    from lit_guide.cli import main
    from lit_guide.networks import NETWORKS

    class Odd(nn.Module):
        def __init__(self, channels, classes, how="fine", step=0):
            super().__init__()
            self.layer, self.spare = nn.Linear(64 * channels, classes), nn.Linear(3, 3) if how == "spare" else nn.Identity()
            self.how, self.step, self.calls = how, step, 0

        def forward(self, image_BCHW):
            logits_BK = self.layer(image_BCHW.flatten(1))
            self.calls += self.training and not image_BCHW.is_meta  # steps, not the look at its shapes
            if self.how == "nan" and self.calls == self.step and os.environ.get("LOCAL_RANK") == "1":
                return logits_BK * float("nan")
            return logits_BK

    NETWORKS["odd"] = Odd
    if __name__ == "__main__":
        sys.exit(main())
"""


def fit(tmp_path: Path, *args: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "odd.py").write_text(textwrap.dedent(SCRIPT))
    digits = ["--config", "configs/digits.yaml", "--accelerator", "cpu", "--run_dir", "run", "--trainer.max_epochs", "3"]
    command = [sys.executable, "odd.py", "fit", *digits, *args]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the gloo build for Windows needs a network name that CI lacks")
def test_ddp_names_the_parameters_that_have_no_part_in_the_loss(tmp_path):
    two = ["--model.network", "odd", "--model.network_args", "{how: spare}", "--devices", "2", "--strategy"]
    done = fit(tmp_path, *two, "ddp")
    assert done.returncode == 1
    assert "lit-guide: 2 parameters of the network have no part in the loss" in done.stderr
    assert "\n  network.body.spare.weight\n  network.body.spare.bias\nTake them out" in done.stderr
    assert "--strategy ddp_find_unused_parameters_true" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="as above")
def test_f18_a_bad_loss_on_one_rank_ends_all_of_them(tmp_path):
    two = ["--model.network", "odd", "--model.network_args", "{how: nan, step: 14}", "--devices", "2", "--strategy", "ddp"]
    done = fit(tmp_path, *two)
    assert done.returncode == 1, done.stderr
    assert "lit-guide: The loss became nan in step 14 (epoch 2, batch " in done.stderr
    assert f"Last finite checkpoint: {tmp_path / 'run/checkpoints/last.ckpt'}." in done.stderr
    gone = "Another process of this run ended or can't be reached: its own message says why."
    assert f"lit-guide: {gone}" in done.stderr
    assert f" Go on with: lit-guide fit --run {tmp_path / 'run'}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not keep to RLIMIT_AS")
def test_f21_a_process_without_memory_ends_with_the_flags(tmp_path):
    limited = """
        import resource, sys
        import lit_guide.fit
        from lit_guide.cli import main

        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2 * 2**30, resource.RLIM_INFINITY))
        sys.exit(main())
    """
    (tmp_path / "limited.py").write_text(textwrap.dedent(limited))
    large = [
        "--data.batch_size",
        "512",
        "--data.image_size",
        "1024",
        "--trainer.num_sanity_val_steps",
        "0",
        "--data.augment",
        "false",
    ]
    digits = ["--config", "configs/digits.yaml", "--accelerator", "cpu", "--trainer.enable_model_summary", "false"]
    command = [sys.executable, "limited.py", "fit", *digits, *large]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    told = "Out of memory on cpu with batches of 512 images, when 2.0 GiB more were needed."
    assert f"lit-guide: {told}" in done.stderr
    assert "--data.batch_size 256 --trainer.accumulate_grad_batches 2 (512 images a step" in done.stderr
    assert "Traceback" not in done.stderr


def test_f04_what_a_signal_broke_besides_is_no_failure(tmp_path: Path) -> None:
    trainer = Trainer(logger=False, default_root_dir=tmp_path, accelerator="cpu", enable_checkpointing=False)
    cli: Any = SimpleNamespace(
        trainer=trainer, model=None, datamodule=None, ckpt_path=None, checkpoint=None, stop=SimpleNamespace(received=0)
    )

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the compiler was ended by SIGTERM")

    with pytest.raises(RuntimeError, match="the compiler"):
        Started.run(cli, broken, cli.model)
    cli.stop.received = signal.SIGTERM
    with pytest.raises(Stopped) as stopped:
        Started.run(cli, broken, cli.model)
    assert stopped.value.code == 143
