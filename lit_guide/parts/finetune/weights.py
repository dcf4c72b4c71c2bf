"""`model.weights FILE`: the weights of a checkpoint for a network that may have other classes."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_guide.engine.errors import ConfigError, UserError, is_first, printable, say
from lit_guide.engine.machine import expanded
from lit_guide.engine.run.checkpoint import read_checkpoint
from lit_guide.engine.zoo import Normalized
from lit_guide.parts.finetune.layers import head_of

NETWORK = "network."  # how the names of a model's network begin in its checkpoints


def start_from(network: Normalized, file: str | Path, now: Mapping[str, Any]) -> dict[str, Any]:
    """Give a network the weights of a file: the body, the normalisation before it, and the head where the classes are the same.

    What was taken, and what is new, is printed.

    Args:
        network: as it was built.
        file: a checkpoint, or a .safetensors of ours, or of torchvision's or another library's network.
        now: hyperparameters of the model: class_names, network and network_args.

    Returns:
        The hyperparameters that come with the weights: mean and std.

    Raises:
        ConfigError: there is no such file, or it is of another network.
        UserError: it can't be read.
    """
    if "://" not in str(file) and not (file := Path(expanded(file))).is_file():
        raise ConfigError(f"model.weights: there is no file {file}.")
    checkpoint = read_checkpoint(file)
    saved = checkpoint["hyper_parameters"]
    if (of := str(saved.get("network", now["network"]))) != now["network"]:
        how = f": take it with --model.network {of}" if re.fullmatch(r"[\w.]{1,200}", of) else ""
        raise ConfigError(f"{file} holds the network {printable(of)[:200]}, but {now['network']} is given{how}.")
    given = _names_as_here(checkpoint["state_dict"])
    own = network.state_dict()
    head = f"body.{head_of(network.body, len(now['class_names']))}."
    taken, lacking = dict[str, Tensor](), list[str]()
    for name, before in own.items():
        after = given.get(name)
        if name.startswith(head):
            continue
        if after is not None and after.shape != before.shape and name == _first(own):
            after = _for_channels(after, before)
        if after is not None and after.shape == before.shape and after.is_floating_point() == before.is_floating_point():
            taken[name] = after
        elif name not in ("mean_C11", "std_C11") and not name.endswith("num_batches_tracked"):  # those of the data; a mere count
            lacking.append(name)
    if lacking:
        shown = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        built = printable(str(saved.get("network_args") or {}))[:200]
        how = f"Use the network_args {built}, and for a ViT the data.image_size, of its training."
        what = f"{len(lacking)} of {len(own)} weights are not in it, or of another size: {printable(shown)}"
        raise ConfigError(f"{file} does not fit {now['network']}: {what}. {how}")
    classes, trained = list(now["class_names"]), saved.get("class_names")
    if not (isinstance(trained, list | tuple) and all(isinstance(name, str) for name in trained)):
        trained = []
    row = {name: at for at, name in enumerate(trained)}
    old = {name: given[name] for name in own if name.startswith(head) and name in given}
    shapes = [{name: value.shape for name, value in one.items() if name.startswith(head)} for one in (old, own)]
    same = row.keys() == set(classes) and len(row) == len(trained) and shapes[0] == shapes[1]
    if same:  # they may stand in another order
        taken |= {name: value[[row[one] for one in classes]] for name, value in old.items()}
    if odd := [name for name, value in taken.items() if not value.isfinite().all()]:
        raise UserError(f"{file}: its {printable(odd[0])} is not finite: use another file.")
    network.load_state_dict({**own, **taken})
    if is_first():
        say(_told(file, taken, own, trained, classes, same))
    return {key: network.get_buffer(f"{key}_C11").flatten().tolist() for key in ("mean", "std")}


def _names_as_here(state_dict: Mapping[Any, Tensor]) -> dict[str, Tensor]:
    """The weights of the network by their names in `Normalized`; those of another library's file are of its body."""
    whole = {name: value for name, value in state_dict.items() if isinstance(name, str) and _is_plain(value)}
    if any(name.startswith(NETWORK) for name in whole):
        return {name.removeprefix(NETWORK): value for name, value in whole.items() if name.startswith(NETWORK)}
    return {f"body.{name}": value for name, value in whole.items()}


def _is_plain(value: Tensor) -> bool:
    return value.layout == torch.strided and not (value.is_meta or value.is_quantized or value.is_complex())


def _first(own: Mapping[str, Tensor]) -> str:
    """The filters that see the image."""
    return next((name for name, value in own.items() if value.ndim == 4), "")


def _for_channels(filters_OCHW: Tensor, like_OCHW: Tensor) -> Tensor:
    """Filters for another number of channels: averaged over theirs, as for torchvision's weights."""
    if (
        filters_OCHW.ndim != 4
        or not filters_OCHW.shape[1]
        or filters_OCHW.shape[0] != like_OCHW.shape[0]
        or filters_OCHW.shape[2:] != like_OCHW.shape[2:]
    ):
        return filters_OCHW
    mean_O1HW = filters_OCHW.mean(dim=1, keepdim=True) * filters_OCHW.shape[1] / like_OCHW.shape[1]
    return mean_O1HW.expand_as(like_OCHW).clone()


def _told(
    file: str | Path,
    taken: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    trained: Sequence[str],
    classes: Sequence[str],
    same: bool,
) -> str:
    numbers = sum(value.numel() for value in taken.values())
    whole = sum(value.numel() for value in own.values())
    was = f", which was of {len(trained)} others" if trained and not same else ""
    head = (
        "and the head is its own too: the classes are the same" if same else f"the head is new, for {len(classes)} classes{was}"
    )
    return f"Weights of {file}: {numbers:,} of {whole:,} numbers are taken; {head}."
