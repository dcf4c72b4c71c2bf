"""`export`: files from a run's best checkpoint, later or again. Its table of formats is what `fit` writes too."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_guide.engine import tables
from lit_guide.engine.allowed import allow
from lit_guide.engine.config.arguments import read_call
from lit_guide.engine.config.parser import Parser
from lit_guide.engine.errors import ConfigError, UserError, say
from lit_guide.engine.machine import command
from lit_guide.engine.run import runs
from lit_guide.engine.run.checkpoint import load_model, model_of
from lit_guide.export.callback import Export
from lit_guide.export.closing import print_exports
from lit_guide.model import LitClassifier

# Key below `export` in a configuration, name in results.json and of `--formats` -> its class.
FORMATS = {
    "torchscript": "lit_guide.export.torchscript:ExportTorchScript",
    "onnx": "lit_guide.export.onnx:ExportONNX",
    "pt2": "lit_guide.export.program:ExportProgram",
}


def formats() -> dict[str, type[Export]]:
    """Name -> class, of the formats that this project has."""
    return tables.load(FORMATS)


def export(args: list[str]) -> None:
    """Write TorchScript, ONNX and torch.export files from a run's best checkpoint."""
    call, offered = read_call("export", args), formats()
    allow(call.allow, ["export", *args])
    names = ",".join(offered)
    parser = Parser(
        prog="lit-guide export",
        usage=f"lit-guide export --run DIR|latest [--formats {names}]",
        description="Export a run's best checkpoint; every file is loaded again and compared with the model.",
        epilog="--run DIR|latest, or --ckpt_path FILE; --run_dir DIR: where export/ goes, the run if not given; "
        "--model CLASS: the class of the model, where no run says it.",
    )
    parser.add_argument("--model", type=str | None, default=None, help="The class of the model, where no run says it.")
    parser.add_argument("--formats", type=str | None, default=None, help=f"Some of {names}; by default the enabled ones.")
    for name, cls in offered.items():
        parser.add_class_arguments(cls, f"export.{name}")
    run_dir = None if call.run is None else runs.find_run(call.run)
    if run_dir is not None:
        parser.set_defaults(_settings_of(run_dir, offered))
    config = parser.parse_args(call.args)
    if call.ckpt_path is None:
        raise ConfigError("export needs a trained model: give --run latest, --run DIR or --ckpt_path FILE.")
    built = parser.instantiate(config).export
    wanted = [name.strip() for name in config.formats.split(",")] if config.formats else [n for n in offered if built[n].enabled]
    if unknown := [name for name in wanted if name not in offered]:
        raise ConfigError(f"--formats: there is no format {unknown[0]!r}. Use {', '.join(offered)}.")
    checkpoint = Path(call.ckpt_path)
    from_run = run_dir or runs.run_of_checkpoint(checkpoint)
    model, saved = load_model(checkpoint, model_of(from_run, LitClassifier, config.model))
    target = Path(call.run_dir).absolute() if call.run_dir else from_run
    if target is None:
        raise ConfigError(f"{checkpoint} lies in no run directory: say where export/ goes with --run_dir DIR.")
    runs.make_results_dir(target)
    runs.check_space(target, needed=4 * 3 * sum(p.numel() for p in model.parameters()))
    entries = [built[name].run(model, target, saved["crop"]) for name in wanted]
    print_exports(entries)
    say(f"Written below {target / 'export'}")
    raise_for(entries, target)


def raise_for(entries: Sequence[Mapping[str, Any]], run_dir: Path) -> None:
    """End with what failed, and how to try it again.

    Raises:
        UserError: an export failed.
    """
    failed = [entry for entry in entries if "error" in entry]
    if failed:
        reasons = "\n".join(f"  {entry['format']}: {entry['error']}" for entry in failed)
        names = ",".join(entry["format"] for entry in failed)
        raise UserError(
            f"{len(failed)} of {len(entries)} exports failed:\n{reasons}\nThe checkpoint is safe. "
            f"Try again with: {command('export', '--run', str(run_dir), '--formats', names)}"
        )


def _settings_of(run_dir: Path, offered: Mapping[str, object]) -> dict[str, Any]:
    """The `export` section of a run's config.yaml, as defaults of the parser."""
    section = runs.read_config(run_dir).get("export", {})
    if not isinstance(section, dict) or not all(isinstance(section[name], dict) for name in section if name in offered):
        raise ConfigError(f"{run_dir / 'config.yaml'}: export is no mapping of formats and their settings.")
    return {f"export.{name}.{key}": value for name, keys in section.items() if name in offered for key, value in keys.items()}
