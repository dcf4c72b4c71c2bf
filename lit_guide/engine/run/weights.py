"""Reading weights from .safetensors: a file to share, which can hold no code. export/weights.py writes it."""

import json
from pathlib import Path
from typing import Any

import lightning
from safetensors import safe_open

SUFFIX = ".safetensors"


def read_weights(path: Path) -> dict[str, Any]:
    """A file of `write_weights` in the form of a checkpoint: "state_dict" and, where it has them, "hyper_parameters".

    Raises:
        safetensors.SafetensorError: the file is broken or of another kind.
        ValueError: its hyperparameters are no JSON.
    """
    with safe_open(path, "pt") as file:
        about = file.metadata() or {}
        checkpoint = {"state_dict": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118  # no mapping
    checkpoint |= {key: json.loads(about[key]) for key in ("hyper_parameters", "crop") if key in about}
    # Lightning asks a checkpoint for these before it takes the weights out.
    nothing: dict[str, Any] = {"epoch": 0, "global_step": 0, "optimizer_states": [], "lr_schedulers": []}
    return {**checkpoint, **nothing, "pytorch-lightning_version": lightning.__version__}
