"""The command line before it is parsed: what belongs to one call is taken out, short forms and recipes are spelled out."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lit_guide.engine.errors import ConfigError
from lit_guide.engine.machine import expanded
from lit_guide.engine.run import runs
from lit_guide.engine.run.settings import read_settings

SHORT_FORMS = {k: f"trainer.{k}" for k in ("accelerator", "devices", "strategy", "precision")} | {"threads": "threads.count"}
RECIPES = ("--config", "-c")
EVALUATIONS = ("validate", "test", "predict")
RESUME = "Go on with --run_dir if it holds a checkpoint."

# Flag -> how argparse takes it, its help, and the commands that have it. None of them is a setting that config.yaml keeps.
CALL: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "run": ({"type": expanded}, "An earlier run's directory, or latest: its config.yaml and checkpoint.", ()),
    "ckpt_path": ({"type": expanded}, "A checkpoint to go on from or to use.", ()),
    "allow": ({"action": "append", "default": []}, "A further package whose classes may be named: one that you trust.", ()),
    "resume": ({"type": yaml.safe_load, "choices": (True, False), "default": False}, RESUME, ("fit",)),
    "run_dir": ({"type": expanded}, "Where the run goes instead of runs/<name>/<timestamp>: a new directory.", ()),
    "images": ({"type": expanded, "nargs": "+", "default": []}, "Image files and folders; else the test split.", ("predict",)),
}


@dataclass
class Call:
    """One call of a command: the flags of `CALL`, and these.

    Attributes:
        args: the command line, of settings alone: recipes are paths that exist, short forms are spelled out.
        typed: all that was typed.
        ckpt_path: the checkpoint to use, whichever flag named it.
        continued: the run that `fit` goes on with.
        resume: whether `run_dir` may hold a run that broke off before its first checkpoint.
    """

    args: list[str]
    typed: list[str]
    run: str | None = None
    ckpt_path: str | None = None
    run_dir: str | None = None
    continued: Path | None = None
    resume: bool = False
    images: list[str] = field(default_factory=list)
    allow: list[str] = field(default_factory=list)


def read_call(command: str, args: Sequence[str]) -> Call:
    """Take out what belongs to this call, and spell out the rest.

    Raises:
        ConfigError: a flag has no value, there is no such run or recipe, or an evaluation has nothing to evaluate.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name, (how, _, commands) in CALL.items():
        if not commands or command in commands:
            parser.add_argument(f"--{name}", **how)
    try:
        typed, rest = parser.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise ConfigError(f"{str(error).removeprefix('argument ')}.") from None
    if odd := [arg for arg in rest if arg != arg.encode(errors="ignore").decode()]:
        raise ConfigError(f"{odd[0]} is no UTF-8, and a setting must be: rename what it names, or make a link to it.")
    call = Call(rest, list(args), **vars(typed))
    if {"-h", "--help"} & set(rest):
        call.args = spelled_out(call.args)
        return call
    if call.resume and call.run_dir is None:
        raise ConfigError("--resume true goes on with one run, or starts it: say where it is with --run_dir DIR.")
    run = call.run
    if call.resume and (Path(str(call.run_dir)) / runs.LAST).is_file():
        # A --ckpt_path is where the run began: it has come further.
        run, call.run_dir, call.ckpt_path, call.resume = call.run_dir, None, None, False
    if call.ckpt_path in ("last", "best"):
        which = runs.LAST if call.ckpt_path == "last" else runs.BEST
        call.ckpt_path = str(runs.find_run(run or "latest", which) / which)
    if run is not None:
        which = runs.LAST if command == "fit" else runs.BEST
        found = runs.find_run(run, which)
        if command == "fit" and call.run_dir is not None:
            raise ConfigError("--run goes on in that run's own directory: leave --run_dir out, or give --ckpt_path FILE instead.")
        call.continued = found if command == "fit" else None
        call.ckpt_path = call.ckpt_path or str(found / which)
        earlier = [] if command == "export" else ["--config", str(found / "config.yaml")]
        if command in EVALUATIONS:  # one process counts every sample once, however many trained
            earlier += ["--trainer.devices", "1", "--trainer.num_nodes", "1", "--trainer.strategy", "auto"]
        call.args = [*earlier, *call.args]
    elif command in EVALUATIONS and call.ckpt_path is None and "--print_config" not in " ".join(rest):
        raise ConfigError(f"{command} needs a trained model: give --run latest, --run DIR or --ckpt_path FILE.")
    call.args = spelled_out(call.args)
    return call


def find_config(path: str) -> str:
    """A recipe by its path; `configs/...` is looked for beside the package too, since the wheel carries the recipes.

    Raises:
        ConfigError: there is no such file, or it is no valid YAML.
    """
    relative, shipped = Path(path).as_posix().removeprefix("configs/"), shipped_folders()
    for candidate in (Path(expanded(path)), *(folder / relative for folder in shipped)):
        if candidate.is_file():
            read_settings(candidate)
            return str(candidate)
    recipes = sorted(f"configs/{path.relative_to(folder).as_posix()}" for folder in shipped for path in folder.rglob("*.yaml"))
    raise ConfigError(f"--config {path}: there is no such file. Shipped recipes: {', '.join(recipes)}.")


def shipped_folders() -> list[Path]:
    """Where the recipes of this project lie."""
    package = Path(__file__).resolve().parents[2]
    return [folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()]


def spelled_out(args: Sequence[str]) -> list[str]:
    """The command line with `--trainer.devices` for `--devices` and so on, and the path of every `--config` resolved."""
    done: list[str] = []
    for arg in args:
        flag, equals, value = arg.partition("=")
        if flag.startswith("--") and flag[2:] in SHORT_FORMS:
            arg = f"--{SHORT_FORMS[flag[2:]]}{equals}{value}"
        elif flag in RECIPES and equals:
            arg = f"{flag}={find_config(value)}"
        elif done and done[-1] in RECIPES:
            arg = find_config(arg)
        done.append(arg)
    return done
