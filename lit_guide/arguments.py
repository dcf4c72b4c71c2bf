"""The command line before it is parsed: short forms, recipes by name, and `--run` are spelled out."""

from pathlib import Path

from lit_guide import runs
from lit_guide.errors import ConfigError

SHORT_FORMS = ("accelerator", "devices", "strategy", "precision")


def expand(command: str, args: list[str]) -> tuple[list[str], Path | None]:
    """Spell out short forms, recipes and `--run`; returns the run that `fit --run` continues."""
    args = [long_form(arg) for arg in args]
    run, given = last_value(args, "--run"), last_value(args, "--ckpt_path")
    if {"-h", "--help"} & set(args):
        return args, None
    if given in ("last", "best"):
        which = runs.LAST if given == "last" else runs.BEST
        args += ["--ckpt_path", str(runs.find_run("latest", which) / which)]
    if run is not None:
        which = runs.LAST if command == "fit" else runs.BEST
        found = runs.find_run(run, which)
        args = ["--config", str(found / "config.yaml"), "--ckpt_path", str(found / which), *args]
        return with_recipes(args), found if command == "fit" else None
    if command != "fit" and given is None and "--print_config" not in " ".join(args):
        raise ConfigError(f"{command} needs a trained model: give --run latest, --run DIR or --ckpt_path FILE.")
    return with_recipes(args), None


def find_config(path: str) -> str:
    """A recipe by its path; `configs/...` is looked for beside the package too, since the wheel carries the recipes."""
    if Path(path).is_file():
        return path
    package = Path(__file__).parent
    relative = Path(path).as_posix().removeprefix("configs/")
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / relative).is_file():
            return str(folder / relative)
    recipes = sorted({p.name for folder in (package / "configs", package.parent / "configs") for p in folder.glob("*.yaml")})
    raise ConfigError(f"--config {path}: there is no such file. Shipped recipes: {', '.join(f'configs/{r}' for r in recipes)}.")


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
    flag, equals, value = arg.partition("=")
    return f"--trainer.{flag[2:]}{equals}{value}" if flag in [f"--{name}" for name in SHORT_FORMS] else arg


def last_value(args: list[str], flag: str) -> str | None:
    values = [after for arg, after in zip(args, [*args[1:], ""], strict=True) if arg == flag]
    values += [arg.partition("=")[2] for arg in args if arg.startswith(f"{flag}=")]
    return values[-1] if values else None
