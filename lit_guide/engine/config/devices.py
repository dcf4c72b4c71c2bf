"""Which devices, processes and precision a run gets: checked, and fitted to this machine, before Lightning sees them."""

import os
import re
from difflib import get_close_matches
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.fabric.plugins.environments.lsf import LSFEnvironment
from lightning.fabric.plugins.environments.mpi import MPIEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.strategies import StrategyRegistry

from lit_guide.engine.errors import ConfigError, warn
from lit_guide.engine.machine import ON_CPU, PRECISIONS, usable_cores

PACKAGE = __name__.split(".")[0]
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")
STRATEGIES = ("auto", "ddp", "ddp_spawn", "fsdp")
# What they are called elsewhere; by spelling alone, fp16 would be nearest to bf16-true.
ALSO_CALLED = {"fp32": "32-true", "float32": "32-true", "fp16": "16-mixed", "float16": "16-mixed", "half": "16-mixed"}
FUSED = "init_args.optimizer.init_args.fused"
STARTERS = (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment)


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
    kind = _kind(trainer.accelerator)
    if kind == "tpu":
        return
    count = _count(trainer.devices, kind)
    _check_strategy(trainer, kind, count)
    _check_nodes(trainer, count)
    alone = count == trainer.num_nodes == 1 and trainer.strategy in ("auto", "single_device")
    if trainer.sync_batchnorm and kind != "cuda" and not alone:
        raise misfit("--trainer.sync_batchnorm true works between NVIDIA GPUs only: take it out.")
    precision = str(trainer.precision)
    if kind == "cpu" and precision in ON_CPU:
        trainer.precision = ON_CPU[precision]
        warn(f"--precision {precision} is for GPUs: on the CPU {trainer.precision} is used.")
    elif precision in ("16", "16-mixed") and trainer.gradient_clip_val and config.model.get(FUSED):
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
    return ConfigError(f"{message} {what_is_there()} `lit-guide doctor` says what works here.")


def no_precision(given: str) -> ConfigError:
    """The error for a precision that there is not."""
    return misfit(f"--precision {given}: there is no such precision. {_nearest(given, PRECISIONS)}")


def _kind(accelerator: str) -> str:
    """cpu, cuda, mps or tpu."""
    if accelerator not in ACCELERATORS:
        raise misfit(f"--accelerator {accelerator}: there is no such accelerator. {_nearest(accelerator, ACCELERATORS)}")
    there = [name for name, cls in (("mps", MPSAccelerator), ("cuda", CUDAAccelerator)) if cls.is_available()]
    if accelerator == "auto":
        return there[0] if there else "cpu"
    if accelerator == "gpu" and there:
        return there[0]
    if accelerator in ("gpu", "cuda", "mps") and accelerator not in there:
        raise misfit(f"--accelerator {accelerator}: there is none. Use --accelerator cpu or auto.")
    return accelerator


def _count(devices: Any, kind: str) -> int:
    """How many devices of this kind are meant."""
    there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(kind, max(2, usable_cores()))
    text = str(devices).strip("[] ")
    if text == "auto" or (text == "-1" and kind != "cpu"):
        return 1 if kind == "cpu" else there
    if not re.fullmatch(r"\d+(\s*,\s*\d+)*,?", text):
        raise misfit(f"--devices {text} is no number of devices, such as 2, no list of GPUs, such as 0,2, and not auto.")
    numbers = [int(number) for number in text.split(",") if number]
    if isinstance(devices, list) or "," in text:
        if kind == "cpu":
            raise misfit(f"--devices {text} is a list, but CPU processes are only counted: --devices {len(numbers)}.")
        missing = [number for number in numbers if number >= there]
        if missing or len(set(numbers)) < len(numbers):
            wrong = f"there is no GPU {missing[0]}, they count from 0" if missing else "a GPU is named twice"
            raise misfit(f"--devices {text}: {wrong}.")
        return len(numbers)
    if numbers[0] == 0:
        raise misfit("--devices 0: a run needs at least 1.")
    # Where torchrun starts the processes, each may be shown one GPU only.
    if numbers[0] > there and not (kind == "cuda" and there == 1 and TorchElasticEnvironment.detect()):
        raise misfit(f"--devices {numbers[0]}: there are {there} {'CPU cores' if kind == 'cpu' else 'GPUs'} to use at most.")
    return numbers[0]


def _check_strategy(trainer: Namespace, kind: str, count: int) -> None:
    own_class = not isinstance(trainer.strategy, str)
    name = str(trainer.strategy.class_path).rpartition(".")[2].removesuffix("Strategy") if own_class else trainer.strategy
    known = ["auto", *StrategyRegistry.available_strategies()]
    if not own_class and name not in known:
        raise misfit(f"--strategy {name}: there is no such strategy. {_nearest(name, STRATEGIES, known)}")
    if name.lower().startswith("fsdp") and kind != "cuda":
        raise misfit(f"--strategy {name} spreads a model over NVIDIA GPUs: use --strategy ddp.")
    if kind == "mps" and re.match("ddp|fsdp|deepspeed", name.lower()):
        raise misfit(f"--strategy {name}: an Apple GPU trains in one process, use --strategy auto.")
    if name == "single_device" and count > 1:
        raise misfit(f"--strategy single_device with --devices {count}: use --strategy ddp.")
    if own_class:
        if trainer.strategy.get("init_args.start_method") is not None:
            trainer.strategy.init_args.start_method = "popen"
        return
    # A process that multiprocessing starts brings back its weights only: figures, errors and signals would be lost.
    trainer.strategy = re.sub("_(spawn|fork|notebook)", "", name)
    if trainer.strategy != name:
        warn(f"--strategy {name} is for notebooks: {trainer.strategy} is used, which starts the same processes.")


def _check_nodes(trainer: Namespace, count: int) -> None:
    """Refuse several machines where nothing starts the other ones: this one would wait for them for half an hour."""
    started = any(starter.detect() for starter in STARTERS) or {"MASTER_ADDR", "NODE_RANK"} <= set(os.environ)
    if trainer.num_nodes > 1 and not started and not trainer.plugins:
        nodes = trainer.num_nodes
        raise misfit(
            f"--trainer.num_nodes {nodes} needs torchrun or srun to start this command on each machine. On all {nodes} of them: "
            f"torchrun --nnodes {nodes} --nproc-per-node {count} --rdzv-backend c10d --rdzv-endpoint FIRST_MACHINE:29500 "
            f"-m {PACKAGE} fit ...; or without it: --trainer.num_nodes 1."
        )


def _nearest(given: str, offered: tuple[str, ...], known: list[str] | None = None) -> str:
    """Did you mean this, or one of those?"""
    near = [ALSO_CALLED.get(given.lower(), "")] if given.lower() in ALSO_CALLED else []
    near += get_close_matches(given.lower(), [*offered, *(known or [])], n=1, cutoff=0.5)
    return f"Did you mean {near[0]}?" if near else f"Use one of {', '.join(offered)}."
