"""Which settings this machine takes, and that the fast ones change no result. Most machines that test this have no GPU."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.accelerators import mps
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from torch.optim import SGD, Adam, AdamW
from torch.utils.data import DataLoader, TensorDataset

from lit_guide.engine.config.devices import fit_to_machine, what_is_there
from lit_guide.engine.errors import ConfigError, UserError
from lit_guide.engine.machine import usable_cores
from lit_guide.engine.train.optim import WarmupCosine
from lit_guide.model import LitClassifier
from tests.conftest import Run

DIGITS = ["--config", "configs/digits.yaml"]
PREFIX = "lit-guide: "
DOCTOR = "`lit-guide doctor` says what works here."
SHORT = ["--trainer.max_epochs", "1", "--trainer.enable_model_summary", "false"]
SHORT += [f"--export.{name}.enabled=false" for name in ("onnx", "torchscript", "pt2")]

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]
no_gpu = pytest.mark.skipif(CUDAAccelerator.is_available() or MPSAccelerator.is_available(), reason="this machine has a GPU")


def settings(fused: bool | None = None, **given: object) -> Namespace:
    """A configuration with Lightning's defaults, as the parser gives it."""
    trainer = {"accelerator": "cpu", "devices": "auto", "num_nodes": 1, "strategy": "auto", "precision": None, "plugins": None}
    trainer |= {"sync_batchnorm": False, "gradient_clip_val": None, **given}
    optimizer = Namespace(class_path="torch.optim.Adam", init_args=Namespace(fused=fused))
    return Namespace(trainer=Namespace(**trainer), model=Namespace(init_args=Namespace(optimizer=optimizer)))


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch says where there are two."""
    monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: True))
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: False))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")


@no_gpu
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--accelerator", "gpu"], "--accelerator gpu: No supported gpu backend found."),
        (["--accelerator", "cpu", "--precision", "fp16"], "--precision fp16: there is no such precision. Did you mean 16-mixed?"),
        (["--accelerator", "cpu", "--strategy", "fsdp"], "--strategy fsdp spreads a model over NVIDIA GPUs"),
        (["--trainer.num_nodes", "2"], "torchrun --nnodes 2 --nproc-per-node 1"),
    ],
)
def test_f22_a_command_that_does_not_fit_exits_2_in_a_line(run: Run, args: list[str], words: str) -> None:
    outcome = run("fit", *DIGITS, *args)
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert words in line
    assert f"This machine has {usable_cores()} CPU cores and no GPU that torch can use. {DOCTOR}" in line
    assert line.endswith(DOCTOR)
    assert not Path("runs").exists()


@no_gpu
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"accelerator": "mps"}, "--accelerator mps: `MPSAccelerator` can not run on your system"),
        ({"accelerator": "cuda"}, "--accelerator cuda: `CUDAAccelerator` can not run on your system"),
        ({"accelerator": "gpus"}, "no such accelerator. Did you mean gpu?"),
        ({"accelerator": "quantum"}, "Use one of auto, cpu, gpu"),
        ({"devices": "0"}, "--devices 0: `Trainer(devices='0')` value is not a valid input"),
        ({"devices": "4096"}, "--devices 4096: there are"),
        ({"devices": "0,2"}, "--devices 0,2: `devices` selected with `CPUAccelerator` should be an int > 0."),
        ({"devices": [0, 2]}, "--devices [0, 2]: `devices` selected with `CPUAccelerator` should be an int > 0."),
        ({"devices": "-1"}, "--devices -1: `devices` selected with `CPUAccelerator` should be an int > 0."),
        ({"devices": "two"}, "--devices two: `devices` selected with `CPUAccelerator` should be an int > 0."),
        ({"strategy": "dp"}, "no such strategy. Did you mean ddp?"),
        ({"strategy": "dd_spawn"}, "Did you mean ddp_spawn?"),
        ({"strategy": "magic"}, "Use one of auto, ddp, ddp_spawn, fsdp."),
        ({"strategy": "single_device", "devices": "2"}, "use --strategy ddp."),
        ({"strategy": Namespace(class_path="lightning.pytorch.strategies.FSDPStrategy")}, "use --strategy ddp."),
        ({"devices": "2", "sync_batchnorm": True}, "--trainer.sync_batchnorm true works between NVIDIA GPUs only"),
        ({"strategy": "ddp", "sync_batchnorm": True}, "--trainer.sync_batchnorm true works between NVIDIA GPUs only"),
    ],
    ids=str,
)
def test_f22_what_a_cpu_can_not_do_is_refused(given: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        fit_to_machine(settings(**given))
    assert words in str(caught.value)
    assert str(caught.value).endswith(DOCTOR)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"devices": "3"}, "--devices 3: You requested gpu: [0, 1, 2] But your machine only has: [0, 1]. This machine has"),
        ({"devices": "0,2"}, "--devices 0,2: You requested gpu: [0, 2] But your machine only has: [0, 1]."),
        ({"devices": [1, 1]}, "--devices [1, 1]: Device ID's (GPU) must be unique."),
        ({"precision": "16-mixed", "gradient_clip_val": 1.0, "fused": True}, "a fused optimizer can't clip gradients"),
        ({"accelerator": "mps"}, "GPU 0, GPU 1."),
    ],
    ids=str,
)
def test_f22_gpus_that_are_not_there_are_refused(given: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        fit_to_machine(settings(**{"accelerator": "gpu", **given}))
    assert words in str(caught.value)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    "given",
    [
        {"devices": "auto"},
        {"devices": "-1"},
        {"devices": "2", "strategy": "fsdp", "precision": "16-mixed"},
        {"devices": "0,1", "strategy": "ddp", "sync_batchnorm": True},
        {"devices": [1], "precision": "16-true"},
        {"precision": "bf16-mixed", "gradient_clip_val": 1.0, "fused": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("accelerator", ["auto", "gpu", "cuda"])
def test_what_gpus_can_do_is_left_as_it_is(given: dict[str, object], accelerator: str) -> None:
    asked, adapted = settings(accelerator=accelerator, **given), settings(accelerator=accelerator, **given)
    fit_to_machine(adapted)
    assert adapted == asked


def test_an_apple_gpu_trains_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for accelerator in (MPSAccelerator, mps.MPSAccelerator):
        monkeypatch.setattr(accelerator, "is_available", staticmethod(lambda: True))
    fit_to_machine(settings(accelerator="gpu", precision="16-mixed"))
    for given, words in (({"strategy": "ddp"}, "not supported on the MPS accelerator"), ({"devices": "2"}, "only has")):
        with pytest.raises(ConfigError, match=words):
            fit_to_machine(settings(accelerator="auto", **given))


STARTED = [
    {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0", "WORLD_SIZE": "2"},
    {
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_JOB_NAME": "x",
        "SLURM_NODEID": "0",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
    },
    {"MASTER_ADDR": "a", "NODE_RANK": "0"},
]


@pytest.mark.parametrize("variables", STARTED, ids=["torchrun", "slurm", "by-hand"])
def test_f22_several_machines_need_something_that_starts_them(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {name for one in STARTED for name in one}:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="num_nodes 2 needs torchrun or srun to start this command on each"):
        fit_to_machine(settings(num_nodes=2))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    fit_to_machine(settings(num_nodes=2))


@pytest.mark.parametrize(
    ("strategy", "used"), [("ddp_spawn", "ddp"), ("ddp_fork_find_unused_parameters_true", "ddp_find_unused_parameters_true")]
)
def test_processes_are_started_by_ddp(strategy: str, used: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = settings(strategy=strategy, devices="2")
    fit_to_machine(config)
    assert config.trainer.strategy == used
    assert (
        capsys.readouterr().err
        == f"{PREFIX}--strategy {strategy} is for notebooks: {used} is used, which starts the same processes.\n"
    )
    own = Namespace(class_path="lightning.pytorch.strategies.DDPStrategy", init_args=Namespace(start_method="spawn"))
    fit_to_machine(settings(strategy=own))
    assert own.init_args.start_method == "popen"


@pytest.mark.parametrize(("asked", "used"), [("16-mixed", "bf16-mixed"), ("16-true", "bf16-true")])
def test_float16_becomes_bfloat16_on_a_cpu(run: Run, asked: str, used: str) -> None:
    outcome = run("fit", *DIGITS, *SHORT, "--accelerator", "cpu", "--precision", asked, "--run_dir", "run")
    assert outcome.code == 0
    assert outcome.err.splitlines() == [f"{PREFIX}--precision {asked} is for GPUs: on the CPU {used} is used."]
    assert json.loads(Path("run/results.json").read_text())["device"]["precision"] == used
    assert yaml.safe_load(Path("run/config.yaml").read_text())["trainer"]["precision"] == used


# --- channels_last, compile, fused


class Losses(Callback):
    """The loss and the learning rate of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, *args: object) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: Trainer, pl_module: object, outputs: dict[str, torch.Tensor], *args: object) -> None:
        self.losses.append(float(outputs["loss"]))


def loader(N: int = 56, batch_size: int = 16) -> DataLoader[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    image_NCHW = torch.rand(N, 3, 8, 8, generator=generator)
    return DataLoader(TensorDataset(image_NCHW, torch.arange(N) % 3), batch_size=batch_size)


def classifier(optimizer: type = Adam, fused: bool | None = None, **given: object) -> LitClassifier:
    seed_everything(1, verbose=False)
    factory = partial(optimizer, lr=1e-3, fused=fused, **({"momentum": 0.9} if optimizer is SGD else {}))
    network = {"network_args": {"widths": [8, 16], "dropout": 0.0}}
    return LitClassifier(["a", "b", "c"], [3, 8, 8], [0.5] * 3, [0.3] * 3, **network, optimizer=factory, **given)


def short_trainer(callbacks: list[Callback], **given: object) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", devices=1, callbacks=callbacks, log_every_n_steps=1, **quiet, **given)


def fitted(model: LitClassifier, max_epochs: int = 1, ckpt_path: Path | None = None, **given: object) -> tuple[Trainer, Losses]:
    watch = Losses()
    trainer = short_trainer([watch], max_epochs=max_epochs, **given)
    trainer.fit(model, loader(), ckpt_path=ckpt_path, weights_only=True)
    return trainer, watch


def weights(model: LitClassifier) -> torch.Tensor:
    return torch.cat([parameter.detach().contiguous().flatten().float() for parameter in model.parameters()])


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-5), ("bf16-mixed", 1e-2), ("bf16-true", 3e-2)])
def test_channels_last_changes_no_loss_and_no_checkpoint(precision: str, tolerance: float) -> None:
    plain, last = classifier(), classifier(channels_last=True)
    losses = [fitted(model, precision=precision)[1].losses for model in (plain, last)]
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], abs=tolerance)
    convolutions = [module for module in last.network.modules() if isinstance(module, torch.nn.Conv2d)]
    assert all(conv.weight.is_contiguous(memory_format=torch.channels_last) for conv in convolutions)
    assert not convolutions[1].weight.is_contiguous()
    assert last.state_dict().keys() == plain.state_dict().keys()
    assert last.hparams == plain.hparams
    assert not {"channels_last", "compile"} & set(last.hparams)


@pytest.mark.parametrize(
    ("optimizer", "precision", "tolerance"),
    [
        (Adam, "32-true", 1e-6),
        (AdamW, "bf16-mixed", 1e-6),
        (SGD, "bf16-mixed", 1e-6),
        (SGD, "bf16-true", 1e-2),
        (AdamW, "bf16-true", 1e-2),
    ],
)
def test_fused_optimizers_take_the_same_steps(optimizer: type, precision: str, tolerance: float) -> None:
    """Clipped too, which Lightning by itself refuses in mixed precision."""
    after = []
    for fused in (None, True):
        model = classifier(optimizer, fused, scheduler=partial(WarmupCosine, warmup=0.5))
        trainer, watch = fitted(model, precision=precision, gradient_clip_val=0.1)
        assert trainer.optimizers[0].defaults["fused"] is fused
        assert watch.rates == pytest.approx([0.0005, 0.001, 0.001, 0.0005])
        after.append(weights(model))
    assert float((after[1] - after[0]).abs().max()) <= tolerance
    unclipped = classifier(optimizer, True, scheduler=partial(WarmupCosine, warmup=0.5))
    fitted(unclipped, precision=precision)
    if optimizer is SGD:  # Adam's steps have one size whatever the gradients'
        assert float((weights(unclipped) - after[1]).abs().max()) > 1e-5


@pytest.mark.parametrize("before", [{}, {"channels_last": True}, {"channels_last": True, "fused": True}], ids=str)
@pytest.mark.parametrize("after", [{"fused": True}, {"channels_last": True, "fused": True}], ids=str)
def test_a_run_goes_on_with_other_flags(before: dict[str, bool], after: dict[str, bool], tmp_path: Path) -> None:
    """Unless the optimizer's state is laid out as the weights are, a fused optimizer mixes them up without a word."""
    whole = classifier()
    fitted(whole, max_epochs=2)
    begun, rest = classifier(**before), classifier(**after)
    fitted(begun)[0].save_checkpoint(tmp_path / "begun.ckpt")
    fitted(rest, max_epochs=2, ckpt_path=tmp_path / "begun.ckpt")
    torch.testing.assert_close(weights(rest), weights(whole), atol=2e-5, rtol=0)


class CompilesNoMore(Callback):
    """From the second epoch on a step that has to be compiled is an error."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.compiler.set_stance("fail_on_recompile")


@pytest.mark.slow
@pytest.mark.parametrize(("channels_last", "precision", "tolerance"), [(False, "32-true", 1e-5), (True, "bf16-mixed", 2e-2)])
def test_compile_changes_no_loss_and_is_done_in_the_first_epoch(channels_last: bool, precision: str, tolerance: float) -> None:
    plain, compiled = classifier(), classifier(fused=True, channels_last=channels_last, compile=True)
    eager, watch = fitted(plain, max_epochs=3, precision=precision)[1], Losses()
    try:
        trainer = short_trainer([watch, CompilesNoMore()], max_epochs=3, precision=precision)
        trainer.fit(compiled, loader())
        (scores,) = trainer.test(compiled, loader(N=33), verbose=False)  # its last batch is of one image
    finally:
        torch.compiler.set_stance("default")
    assert watch.losses == pytest.approx(eager.losses, abs=tolerance)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    (expected,) = trainer.test(plain, loader(N=33), verbose=False)
    assert scores["test/loss"] == pytest.approx(expected["test/loss"], abs=5 * tolerance)


def test_without_a_compiler_compile_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(
        UserError, match="does not work here: InvalidCxxCompiler: No working C\\+\\+ compiler found\nIt needs a C"
    ):
        fitted(classifier(compile=True))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="its compiler is found in another way")
def test_a_missing_compiler_is_no_traceback(tmp_path: Path) -> None:
    nothing = {**os.environ, "CXX": str(tmp_path / "no-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    args = ["fit", *DIGITS, *SHORT, "--accelerator", "cpu", "--model.compile", "true"]
    done = call(*args, cwd=tmp_path, env=nothing)
    assert done.returncode == 1
    told = done.stderr.splitlines()
    assert told[-2].startswith(f"{PREFIX}--model.compile true: torch.compile does not work here: InvalidCxxCompiler")
    assert "apt install g++" in told[-1]
    assert "Traceback" not in done.stderr


# --- scale_lr


def test_scale_lr_multiplies_the_rate_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    _, plain = fitted(classifier(), accumulate_grad_batches=4)
    assert plain.rates == [0.001] * 4
    assert "Learning rate" not in capsys.readouterr().out
    model = classifier(scale_lr=True, scheduler=WarmupCosine)
    trainer, scaled = fitted(model, accumulate_grad_batches=2)
    assert scaled.rates[0] == pytest.approx(0.002)
    assert trainer.lr_scheduler_configs[0].scheduler.base_lrs == pytest.approx([0.002])
    assert "Learning rate: 0.001 x 2 batches a step = 0.002\n" in capsys.readouterr().out
    assert model.hparams["scale_lr"] is True
    assert model.hparams["optimizer"]["lr"] == 0.001


@pytest.mark.parametrize("schedule", [None, partial(WarmupCosine, warmup=0.0)])
@pytest.mark.parametrize(
    ("before", "after", "factor"),
    [((True, 4), (True, 2), 2), ((True, 2), (False, 2), 1), ((False, 1), (True, 4), 4), ((True, 2), (True, 2), 2)],
)
def test_a_continued_run_is_scaled_anew(schedule, before, after, factor, tmp_path: Path) -> None:
    (was_scaled, accumulated), (scaled, accumulates) = before, after
    begun, rest = (classifier(scale_lr=on, scheduler=schedule) for on in (was_scaled, scaled))
    trainer, _ = fitted(begun, accumulate_grad_batches=accumulated)
    trainer.save_checkpoint(tmp_path / "begun.ckpt")
    saved = torch.load(tmp_path / "begun.ckpt", weights_only=True)
    assert saved["lr_factor"] == (accumulated if was_scaled else 1)
    _, watch = fitted(rest, max_epochs=2, ckpt_path=tmp_path / "begun.ckpt", accumulate_grad_batches=accumulates)
    share = saved["optimizer_states"][0]["param_groups"][0]["lr"] / 0.001 / saved["lr_factor"]
    assert watch.rates[0] == pytest.approx(0.001 * factor * share, abs=1e-9)
    if schedule is not None:
        assert rest.lr_schedulers().base_lrs == pytest.approx([0.001 * factor])


# --- Several processes


def call(*args: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lit_guide", *args]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the gloo build for Windows needs a network name that CI lacks")
def test_all_flags_at_once_in_two_processes(tmp_path: Path) -> None:
    fast = ["--model.channels_last", "true", "--model.compile", "true", "--model.optimizer.fused", "true"]
    two = [
        "--accelerator",
        "cpu",
        "--devices",
        "2",
        "--strategy",
        "ddp_spawn",
        "--precision",
        "16-mixed",
        "--model.scale_lr",
        "true",
    ]
    exports = ["--export.torchscript.enabled", "true", "--trainer.max_epochs", "3", "--trainer.gradient_clip_val", "1.0"]
    done = call("fit", *DIGITS, *SHORT, *exports, *two, *fast, "--run_dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Learning rate: 0.002 x 2 batches a step = 0.004\n" in done.stdout
    assert [line.removeprefix(PREFIX) for line in done.stderr.splitlines() if line.startswith(PREFIX)] == [
        "--strategy ddp_spawn is for notebooks: ddp is used, which starts the same processes.",
        "--precision 16-mixed is for GPUs: on the CPU bf16-mixed is used.",
    ]
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert (results["device"]["devices"], results["device"]["precision"]) == (2, "bf16-mixed")
    assert (results["epochs"], results["steps"]) == (3, 30)
    for split, images in (("val", 270), ("test", 359)):
        matrix_KK = torch.tensor(results[split]["confusion_matrix"])
        assert int(matrix_KK.sum()) == images
        assert results[split]["accuracy"] == pytest.approx(float(matrix_KK.diagonal().sum() / images), abs=1e-6)
    assert results["test"]["accuracy"] > 0.8
    assert [entry["format"] for entry in results["exports"]] == ["torchscript"]
    assert results["exports"][0]["max_abs_diff"] < 1e-4


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not say which cores are ours")
def test_the_cores_that_are_there_are_those_this_process_may_use() -> None:
    all_of_them = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(all_of_them)})
        assert what_is_there().startswith("This machine has 1 CPU cores")
        with pytest.raises(ConfigError, match="--devices 3: there are 2 CPU cores to use at most"):
            fit_to_machine(settings(devices="3"))
    finally:
        os.sched_setaffinity(0, all_of_them)


def test_barebones_is_refused_in_plain_words(run: Run) -> None:
    outcome = run("fit", *DIGITS, "--trainer.barebones", "true")
    assert outcome.code == 2
    told = "takes away the checkpoints and metrics that a run is made of: leave it out."
    assert outcome.err == f"{PREFIX}--trainer.barebones true {told}\n"
