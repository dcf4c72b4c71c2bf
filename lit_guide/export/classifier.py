"""What `export`, `predict` and the closing table ask of a model: one protocol, and what to say where a piece is missing.

Shapes: B images a batch, C channels, H x W pixels, K classes.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from lightning.pytorch import LightningModule
from torch import Tensor

from lit_guide.engine.errors import UserError
from lit_guide.engine.run.checkpoint import parameters_of


class Classifier(Protocol):
    """A LightningModule that can be exported and asked about images.

    It may be any LightningModule: `class_names` and `input_shape` are attributes, or parameters of `__init__` that it keeps by
    `self.save_hyperparameters()`; as parameters of these names they are filled in from the data. With all of its parameters kept
    so, `export --run`, `predict` and `Predictor` can build it again. A module without these trains and tests all the same.

    Attributes:
        class_names: the K names, in the order of the logits.
        input_shape: (C, H, W) of the images.
    """

    class_names: Sequence[str]
    input_shape: Sequence[int]

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) float32 from 0 to 1 -> logits (B, K): normalisation is inside."""


def fact(model: LightningModule, name: str) -> Any:
    """`class_names` or `input_shape` of a model; None where it has none."""
    return model.hparams.get(name, getattr(model, name, None))


def missing(model: LightningModule, later: bool = False) -> list[str]:
    """Which pieces of `Classifier` a model lacks, and how to add each; empty where it has all.

    Args:
        model: any module.
        later: whether it is to be built again from its checkpoint, as `export` and `predict --images` do.
    """
    told = []
    if type(model).forward is LightningModule.forward:
        told.append("forward: def forward(self, image_BCHW): return logits_BK")
    for name, what in (("class_names", "the names of the classes"), ("input_shape", "(C, H, W) of the images")):
        if fact(model, name) is None:
            told.append(f"{name}: take {what} as the parameter {name} of __init__ and call self.save_hyperparameters()")
    if later and (lost := unkept(model)):
        told.append(f"{', '.join(lost)}: call self.save_hyperparameters() in __init__, so that checkpoints keep them")
    return told


def unkept(model: LightningModule) -> list[str]:
    """Parameters of a model's `__init__` that its checkpoints lack: required ones, and all where it keeps none."""
    takes = parameters_of(type(model))
    return [p.name for p in takes if p.name not in model.hparams and (p.default is p.empty or not model.hparams)]


def require(model: LightningModule) -> None:
    """See that a model can be asked about images.

    Raises:
        UserError: it lacks a piece of `Classifier`; the message says how to add it.
    """
    if lacking := missing(model):
        raise UserError(f"{type(model).__name__} can't predict yet. It lacks:\n  " + "\n  ".join(lacking))
