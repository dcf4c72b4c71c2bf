"""Pure functions from a trained model to a verified file: TorchScript, ONNX, torch.export.

Every file takes `input`, float32 (N, C, H, W), RGB, 0 to 1, N free, and gives `output`, logits (N, K); normalisation is inside,
and class names, sizes and versions travel in it. A file gets its name only after it was loaded again and gave the
eager model's logits.
"""

import contextlib
import copy
import hashlib
import io
import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_guide import __version__
from lit_guide.engine.errors import UserError
from lit_guide.model import LitClassifier

BATCH_SIZES = (1, 3)
TOLERANCE = 1e-4  # largest absolute difference of a logit from eager, float32
METADATA = "metadata.json"  # name of the extra file in TorchScript and pt2 archives

Run = Callable[[Tensor], Tensor]


def metadata(model: LitClassifier) -> dict[str, Any]:
    """What a program needs to use the file: class names, input size and how photos are cut to it, normalisation, version."""
    hyper_parameters = model.hparams
    return {
        "class_names": hyper_parameters["class_names"],
        "input_shape": hyper_parameters["input_shape"],
        "input_range": [0.0, 1.0],
        "crop": hyper_parameters["crop"],
        "mean": hyper_parameters["mean"],
        "std": hyper_parameters["std"],
        "network": hyper_parameters["network"],
        "version": __version__,
    }


def export_torchscript(model: LitClassifier, path: Path, method: Literal["trace", "script"] = "trace") -> dict[str, Any]:
    """Write a TorchScript archive; see `_export` for what is returned and raised."""

    def write(network: nn.Module, example_BCHW: Tensor, target: Path) -> None:
        with warnings.catch_warnings():
            # torch 2.9 and later announce TorchScript's retirement; users still deploy it, and this is the one place.
            warnings.filterwarnings("ignore", "`torch.jit")
            jit: Any = torch.jit  # untyped
            warnings.simplefilter("ignore", jit.TracerWarning)  # whether the trace is right is what `parity` finds
            scripted = jit.trace(network, example_BCHW) if method == "trace" else jit.script(network)
            # Through memory: torch's own writer ends the process where the disk is full.
            buffer = io.BytesIO()
            jit.save(scripted, buffer, _extra_files={METADATA: json.dumps(metadata(model))})
        target.write_bytes(buffer.getvalue())

    def load(target: Path) -> Run:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit")
            jit: Any = torch.jit
            loaded: Run = jit.load(str(target), map_location="cpu")
        return loaded

    return {**_export("torchscript", model, path, write, load), "method": method}


def export_onnx(
    model: LitClassifier, path: Path, opset: int = 20, input_name: str = "input", output_name: str = "output"
) -> dict[str, Any]:
    """Write one self-contained ONNX file, checked in ONNX Runtime; see `_export` for what is returned and raised."""
    import onnx
    import onnxruntime

    def write(network: nn.Module, example_BCHW: Tensor, target: Path) -> None:
        with _quiet():
            program = torch.onnx.export(
                network,
                (example_BCHW,),
                dynamo=True,
                opset_version=opset,
                input_names=[input_name],
                output_names=[output_name],
                dynamic_shapes=({0: torch.export.Dim("N")},),
                verbose=False,
            )
        assert program is not None
        proto = program.model_proto
        onnx.helper.set_model_props(proto, {key: json.dumps(value) for key, value in metadata(model).items()})
        written = {entry.domain: entry.version for entry in proto.opset_import}.get("")
        if written != opset:
            raise ValueError(f"opset {opset} can't be had for this network, only {written}")
        target.write_bytes(proto.SerializeToString())

    def load(target: Path) -> Run:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(target), options, providers=["CPUExecutionProvider"])

        def run(image_BCHW: Tensor) -> Tensor:
            (logits_BK,) = session.run([output_name], {input_name: image_BCHW.numpy()})
            return torch.from_numpy(logits_BK)

        return run

    entry = _export("onnx", model, path, write, load)
    return {**entry, "opset": opset, "input": input_name, "output": output_name}


def export_program(model: LitClassifier, path: Path) -> dict[str, Any]:
    """Write a `torch.export` program; see `_export` for what is returned and raised."""

    def write(network: nn.Module, example_BCHW: Tensor, target: Path) -> None:
        with _quiet():
            program = torch.export.export(network, (example_BCHW,), dynamic_shapes=({0: torch.export.Dim("N")},))
            buffer = io.BytesIO()
            torch.export.save(program, buffer, extra_files={METADATA: json.dumps(metadata(model))})
        target.write_bytes(buffer.getvalue())

    def load(target: Path) -> Run:
        with _quiet():
            loaded: Run = torch.export.load(str(target)).module()
        return loaded

    return _export("pt2", model, path, write, load)


def _export(
    format: str,
    model: LitClassifier,
    path: Path,
    write: Callable[[nn.Module, Tensor, Path], None],
    load: Callable[[Path], Run],
) -> dict[str, Any]:
    """Write beside the target, load that file, compare it with eager, then give it its name.

    Returns:
        The entry of results.json: format, path, bytes, sha256, max_abs_diff, batch_sizes, tolerance.

    Raises:
        UserError: the exporter refuses the network, the target can't be written, or a logit differs by more than
            `TOLERANCE`; there is no file under `path` that was not there before.
    """
    # The suffix stays: torch.export.save insists on .pt2.
    partial = path.with_name(f"partial-{os.getpid()}-{path.name}")
    network = copy.deepcopy(model.network).eval().cpu()  # the model's own device and mode stay
    # Batch 2: torch.export would take a batch of one for a constant.
    example_BCHW = torch.rand(2, *model.hparams["input_shape"])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with torch.no_grad():
            try:
                write(network, example_BCHW, partial)
            except OSError:
                raise
            except Exception as error:  # exporters raise whatever they meet; the first line says what they could not do
                raise UserError(f"the {format} exporter refused the network: {_first_line(error)}") from error
            try:
                difference = parity(network, load(partial), model.hparams["input_shape"])
            except Exception as error:  # likewise: what a runtime says of a file that it can't load or run
                raise UserError(f"the {format} file can't be run; not kept: {_first_line(error)}") from error
        if not difference <= TOLERANCE:  # NaN too
            raise UserError(f"the {format} file differs from eager by {difference:.2e}, more than {TOLERANCE:.0e}; not kept")
        content = partial.read_bytes()
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return {
        "format": format,
        "path": str(path),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "max_abs_diff": difference,
        "batch_sizes": list(BATCH_SIZES),
        "tolerance": TOLERANCE,
    }


def parity(network: nn.Module, run: Run, input_shape: list[int]) -> float:
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
def _quiet() -> Iterator[None]:
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


def _first_line(error: Exception) -> str:
    while type(error).__name__ == "TorchExportError" and isinstance(error.__cause__, Exception):
        error = error.__cause__  # torch.onnx wraps what torch.export said
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"
