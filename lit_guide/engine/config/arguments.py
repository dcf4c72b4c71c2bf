"""The command line before it is parsed: short forms, recipes by name, and `--run` are spelled out."""

from itertools import pairwise
from pathlib import Path

import yaml

from lit_guide.engine.errors import ConfigError
from lit_guide.engine.run import runs

SHORT_FORMS = ("accelerator", "devices", "strategy", "precision")


def expand(command: str, args: list[str]) -> tuple[list[str], Path | None]:
    """Spell out short forms, recipes and `--run`; returns the run that `fit --run` continues."""
    args = [long_form(arg) for arg in args]
    run, given = last_value(args, "--run"), last_value(args, "--ckpt_path")
    if {"-h", "--help"} & set(args):
        return args, None
    if command == "fit" and str(last_value(args, "--resume")).lower() in ("true", "yes"):
        run = last_value(args, "--run_dir")
        if run is None:
            raise ConfigError("--resume true goes on with one run, or starts it: say where it is with --run_dir DIR.")
        if (Path(run) / runs.LAST).is_file():
            # A --ckpt_path is where the run began: it has come further.
            args, given = without(args, "--run_dir", "--resume", "--ckpt_path"), None
        else:
            run = None
    if given in ("last", "best"):
        which = runs.LAST if given == "last" else runs.BEST
        path = str(runs.find_run(run or "latest", which) / which)
        args = [f"--ckpt_path={path}" if arg == f"--ckpt_path={given}" else arg for arg in args]
        args = [path if (before, arg) == ("--ckpt_path", given) else arg for before, arg in pairwise(["", *args])]
    if run is not None:
        which = runs.LAST if command == "fit" else runs.BEST
        found = runs.find_run(run, which)
        earlier = ["--config", str(found / "config.yaml"), "--ckpt_path", str(found / which)]
        if command != "fit":  # one process counts every sample once, however many trained
            earlier += ["--trainer.devices", "1", "--trainer.num_nodes", "1", "--trainer.strategy", "auto"]
        return with_recipes([*earlier, *args]), found if command == "fit" else None
    if command in ("validate", "test", "predict") and given is None and "--print_config" not in " ".join(args):
        raise ConfigError(f"{command} needs a trained model: give --run latest, --run DIR or --ckpt_path FILE.")
    return with_recipes(args), None


def find_config(path: str) -> str:
    """A recipe by its path; `configs/...` is looked for beside the package too, since the wheel carries the recipes.

    Raises:
        ConfigError: there is no such file, or it is no valid YAML.
    """
    package = Path(__file__).parents[2]
    relative = Path(path).as_posix().removeprefix("configs/")
    shipped = [folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()]
    for candidate in (Path(path), *(folder / relative for folder in shipped)):
        if candidate.is_file():
            try:
                yaml.safe_load(candidate.read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                reason = " ".join(str(error).replace('in "<unicode string>", ', "").split())
                raise ConfigError(f"--config {path} is no valid YAML: {reason}") from None
            return str(candidate)
    recipes = sorted(f"configs/{recipe.name}" for folder in shipped for recipe in folder.glob("*.yaml"))
    raise ConfigError(f"--config {path}: there is no such file. Shipped recipes: {', '.join(recipes)}.")


def with_recipes(args: list[str]) -> list[str]:
    """The same command line with the path of every `--config` resolved."""
    resolved: list[str] = []
    for arg in args:
        flag, equals, value = arg.partition("=")
        if flag in ("--config", "-c") and equals:
            arg = f"{flag}={find_config(value)}"
        elif resolved and resolved[-1] in ("--config", "-c"):
            arg = find_config(arg)
        resolved.append(arg)
    return resolved


def long_form(arg: str) -> str:
    """`--trainer.devices` for `--devices`, and so on; any other argument as it is."""
    flag, equals, value = arg.partition("=")
    return f"--trainer.{flag[2:]}{equals}{value}" if flag in [f"--{name}" for name in SHORT_FORMS] else arg


def without(args: list[str], *flags: str) -> list[str]:
    """The same command line without `--flag VALUE` and `--flag=VALUE` of these flags."""
    return [arg for before, arg in pairwise(["", *args]) if {before, arg, arg.partition("=")[0]}.isdisjoint(flags)]


def last_value(args: list[str], flag: str) -> str | None:
    """The value of the last `--flag VALUE` or `--flag=VALUE`; None where there is none."""
    found: str | None = None
    for before, arg in pairwise(["", *args]):
        if before == flag:
            found = arg
        elif arg.startswith(f"{flag}="):
            found = arg.partition("=")[2]
    return found
