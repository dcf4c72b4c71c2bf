"""One notion of stem, blocks and head for the networks of every library, and of one's own."""

from torch import nn

HOLDERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # modules that only line up others


def head_of(network: nn.Module) -> str:
    """The name of the last layer: a Linear, or SqueezeNet's 1x1 convolution; of a network without any, the last with weights."""
    named = dict(network.named_modules())
    layers = [name for name, module in named.items() if isinstance(module, nn.Linear | nn.Conv2d)]
    return str((layers or [name for name, module in named.items() if [*module.parameters(recurse=False)]])[-1])


def blocks_of(network: nn.Module) -> list[list[str]]:
    """The names of a network's parameters, block by block: the stem first, the head last, each parameter once.

    Blocks are what a network lines up in its lists: ResNet's residual blocks, ViT's encoder layers, one convolution of the CNN. A
    norm belongs to the layer before it; what belongs to no layer, such as ViT's position embedding, to the stem. The head is the
    last layer alone: it has the classes.
    """
    head = head_of(network)
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
