"""The best weights as .safetensors: a file to share, which can hold no code."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch

from lit_guide import __version__
from lit_guide.engine.errors import UserError
from lit_guide.engine.run.checkpoint import READING
from lit_guide.engine.run.runs import whole_file


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
