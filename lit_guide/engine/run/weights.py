"""The best weights as .safetensors: a file to share, which can hold no code."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning
import safetensors.torch
from safetensors import safe_open

from lit_guide import __version__
from lit_guide.engine.errors import UserError
from lit_guide.engine.run.runs import whole_file

SUFFIX = ".safetensors"
READING = ("crop", "white_level")  # how the data read photos, kept beside the weights: `predict` reads them so too


def write_weights(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint's weights, its hyperparameters as JSON beside them in the file's header, unless JSON can't hold them."""
    # Cloned: safetensors refuses tensors that share memory, as tied weights do, and other layouts, such as channels_last.
    weights = {name: tensor.contiguous().clone() for name, tensor in checkpoint["state_dict"].items()}
    about = {"version": __version__, **{key: json.dumps(checkpoint.get(key)) for key in READING}}
    with suppress(TypeError):
        about["hyper_parameters"] = json.dumps(checkpoint["hyper_parameters"])
    try:
        with whole_file(path) as partial:
            partial.write_bytes(safetensors.torch.save(weights, about))
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror}. The checkpoint is safe.") from None


def read_weights(path: Path) -> dict[str, Any]:
    """A file of `write_weights` in the form of a checkpoint: "state_dict" and, where it has them, "hyper_parameters".

    Raises:
        safetensors.SafetensorError: the file is broken or of another kind.
        ValueError: its hyperparameters are no JSON.
    """
    with safe_open(path, "pt") as file:
        about = file.metadata() or {}
        checkpoint = {"state_dict": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118  # no mapping
    checkpoint |= {key: json.loads(about[key]) for key in ("hyper_parameters", *READING) if key in about}
    # Lightning asks a checkpoint for these before it takes the weights out.
    nothing: dict[str, Any] = {"epoch": 0, "global_step": 0, "optimizer_states": [], "lr_schedulers": []}
    return {**checkpoint, **nothing, "pytorch-lightning_version": lightning.__version__}
