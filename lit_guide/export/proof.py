"""From a trained model to a file that proved itself: written, loaded again, compared with the model, and only then named.

Every file takes `input`, float32 (N, C, H, W), RGB, 0 to 1, N free, and gives `output`, logits (N, K); normalisation is inside,
and class names, sizes and versions travel in it.
"""

import contextlib
import copy
import hashlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lit_guide import __version__
from lit_guide.engine.errors import UserError
from lit_guide.engine.run import runs
from lit_guide.export.classifier import fact, missing
from lit_guide.model import LitClassifier

BATCH_SIZES = (1, 3)
TOLERANCE = 1e-4  # largest absolute difference of a logit from eager, float32
METADATA = "metadata.json"  # name of the extra file in TorchScript and pt2 archives

Run = Callable[[Tensor], Tensor]


def metadata(model: LightningModule, crop: float | None = None) -> dict[str, Any]:
    """What a program needs to use the file: class names, input size and how photos are cut to it, normalisation, version.

    Args:
        model: a `Classifier`.
        crop: the part of the shorter side of a photo that the data kept; None: photos are squeezed.
    """
    known = {key: model.hparams[key] for key in ("mean", "std", "network") if key in model.hparams}
    return {
        "class_names": list(fact(model, "class_names")),
        "input_shape": list(fact(model, "input_shape")),
        "input_range": [0.0, 1.0],
        "crop": crop,
        **known,
        "version": __version__,
    }


def network_of(model: LightningModule) -> nn.Module:
    """A copy of what is exported, in evaluation mode, float32, on the CPU: the model's own device and mode stay."""
    if isinstance(model, LitClassifier) and type(model).forward is LitClassifier.forward:
        return copy.deepcopy(model.network).float().eval().cpu()
    network = copy.deepcopy(model).float().eval().cpu()
    with quiet():
        network.trainer = Trainer(accelerator="cpu", barebones=True)  # TorchScript looks at every property, this one too
    return network


def prove(
    format: str,
    model: LightningModule,
    path: Path,
    write: Callable[[nn.Module, Tensor, Path], None],
    load: Callable[[Path], Run],
) -> dict[str, Any]:
    """Write beside the target, load that file, compare it with eager, then give it its name.

    Returns:
        The entry of results.json: format, path, bytes, sha256, max_abs_diff, batch_sizes, tolerance.

    Raises:
        UserError: the model is no `Classifier`, the exporter refuses it, the target can't be written, or a logit differs by
            more than `TOLERANCE`; there is no file under `path` that was not there before.
    """
    if lacking := missing(model):
        raise UserError(f"{type(model).__name__} lacks {'; '.join(lacking)}")
    network, input_shape = network_of(model), list(fact(model, "input_shape"))
    # Batch 2: torch.export would take a batch of one for a constant.
    example_BCHW = torch.rand(2, *input_shape)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with runs.whole_file(path) as partial, torch.no_grad():
            try:
                write(network, example_BCHW, partial)
            except OSError:
                raise
            except Exception as error:  # exporters raise whatever they meet; the first line says what they could not do
                raise UserError(f"the {format} exporter refused the network: {first_line(error)}") from error
            try:
                difference = parity(network, load(partial), input_shape)
            except Exception as error:  # likewise: what a runtime says of a file that it can't load or run
                raise UserError(f"the {format} file can't be run; not kept: {first_line(error)}") from error
            if not difference <= TOLERANCE:  # NaN too
                raise UserError(f"the {format} file differs from eager by {difference:.2e}, more than {TOLERANCE:.0e}; not kept")
            content = partial.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror or error}") from None
    return {
        "format": format,
        "path": str(path),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "max_abs_diff": difference,
        "batch_sizes": list(BATCH_SIZES),
        "tolerance": TOLERANCE,
    }


def parity(network: nn.Module, run: Run, input_shape: Sequence[int]) -> float:
    """Largest absolute difference of a logit between eager and `run`, over random images at each of `BATCH_SIZES`."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for batch_size in BATCH_SIZES:
        image_BCHW = torch.rand(batch_size, *input_shape, generator=generator)
        expected_BK, logits_BK = network(image_BCHW), run(image_BCHW)
        if logits_BK.shape != expected_BK.shape:  # it might broadcast to a difference of zero
            return float("inf")
        difference = (expected_BK - logits_BK).abs().max().item()
        worst = difference if difference != difference else max(worst, difference)
    return worst


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leave out what the exporters print and warn of about their own insides."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        nowhere = io.StringIO()  # they print whole graphs
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def first_line(error: Exception) -> str:
    """What an exporter could not do, without its colours and its stack."""
    while type(error).__name__ == "TorchExportError" and isinstance(error.__cause__, Exception):
        error = error.__cause__  # torch.onnx wraps what torch.export said
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"
