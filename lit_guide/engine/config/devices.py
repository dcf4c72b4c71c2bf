"""Which devices, processes and precision a run gets: a Trainer is asked before any data are read; then what it does not know."""

import os
import re
import warnings
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator, MPSAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy, StrategyRegistry

from lit_guide.engine.errors import ConfigError, did_you_mean, warn
from lit_guide.engine.machine import ON_CPU, PRECISIONS, command, usable_cores
from lit_guide.engine.tables import is_there

PACKAGE = __name__.split(".")[0]
OFFERED = {
    "accelerator": ("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "strategy": ("auto", "ddp", "ddp_spawn", "fsdp"),
    "precision": PRECISIONS,
}
# What they are called elsewhere; by spelling alone, fp16 would be nearest to bf16-true.
ALSO_CALLED = {"fp32": "32-true", "float32": "32-true", "fp16": "16-mixed", "float16": "16-mixed", "half": "16-mixed"}
WITHOUT: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
REFUSALS = (MisconfigurationException, TypeError, ValueError, RuntimeError, ImportError)  # what a Trainer raises


def fit_to_machine(config: Namespace) -> None:
    """Check the `trainer` section of a configuration against this machine, and put in place of what has an equal here that equal.

    An accelerator or a strategy that is given as a class of its own is left to Lightning.

    Raises:
        ConfigError: what is asked for is not there or does not fit; the message says what is there.
    """
    trainer = config.trainer
    if trainer.get("barebones"):
        raise ConfigError("--trainer.barebones true takes away the checkpoints and metrics that a run is made of: leave it out.")
    if not isinstance(trainer.accelerator, str):
        return
    cuda = trainer.accelerator != "cpu" and CUDAAccelerator.is_available()
    name = _settle_strategy(trainer, cuda)
    asked = {key: trainer[key] for key in ("accelerator", "devices", "num_nodes", "strategy", "precision")}
    if not isinstance(trainer.strategy, str) or name == "single_device":  # which takes one of many devices without a word
        asked["strategy"] = "auto"
    try:
        with warnings.catch_warnings(action="ignore"):
            tried = Trainer(**asked, **WITHOUT)
    except REFUSALS as error:
        typed = " ".join(f"--{key} {value}" for key, value in asked.items() if value not in ("auto", None, 1))
        raise refused(typed.replace("--num_nodes", "--trainer.num_nodes"), error) from None
    on_cpu, count, most = isinstance(tried.accelerator, CPUAccelerator), tried.num_devices, max(2, usable_cores())
    if on_cpu and count > most:
        raise misfit(f"--devices {count}: there are {most} CPU cores to use at most.")
    if name == "single_device" and count > 1:
        raise misfit(f"--strategy single_device with --devices {count}: use --strategy ddp.")
    if trainer.sync_batchnorm and not cuda and not isinstance(tried.strategy, SingleDeviceStrategy):
        raise misfit("--trainer.sync_batchnorm true works between NVIDIA GPUs only: take it out.")
    starter = getattr(tried.strategy, "cluster_environment", None)
    by_hand = {"MASTER_ADDR", "NODE_RANK"} <= set(os.environ) or trainer.plugins
    if (nodes := trainer.num_nodes) > 1 and isinstance(starter, LightningEnvironment) and not by_hand:
        raise misfit(  # this one would wait for the others for half an hour
            f"--trainer.num_nodes {nodes} needs torchrun or srun to start this command on each machine. On all {nodes} of them: "
            f"torchrun --nnodes {nodes} --nproc-per-node {count} --rdzv-backend c10d --rdzv-endpoint FIRST_MACHINE:29500 "
            f"-m {PACKAGE} fit ...; or without it: --trainer.num_nodes 1."
        )
    precision = str(trainer.precision)
    if on_cpu and precision in ON_CPU:
        trainer.precision = ON_CPU[precision]
        warn(f"--precision {precision} is for GPUs: on the CPU {trainer.precision} is used.")
    elif (
        precision in ("16", "16-mixed") and trainer.gradient_clip_val and config.model.get("init_args.optimizer.init_args.fused")
    ):
        raise ConfigError(
            "In 16-mixed a fused optimizer can't clip gradients: use --precision bf16-mixed, or --model.optimizer.fused false."
        )


def what_is_there() -> str:
    """The devices of this machine, in a sentence."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    mps = ["Apple GPU (mps)"] if MPSAccelerator.is_available() else []
    return f"This machine has {usable_cores()} CPU cores and {', '.join(gpus + mps) or 'no GPU that torch can use'}."


def misfit(message: str) -> ConfigError:
    """The error for settings that this machine can't run."""
    doctor = f" `{command('doctor')}` says what works here." if is_there(f"{PACKAGE}.parts.doctor.command") else ""
    return ConfigError(f"{message} {what_is_there()}{doctor}")


def refused(what: str, error: Exception) -> ConfigError:
    """The error for settings that a Trainer refused; its first two sentences say why."""
    return misfit(f"{what}: {'. '.join(' '.join(str(error).split()).split('. ')[:2]).rstrip('.!')}.")


def unknown(key: str, given: str, *more: str) -> ConfigError:
    """The error for an accelerator, strategy or precision that there is not."""
    offered = OFFERED[key]
    hint = did_you_mean(ALSO_CALLED.get(given.lower(), given), [*offered, *more], f"Use one of {', '.join(offered)}.")
    return misfit(f"--{key} {given}: there is no such {key}. {hint}")


def _settle_strategy(trainer: Namespace, cuda: bool) -> str:
    """Refuse names that there are not, and put DDP's usual processes in place of those for notebooks: the strategy's name."""
    named, known = isinstance(trainer.strategy, str), StrategyRegistry.available_strategies()
    name: str = trainer.strategy if named else trainer.strategy.class_path.rpartition(".")[2].removesuffix("Strategy")
    if trainer.accelerator not in OFFERED["accelerator"]:
        raise unknown("accelerator", trainer.accelerator)
    if named and name not in ("auto", *known):
        raise unknown("strategy", name, *known)
    if name == "ModelParallel":
        raise misfit("--strategy ModelParallel needs a model that divides itself: use --strategy fsdp, which divides any.")
    if name.lower().startswith("fsdp") and not cuda:
        raise misfit(f"--strategy {name} spreads a model over NVIDIA GPUs: use --strategy ddp.")
    # A process that multiprocessing starts brings back its weights only: figures, errors and signals would be lost.
    if named:
        trainer.strategy = re.sub("_(spawn|fork|notebook)", "", name)
        if trainer.strategy != name:
            warn(f"--strategy {name} is for notebooks: {trainer.strategy} is used, which starts the same processes.")
    elif trainer.strategy.get("init_args.start_method") is not None:
        trainer.strategy.init_args.start_method = "popen"
    return name
