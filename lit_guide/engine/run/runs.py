"""The run directory: choosing one, claiming it, finding an earlier one, and its results.json."""

import contextlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

from lit_guide.engine.errors import ConfigError, UserError, first_line, is_first
from lit_guide.engine.machine import command, expanded
from lit_guide.engine.run.settings import read_settings

RUNS = Path("runs")
BEST = Path("checkpoints") / "best.ckpt"
WEIGHTS = Path("checkpoints") / "best.safetensors"
LAST = Path("checkpoints") / "last.ckpt"
STARTED = {"checkpoints", "config.yaml", "metrics.csv"}
FOLDERS = ("", "checkpoints", "export")  # in which a run writes files
PARTIAL = ".partial-"  # how the names of files begin that are being written

# Lightning starts the other processes of a DDP run with our environment: they share the first one's directory through it.
RUN_DIR_VARIABLE = "LIT_GUIDE_CURRENT_RUN_DIR"

_held = contextlib.ExitStack()  # the lock on the run directory that this process trains in
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_held.close)  # a loader process that outlives a killed run must not hold it


def started_by_lightning() -> bool:
    """Whether the first process of this run started this one."""
    return RUN_DIR_VARIABLE in os.environ and not is_first()


def enter_run_dir(path: Path) -> None:
    """Take a run directory for this run alone, until it is over or killed, and tell the processes that Lightning will start.

    The lock is on the directory itself, so that nothing is left behind. It holds among the processes of this machine; where
    another run has it, that is a ConfigError.
    """
    if is_first():
        os.environ[RUN_DIR_VARIABLE] = str(path)
    if not _is_first_of_all():
        return
    _held.close()
    with contextlib.suppress(OSError):  # Windows, which opens no directory; a file system without locks
        directory = os.open(path, os.O_RDONLY)
        _held.callback(os.close, directory)
        if not lock_descriptor(directory, blocking=False):
            leave_run_dir()
            raise ConfigError(f"{path} is in use: a run that goes on is training there. Wait for it, or stop it first.")
    refuse_links(path)
    for left in [left for folder in FOLDERS for left in (path / folder).glob(f"{PARTIAL}*")]:  # of a run that was killed
        with contextlib.suppress(OSError):
            left.unlink()


def refuse_links(path: Path) -> None:
    """Refuse a run directory of whose own folders one is a link, by a UserError: what is written there would lie elsewhere."""
    for folder in FOLDERS[1:]:
        if (path / folder).is_symlink():
            raise UserError(f"{path / folder} is a link. Put the folder itself there: a run changes no files outside of its own.")


def leave_run_dir() -> None:
    """Let go of it."""
    _held.close()
    if is_first():  # the others still have to know who started them
        os.environ.pop(RUN_DIR_VARIABLE, None)


def _is_first_of_all() -> bool:
    """Whether this is the first process of the run, over all machines, by the variables in which Lightning looks for that."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        if name in os.environ:
            # Without torchrun or SLURM, LOCAL_RANK and NODE_RANK count together.
            return os.environ[name] == "0" and (name != "LOCAL_RANK" or os.environ.get("NODE_RANK", "0") == "0")
    return os.environ.get("NODE_RANK", "0") == "0"


def claim_run_dir(run_dir: str | None, name: str, resume: bool = False) -> Path:
    """Make the directory of a new training run and take it for this run alone: `run_dir`, or else `runs/<name>/<timestamp>`.

    With `resume` it may hold a run that broke off before its first checkpoint, which starts anew.

    Returns:
        An absolute path that exists, can be written to, and holds an empty `checkpoints/`.

    Raises:
        ConfigError: `run_dir` already holds files, or another run took it first.
        UserError: it can't be made or written to.
    """
    if started_by_lightning():
        return Path(os.environ[RUN_DIR_VARIABLE])
    size = os.environ.get("SLURM_NTASKS" if "SLURM_PROCID" in os.environ else "WORLD_SIZE", "1")
    if run_dir is None and (size != "1" or {"MASTER_ADDR", "NODE_RANK"} <= set(os.environ)):
        raise ConfigError("On several machines and under torchrun or SLURM every process must use one directory: --run_dir DIR.")
    if Path(name).name != name or name in ("", "..") or "\\" in name or not name.isprintable():
        raise ConfigError(f"--name {name!r} must be a plain name: it becomes runs/<name>/<timestamp>.")
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    path = (Path(run_dir) if run_dir is not None else RUNS / name / stamp).absolute()
    if not _is_first_of_all():
        enter_run_dir(path)
        return path
    for attempt in range(1, 100):
        try:
            path.mkdir(parents=True, exist_ok=run_dir is not None)
            there = {file.name for file in path.iterdir() if not (resume and PARTIAL[:-1] in file.name)}
            if there - (STARTED | {"results.json"} if resume else set()) or (path / LAST).exists():
                raise FileExistsError
            check_space(path)
            # Two runs may both find an empty directory; only one of them can make this one in it.
            (path / "checkpoints").mkdir(exist_ok=resume)
            break
        except FileExistsError:
            if run_dir is not None:
                raise ConfigError(
                    f"--run_dir {run_dir} already holds a run or other files, and nothing is overwritten. "
                    f"Give a new directory, or continue that run with: {command('fit', '--run', str(run_dir))}"
                ) from None
            path = path.with_name(f"{stamp}-{attempt}")
        except OSError as error:
            raise UserError(f"The run directory {path} can't be made: {error.strerror}. Give another: --run_dir DIR.") from None
    enter_run_dir(path)
    return path


def release_run_dir(path: Path, written: bool = False) -> None:
    """Remove the directory of a run that never started, if it is empty, or holds only what was `written` at its start."""
    leave_run_dir()
    with contextlib.suppress(OSError):
        if {file.name for file in path.iterdir()} <= (STARTED if written else {"checkpoints"}):
            (path / "checkpoints").rmdir()
            for name in STARTED - {"checkpoints"}:
                (path / name).unlink(missing_ok=True)
            path.rmdir()


def make_results_dir(path: Path, flag: str = "--run_dir") -> None:
    """Make the directory that an evaluation or an export writes to, if it is not there already. `flag` is what names it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag} {path} can't be made: {error.strerror}.") from None
    refuse_links(path)
    read_results(path)


def check_space(path: Path, needed: int = 1 << 20, flag: str = "--run_dir") -> None:
    """Fail now where `path` can't be written to or has too few bytes free. `flag` names another one, "" where none may."""
    other = f" Give another directory with {flag} DIR." if flag else ""
    try:
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(b"x" * 4096)
        free = shutil.disk_usage(path).free
    except OSError as error:
        raise UserError(f"{path} can't be written to: {error.strerror}.{other}") from None
    if free < needed:
        much = f"{path.resolve()} has {free / 1e6:.0f} MB free and this run writes about {needed / 1e6:.0f} MB."
        raise UserError(f"{much} Free some space.{other}")


def find_run(run: str, checkpoint: Path = BEST) -> Path:
    """The directory that `--run DIR` means, or `--run latest`: the newest run below `runs/` that has a checkpoint."""
    if run == "latest":
        folders: dict[str, Path] = {}
        for parent, inside, _ in os.walk(RUNS, followlinks=True):  # a run may lie on another disk
            if folders.setdefault(os.path.realpath(parent), Path(parent)) != Path(parent):
                inside.clear()  # a link to a folder above it would go round for ever
        found = [path for path in folders.values() if (path / checkpoint).is_file() and (path / "config.yaml").is_file()]
        if not found:
            train = command("fit", "--config", "FILE")
            raise ConfigError(f"--run latest: no run below {RUNS}/ has a checkpoint yet. Train one first with: {train}")
        return max(found, key=lambda path: (path / checkpoint).stat().st_mtime).absolute()
    path = Path(expanded(run)).absolute()
    if not os.path.lexists(path / "config.yaml"):  # a link that leads nowhere is told where it is read
        raise ConfigError(f"--run {run}: {'it holds no config.yaml' if path.is_dir() else 'there is no such directory'}. "
                          "Give the directory of a run, or latest.")  # fmt: skip
    if not os.path.lexists(path / checkpoint):
        raise ConfigError(f"--run {run}: there is no {checkpoint.as_posix()}; the run saved no checkpoint. Train it anew.")
    return path


def run_of_checkpoint(checkpoint: Path) -> Path | None:
    """The run directory that a checkpoint lies in; None for a checkpoint from elsewhere."""
    run = checkpoint.absolute().parent.parent
    return run if (run / "config.yaml").is_file() else None


def how_to_go_on(run_dir: Path) -> str:
    """What to type to continue a run; empty where it has no checkpoint to go on from."""
    if not (run_dir / LAST).is_file():
        return ""
    if "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_PROCID" in os.environ:
        return "It goes on where it is started again, or by the same command with --resume true."
    return f"Go on with: {command('fit', '--run', str(run_dir))}"


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write a file so that a reader, or a crash, sees the old content under its name or the new, never half of it."""
    # A name that nobody can guess, and no file yet: in a directory from elsewhere a link could lie in its place.
    partial = path.with_name(f"{PARTIAL}{secrets.token_hex(8)}-{path.name}")
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666))
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, text: str) -> None:
    """Write a text file as `whole_file` does; a name that is no UTF-8 leaves it in escapes, for the file must be."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_config(run_dir: Path) -> dict[str, Any]:
    """The run's config.yaml, as it stands there; raises as `read_settings`."""
    return read_settings(run_dir / "config.yaml")


def read_results(run_dir: Path) -> dict[str, Any]:
    """The run's results.json, empty where there is none yet; a UserError where it is no such file."""
    path = run_dir / "results.json"
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        [*results.items(), *(one["format"] for one in results.get("exports", []))]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError) as error:
        raise UserError(f"{path} can't be read: {first_line(error)}. Remove it: it is written anew.") from None
    return results


def update_results(run_dir: Path, sections: Mapping[str, Any]) -> None:
    """Set sections of the run's results.json and keep the others."""
    write_atomic(run_dir / "results.json", json.dumps({**read_results(run_dir), **sections}, indent=2) + "\n")
