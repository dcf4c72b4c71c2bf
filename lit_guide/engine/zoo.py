"""Networks of other libraries by name, networks of your own by class; normalisation inside; unfit images refused.

Shapes: B images, C channels, H x W pixels, K classes.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torchvision import models

from lit_guide.engine.allowed import import_class
from lit_guide.engine.errors import ConfigError, did_you_mean, first_line

Builder = Callable[..., nn.Module]


class Normalized(nn.Module):
    """A network with its normalisation inside, so that every export takes plain pixels from 0 to 1.

    Args:
        network: maps normalised images to logits.
        mean, std: one value a channel, of pixels from 0 to 1.
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.body = network
        self.register_buffer("mean_C11", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std_C11", torch.tensor(std).view(-1, 1, 1))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """(B, C, H, W), pixels from 0 to 1 -> logits (B, K)."""
        image_BCHW = image_BCHW.to(self.mean_C11.dtype)  # that of the weights (`--precision bf16-true`); the pixels' may differ
        # (image - mean) / std in one pass; broadcasting takes six times as long over images whose channels lie side by side.
        # The epsilon is too small to change a bit of the variance, but torch 2.11 refuses 0.
        image_BCHW = F.batch_norm(image_BCHW, self.mean_C11.flatten(), self.std_C11.flatten().square(), eps=1e-30)
        logits_BK: Tensor = self.body(image_BCHW)
        return logits_BK


def library_names() -> list[str]:
    """The classification networks of torchvision."""
    names: list[str] = models.list_models(module=models)
    return names


def build(
    name: str,
    own: Mapping[str, Builder],
    channels: int,
    classes: int,
    input_size: tuple[int, int],
    weights: str | None = None,
    args: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a network by name and check that images of `input_size` go through it.

    Args:
        name: a key of `own`, a classification network of `torchvision.models`, or the dotted path of a class like those of `own`.
        own: name -> what takes channels, classes and further arguments.
        channels: channels C of the images.
        classes: number of classes K.
        input_size: (H, W) of the images.
        weights: torchvision weights to start from, such as DEFAULT; downloaded on first use.
        args: further arguments of the network's constructor.

    Returns:
        A module that maps (B, C, H, W) to (B, K).

    Raises:
        ConfigError: no such name or argument, weights that are not there, or images too small for the network.
    """
    args = dict(args or {})
    if name in own or "." in name:
        if weights is not None:
            raise ConfigError(f"model.weights is {weights}, but {name} has no pretrained weights: take the key out.")
        builder: Builder = own[name] if name in own else import_class(name, nn.Module, "model.network")
        takes = inspect.signature(builder).parameters
        known = [key for key in takes if key not in ("channels", "classes")]
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
        if strange := [key for key in args if key not in known and not takes_any]:
            hint = did_you_mean(strange[0], known, f"It takes {', '.join(known)}.")
            raise ConfigError(f"model.network_args: {name} has no argument {strange[0]!r}. {hint}")
        try:
            network = builder(channels, classes, **args)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise ConfigError(f"model.network_args: {name} can't be built with {args}: {error}.") from None
    elif name in library_names():
        if fetched := [key for key in args if key.removesuffix("_backbone") in ("weights", "pretrained")]:  # a download
            raise ConfigError(f"model.network_args: {fetched[0]} is no argument of a network here: --model.weights.")
        network = _build_torchvision(name, channels, classes, input_size, weights, args)
    else:
        hint = did_you_mean(name, [*own, *library_names()], f"Use {', '.join(own)} or a name of torchvision.models.", most=3)
        raise ConfigError(f"model.network: there is no network {name!r}. {hint}")
    _try_shape(name, network, channels, classes, input_size)
    return network


def _build_torchvision(
    name: str, channels: int, classes: int, input_size: tuple[int, int], weights: str | None, args: dict[str, Any]
) -> nn.Module:
    builder: Builder = models.get_model_builder(name)
    if name.startswith("vit_") and weights is None:
        args.setdefault("image_size", input_size[0])  # its position embedding has one entry a patch
    auxiliary = name in ("googlenet", "inception_v3")
    if auxiliary:  # `transform_input` would normalise again what is normalised already
        args = {"init_weights": False, "transform_input": False, **args}
    try:
        network = builder(weights=weights, **args) if weights else builder(num_classes=classes, **args)
    except KeyError:
        choices = [weight.name for weight in models.get_model_weights(name)]
        raise ConfigError(f"model.weights: {name} has no weights {weights!r}; it has {', '.join(choices)}.") from None
    except OSError as error:
        raise ConfigError(f"model.weights: the weights of {name} could not be downloaded ({error}). "
                          "Go online once, or leave model.weights out.") from None  # fmt: skip
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.network {name}: {error}") from None
    except AssertionError as error:  # a ViT whose patches don't tile the image
        raise _unfit(name, channels, input_size, error) from None
    if auxiliary:  # their further classifiers return a tuple in training and need 299 pixels: trained without
        for part, value in (("aux_logits", False), ("aux1", None), ("aux2", None), ("AuxLogits", None)):
            setattr(network, part, value)
    if weights:
        _replace_head(network, classes)
    if channels != 3:
        _replace_first(network, channels, pretrained=weights is not None)
    return network


def _replace_first(network: nn.Module, channels: int, pretrained: bool) -> None:
    """Give the first convolution `channels` inputs; pretrained filters are averaged over their old ones."""
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    mean_O1HW = first.weight.detach().mean(dim=1, keepdim=True) * first.in_channels / channels
    first.in_channels, first.weight = channels, nn.Parameter(mean_O1HW.repeat(1, channels, 1, 1))
    if not pretrained:
        first.reset_parameters()


def _replace_head(network: nn.Module, classes: int) -> None:
    """Give the last layer (a Linear, or SqueezeNet's 1x1 convolution) `classes` outputs."""
    name, old = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    if isinstance(old, nn.Linear):
        network.set_submodule(name, nn.Linear(old.in_features, classes, bias=old.bias is not None))
    else:
        network.set_submodule(name, nn.Conv2d(old.in_channels, classes, kernel_size=1))


def _try_shape(name: str, network: nn.Module, channels: int, classes: int, input_size: tuple[int, int]) -> None:
    """Run the network on shapes alone (meta tensors, no arithmetic), so that unfit images are refused before training."""
    meta = {key: value.to("meta") for key, value in [*network.named_parameters(), *network.named_buffers()]}
    image_BCHW = torch.empty(2, channels, *input_size, device="meta")
    before = network.training
    for training in (True, False):
        try:
            with torch.no_grad():
                logits_BK: Any = functional_call(network.train(training), meta, image_BCHW)
        except (RuntimeError, AssertionError, ValueError, TypeError) as error:
            if "meta" in str(error):  # shapes alone are too little for it
                continue
            raise _unfit(name, channels, input_size, error) from None
        finally:
            network.train(before)
        if not isinstance(logits_BK, Tensor):
            network.register_forward_hook(_take_logits)
            logits_BK = _take_logits(network, (), logits_BK)
        if getattr(logits_BK, "shape", None) != (2, classes):
            raise ConfigError(f"model.network {name} must give logits (B, {classes}), one for each class: it gives others.")


def _take_logits(network: nn.Module, args: Any, output: Any) -> Any:
    """Of what a network with auxiliary classifiers gives in training: `logits` by name, or the first value of a tuple."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    return output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", first)


def _unfit(name: str, channels: int, input_size: tuple[int, int], error: Exception) -> ConfigError:
    H, W = input_size
    return ConfigError(
        f"model.network {name} can't take images of {channels} x {H} x {W}: {first_line(error)}. "
        "Enlarge them with --data.image_size 224 (or 32, 64, ...), or use another network."
    )
