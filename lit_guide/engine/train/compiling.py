"""torch.compile, tried at something small before a network is trusted to it."""

import torch
from torch import Tensor, nn

from lit_guide.engine.errors import UserError


def compile_in_place(network: nn.Module, device: torch.device) -> None:
    """Compile a network with torch.compile; names and values of its weights stay what they are.

    Raises:
        UserError: torch.compile does not work here: found by a real attempt at something small.
    """
    needed = "a C++ compiler (apt install g++, xcode-select --install, or Visual Studio Build Tools)"
    if device.type == "cuda":
        needed = "a C compiler and Python's headers (apt install gcc python3-dev)"
    try:
        torch.compile(_something)(torch.zeros(8, device=device))
    except Exception as error:  # whatever torch's compiler raises where one of its tools is missing
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"--model.compile true: torch.compile does not work here: {reason}\nIt needs {needed}. "
                        "Install it, or leave --model.compile out.") from None  # fmt: skip
    network.compile()


def _something(value: Tensor) -> Tensor:
    return value.sin() + 1
