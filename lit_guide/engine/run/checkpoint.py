"""Reading checkpoints that may come from anywhere: no code in them runs, and what is wrong with one is said in a line."""

import inspect
import json
import math
import pickle
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import lightning
from lightning.pytorch import LightningModule
from safetensors import safe_open

from lit_guide.engine.allowed import how_to_allow, import_class, is_allowed
from lit_guide.engine.errors import ConfigError, UserError, printable
from lit_guide.engine.run import bounded, runs

SUFFIX = ".safetensors"  # a file to share, which can hold no code
READING = ("crop", "white_level", "least_side")  # how the data read photos, kept beside the weights: `predict` reads them so too
LARGEST = 1 << 26  # numbers of an image
M = TypeVar("M", bound=LightningModule)
NAMED = ("network", "optimizer", "scheduler", "loss")  # hyperparameters that are a class by name
CODE = ("class_path", "_class_path", "_instantiator")  # keys by which jsonargparse and Lightning would import what is named


def read_checkpoint(path: str | Path, device: str = "cpu") -> dict[str, Any]:
    """Load a checkpoint onto a device, or a .safetensors onto the CPU; only tensors and plain values are accepted.

    Returns:
        The Lightning checkpoint; "hyper_parameters" are plain values, empty where the model kept none; READING is beside.

    Raises:
        ConfigError: the path is a URL or is not there.
        UserError: the file is broken, holds pickled objects or what is of no use, or names code to import.
    """
    if "://" in str(path):
        raise ConfigError(f"--ckpt_path {path}: checkpoints are read from disk only. Download it, then give the file.")
    path = Path(path)
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link that leads nowhere.{_alternative(path)}")
    if not path.is_file():
        raise ConfigError(f"There is no checkpoint {path}. Give a file with --ckpt_path, or a run with --run DIR.")
    try:
        is_shared = path.suffix == SUFFIX
        checkpoint = read_weights(path) if is_shared else bounded.load_tensors(path, device)
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line), "")
        raise UserError(
            f"{path} was refused: it is not a checkpoint of plain tensors and values{_in_brackets(reason)}. "
            f"Loading it could run code.{_alternative(path)}"
        ) from None
    except Exception as error:  # unpickling what is no pickle raises anything
        raise UserError(f"{path} can't be read; it is truncated or not a checkpoint{_in_brackets(str(error))}."
                        f"{_alternative(path)}") from None  # fmt: skip
    needed = ("state_dict", "epoch", "global_step")
    if lacking := [key for key in needed if not isinstance(checkpoint, dict) or checkpoint.get(key) is None]:
        raise UserError(f"{path} is not a checkpoint of a LightningModule: it has no {lacking[0]}.{_alternative(path)}")
    kept = checkpoint.get("hyper_parameters")
    hyper_parameters = checkpoint["hyper_parameters"] = {} if kept is None else kept
    if "crop" not in checkpoint and isinstance(hyper_parameters, dict):  # until version 0.1 a hyperparameter of the model
        checkpoint["crop"] = hyper_parameters.pop("crop", None)
    try:
        fault = bounded.misfit(checkpoint) or _fault_in(hyper_parameters)
    except RecursionError:
        fault = "its values are nested too deeply"
    if fault:
        raise UserError(f"{path} was refused: {fault}. Nothing that it names was imported.")
    return {**dict.fromkeys(READING), **checkpoint}


def reading_of(data: Any) -> dict[str, Any]:
    """What a checkpoint keeps of how the data read photos; what data of one's own call by the same names is another thing."""
    found = ((key, getattr(data, key, None)) for key in READING)
    return {key: None if bounded.misfit({key: value}) else value for key, value in found}


def read_weights(path: Path) -> dict[str, Any]:
    """A file of `write_weights` in the form of a checkpoint: "state_dict" and, where it has them, "hyper_parameters".

    Raises a SafetensorError where the file is broken or of another kind, a ValueError where its hyperparameters are no JSON.
    """
    with safe_open(path, "pt") as file:
        about = file.metadata() or {}
        checkpoint = {"state_dict": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118  # no mapping
    checkpoint |= {key: json.loads(about[key]) for key in ("hyper_parameters", *READING) if key in about}
    # Lightning asks a checkpoint for these before it takes the weights out.
    nothing: dict[str, Any] = {"epoch": 0, "global_step": 0, "optimizer_states": [], "lr_schedulers": []}
    return {**checkpoint, **nothing, "pytorch-lightning_version": lightning.__version__}


def check_plain(hyper_parameters: Mapping[str, Any], model: type[LightningModule]) -> None:
    """Refuse, before training, hyperparameters for which `read_checkpoint` would refuse the checkpoint, by a ConfigError."""
    for key, value in hyper_parameters.items():
        if fault := _fault_in({key: value}):
            raise ConfigError(
                f"A checkpoint of {model.__name__} could not be read again: {fault}. "
                f"Leave it out: self.save_hyperparameters(ignore=[{key!r}])"
            )


def check_hyper_parameters(checkpoint: Mapping[str, Any], model: type[LightningModule], path: str | Path) -> None:
    """Refuse hyperparameters that a class of models can't be built from.

    Raises:
        UserError: it does not take one of them, or needs others; the message names them.
    """
    saved, takes = checkpoint["hyper_parameters"], {parameter.name: parameter for parameter in parameters_of(model)}
    if takes and not saved:
        kept = "self.save_hyperparameters() in its __init__ keeps them"
        raise UserError(
            f"{path} is not a checkpoint of {model.__name__}: it has no hyper_parameters; {kept}."
            f"{_alternative(Path(path), needed='hyper_parameters')}"
        )
    # `weights` is no key of a checkpoint of ours: it would start a download.
    if strange := [key for key in saved if key not in takes or key == "weights"]:
        raise UserError(
            f"{path} was refused: its hyperparameters hold {strange[0]!r}, which {model.__name__} does not take. "
            "If it is of another class, give that with --model CLASS. Nothing that it names was imported."
        )
    if missing := [key for key, value in takes.items() if value.default is value.empty and key not in saved]:
        raise UserError(f"{path} was refused: its hyperparameters lack {', '.join(missing)}, which {model.__name__} takes.")


def load_model(path: str | Path, model: type[M]) -> tuple[M, dict[str, Any]]:
    """The trained model of a checkpoint, on the CPU, float32, in evaluation mode, and the checkpoint; raises as the two above."""
    checkpoint = read_checkpoint(path)
    check_hyper_parameters(checkpoint, model, path)
    saved, what = checkpoint["hyper_parameters"], f"hyperparameters do not fit {model.__name__}"
    try:
        names, shape = saved.get("class_names") or (), saved.get("input_shape") or ()
        # What grows with them: the matrix of how classes are confused, an image to try.
        if len(names) ** 2 > 256 * Path(path).stat().st_size + LARGEST or not 0 < math.prod(shape) < LARGEST:
            raise ValueError(f"{len(names):,} class_names for so few weights, or input_shape {shape}")
        with bounded.no_larger_than(checkpoint["state_dict"]):
            built = model(**saved)
        what = "weights do not fit the network it names"
        built.load_state_dict(checkpoint["state_dict"])
    except Exception as error:  # a model of one's own may raise anything
        raise UserError(f"{path}: its {what}: {str(error)[:2000] or type(error).__name__}") from None
    return built.float().eval(), checkpoint


def model_of(run_dir: Path | None, usual: type[LightningModule], named: str | None = None) -> type[LightningModule]:
    """The class of a run's model: the one that is named, or that its config.yaml names, else the usual one."""
    config = runs.read_config(run_dir) if run_dir is not None else {}
    path = named or (config["model"].get("class_path") if isinstance(config.get("model"), dict) else None)
    return usual if path is None else import_class(str(path), LightningModule, "model")


def parameters_of(model: type[LightningModule]) -> list[inspect.Parameter]:
    """What the `__init__` of a class takes by name."""
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [parameter for parameter in inspect.signature(model).parameters.values() if parameter.kind in by_name]


def check_fits(checkpoint: Mapping[str, Any], now: Mapping[str, Any], path: str | Path) -> None:
    """Refuse to use a checkpoint with other classes, another network or another input size.

    Args:
        checkpoint: what `read_checkpoint` returned.
        now: the hyperparameters of the model that is to get its weights.
        path: the checkpoint's file, for the message.

    Raises:
        UserError: other classes; with both lists.
        ConfigError: another network or input size.
    """
    saved = checkpoint["hyper_parameters"]
    trained, given = saved.get("class_names"), now.get("class_names")
    if isinstance(trained, list | tuple) and isinstance(given, list | tuple) and list(trained) != list(given):
        listed = [f"({len(names)}): {printable(', '.join(map(str, names[:1000])))}" for names in (trained, given)]
        raise UserError(
            f"{path} and the data disagree on the classes.\n  checkpoint {listed[0]}\n  data {listed[1]}\n"
            "Use the data it was trained on, or train anew."
        )
    for key in ("network", "network_args", "input_shape"):
        # As JSON: a .safetensors has lists where a checkpoint has tuples.
        if key in saved and key in now and json.dumps(saved[key]) != json.dumps(now[key]):
            raise ConfigError(
                f"{path} was trained with {key} {printable(str(saved[key]))[:500]}, but {now[key]} is given. "
                f"Take {'data.image_size' if key == 'input_shape' else f'model.{key}'} back, or train anew."
            )


def _fault_in(hyper_parameters: Mapping[str, Any]) -> str:
    """What makes hyperparameters unfit to be passed to any class; empty where nothing does."""
    for key, value in hyper_parameters.items():
        if not _is_plain({key: value}):
            return f"its hyperparameter {key!r} is no plain value"
        name = value.get("name") if isinstance(value, dict) else value
        # What has no dot imports nothing; of paths, those are allowed that may be imported.
        if key in NAMED and isinstance(name, str) and "." in name and not is_allowed(name):
            is_path = all(part.isidentifier() for part in str(name).split("."))
            why = f"of a package that may not be imported ({how_to_allow(str(name))})" if is_path else "not the name of a class"
            return f"its hyperparameter {key!r} is {str(name)!r}, {why}"
    return ""


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) and k not in CODE and _is_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, str | bool | int | float)


def _in_brackets(reason: str) -> str:
    return f" ({reason.strip().splitlines()[0][:200]})" if reason.strip() else ""


def _alternative(path: Path, needed: str = "state_dict") -> str:
    others = [other for other in path.parent.glob("[!.]*.ckpt") if other != path and other.is_file()]
    for other in sorted(others, key=lambda other: -other.stat().st_mtime):
        with suppress(Exception):  # whatever is wrong with that one, it is not the one to offer
            if needed in bounded.load_tensors(other, "meta"):
                return f" Use {other} instead."
    return " Use another checkpoint, or train anew."
