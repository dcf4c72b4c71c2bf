"""`data check` and `data show`: look at a set of images before training on it."""

import json
import shlex
from pathlib import Path
from typing import Literal

from lightning.pytorch.cli import LightningArgumentParser

from lit_guide.engine.config.cli import ClassifierCLI
from lit_guide.engine.errors import ConfigError, UserError, did_you_mean, printable, say
from lit_guide.engine.photos.dataset import shown
from lit_guide.engine.run import runs
from lit_guide.fit import flags
from lit_guide.model import LitClassifier
from lit_guide.parts.inspect.check import check, print_report
from lit_guide.parts.inspect.quarantine import folder_of, put_back, quarantine

HELP = """usage: lit-guide data check|show --config FILE [--KEY VALUE ...]

  check  decode every image; list what is broken, there twice, in two splits, or uneven, on the screen and in data_check.json
         lit-guide data check --config configs/folder.yaml --data.root DIR
         --fix quarantine moves broken files to DIR-quarantine, --fix undo moves them back
  show   draw a training batch, the same images as they are, and how many images each class has
         lit-guide data show --config configs/folder.yaml --data.root DIR
"""


class DataCLI(ClassifierCLI):
    """Look at the images before training; the recipes and flags of `fit` serve here too."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The keys of `fit`, and the command's own."""
        super().add_arguments_to_parser(parser)
        looks = self.command == "data check"
        output = "The folder that data_check.json, or pictures, go to."
        parser.add_argument("--output", type=str, default="." if looks else "data_show", help=output)
        if looks:
            fix = "quarantine: move files that can't be decoded away. undo: move them back."
            parser.add_argument("--fix", type=Literal["quarantine", "undo"] | None, default=None, help=fix)
            near = "Bits of 64 in which the hashes of near duplicates may differ."
            parser.add_argument("--near_bits", type=int, default=5, help=near)
        else:
            parser.add_argument("--samples", type=int, default=24, help="How many images of a training batch are drawn.")

    def build(self, only: str | None = "data") -> None:
        """Build the data alone; the files themselves are looked at, and no cache of them."""
        if "cache" in (self.config.get("data.init_args") or {}):
            self.config.data.init_args.cache = "none"
        super().build(only)


def data(args: list[str]) -> None:
    """Run `data check` or `data show`."""
    if not args or args[0] in ("-h", "--help"):
        print(HELP)
        raise SystemExit(0 if args else 2)
    if args[0] not in ACTIONS:
        hint = did_you_mean(f"data {args[0]}", [f"data {name}" for name in ACTIONS], "Use data check or data show.")
        raise ConfigError(f"There is no command 'data {args[0]}'. {hint}")
    if len(args) > 1 and not args[1].startswith("-"):
        hint = f"--config configs/folder.yaml --data.root {shlex.quote(args[1])}"
        raise ConfigError(f"data {args[0]} takes flags alone. Is {args[1]} a folder of photos? Then type: data {args[0]} {hint}")
    cli = DataCLI(f"data {args[0]}", args[1:], LitClassifier, flags())
    cli.build()
    ACTIONS[args[0]](cli)


def _check(cli: DataCLI) -> None:
    config, source = cli.config, cli.datamodule
    if not 0 <= config.near_bits <= 10:
        raise ConfigError(f"--near_bits is {config.near_bits}; it must be from 0 to 10.")
    root: Path | None = getattr(source, "folder", None) if config.fix else None
    if config.fix and root is None:
        what = "--fix moves the files of a folder, and these data are no folder"
        raise ConfigError(f"{what}: mend them, or leave bad files out of the list.")
    if root is not None and config.fix == "undo":
        say("Put back where they were:\n" + "\n".join(f"  {printable(str(path))}" for path in put_back(root)))
        return
    output = _output(cli)
    report = check(source, config.near_bits)
    runs.write_atomic(output / "data_check.json", json.dumps(report.as_dict(), indent=1) + "\n")
    print_report(report)
    wrong, images = report.wrong, report.images
    if root is not None and report.bad_files:
        moved, left = quarantine(root, report.bad_files)
        say(f"Moved {len(moved)} of {images:,} files to {folder_of(root)}; the same command with --fix undo moves them back.")
        if left:
            say("Left where they are, by way of a link:\n" + shown([str(path) for path in left]))
        images -= len(moved)
        if len(moved) == len(report.bad_files):
            wrong = [finding for finding in wrong if finding.kind != "unreadable"]
    say(f"All findings are in {output / 'data_check.json'}")
    if wrong:
        listed = "\n".join(f"  {f.what}" + (f" ({len(f.items):,})" if f.items else "") for f in wrong)
        unreadable = "unreadable" in [finding.kind for finding in wrong]
        how = "\n--fix quarantine moves broken files away, --data.on_bad_image skip trains without them." if unreadable else ""
        raise UserError(f"Mend this before you train:\n{listed}{how}")
    looks = len(report.findings) - len(report.wrong)
    say(f"{images:,} images: nothing must be mended{f'; {looks} things are worth a look' if looks else ''}.")


def _output(cli: DataCLI) -> Path:
    """The folder for what is found, made and tried before hours are spent on looking."""
    output = Path(cli.config.output)
    runs.make_results_dir(output, flag="--output")
    runs.check_space(output, flag="--output")
    return output


def _show(cli: DataCLI) -> None:
    from lit_guide.parts.inspect.show import show  # it imports matplotlib

    if cli.config.samples < 1:
        raise ConfigError(f"--samples is {cli.config.samples}; it must be 1 or more.")
    for path in show(cli.datamodule, _output(cli), cli.config.samples):
        say(f"Drew {path}")


ACTIONS = {"check": _check, "show": _show}
