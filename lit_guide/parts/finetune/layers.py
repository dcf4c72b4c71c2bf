"""One notion of stem, blocks and head for the networks of every library, and of one's own."""

from torch import nn
from torch.nn.parameter import UninitializedParameter

from lit_guide.engine.errors import ConfigError

HOLDERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # modules that only line up others


def head_of(network: nn.Module, classes: int) -> str:
    """The name of the layer that gives one number for each class: a Linear, or a convolution such as SqueezeNet's.

    Raises:
        ConfigError: there is none, its weights are another layer's too, or weights have no size yet.
    """
    if any(isinstance(parameter, UninitializedParameter) for parameter in network.parameters()):
        raise ConfigError("The network has lazy layers, whose weights have no size yet: it can't be fine-tuned.")
    outputs = {name: getattr(layer, "out_features", getattr(layer, "out_channels", 0)) for name, layer in network.named_modules()}
    named = [name for name, count in outputs.items() if count == classes]
    if not named:
        raise ConfigError(
            f"The network has no layer of {classes} outputs, one for each class: there is no head to tell from the rest."
        )
    head = f"{named[-1]}."
    own = {id(parameter) for parameter in network.get_submodule(named[-1]).parameters()}
    if any(id(one) in own for name, one in network.named_parameters(remove_duplicate=False) if not name.startswith(head)):
        raise ConfigError(f"The head of the network, {named[-1]}, shares weights with another layer: it can't be fine-tuned.")
    return str(named[-1])


def blocks_of(network: nn.Module, classes: int) -> list[list[str]]:
    """The names of a network's parameters, block by block: the stem first, the head last, each parameter once.

    Blocks are what a network lines up in its lists: ResNet's residual blocks, ViT's encoder layers, one convolution of the CNN. A
    norm belongs to the layer before it; what belongs to no layer, such as ViT's position embedding, to the stem. The head is the
    last layer alone: it has the classes. Raises as `head_of`.
    """
    head = head_of(network, classes)
    most = sum(parameter.numel() for parameter in network.parameters()) / 2
    blocks: list[list[str]] = []
    loose: list[str] = []

    def walk(module: nn.Module, prefix: str) -> None:
        loose.extend(name for name, _ in module.named_parameters(prefix, recurse=False))
        for name, child in module.named_children():
            path = f"{prefix}.{name}" if prefix else name
            names = [name for name, _ in child.named_parameters(path)]
            if not names or path == head:
                continue
            # A module that holds most of the network is no block of it, as ViT's encoder is not.
            holds_more = isinstance(child, HOLDERS) or sum(p.numel() for p in child.parameters()) > most
            if head.startswith(f"{path}.") or (holds_more and [*child.children()]):
                walk(child, path)
            elif blocks and all(parameter.ndim <= 1 for parameter in child.parameters()):
                blocks[-1] += names
            else:
                blocks.append(names)

    walk(network, "")
    last = [name for name, _ in network.get_submodule(head).named_parameters(head)]
    if loose:
        blocks = [loose + blocks[0], *blocks[1:]] if blocks else [loose]
    return [*blocks, last]
