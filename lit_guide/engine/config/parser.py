"""LightningCLI as it is used here: what can be configured, what a configuration may import, and what its errors say."""

import inspect
import re
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import Namespace, set_parsing_settings
from jsonargparse.typing import PositiveInt
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_guide import __version__
from lit_guide.data import DataModule
from lit_guide.engine.config.arguments import SHORT_FORMS, expand, last_value
from lit_guide.engine.config.devices import fit_to_machine, misfit, no_precision
from lit_guide.engine.errors import ConfigError, UserError, explain
from lit_guide.engine.run import runs
from lit_guide.engine.run.checkpoint import check_fits, read_checkpoint
from lit_guide.engine.run.weights import SUFFIX
from lit_guide.engine.train.checkpoints import BestCheckpoint, LastCheckpoint
from lit_guide.engine.train.guards import Guards
from lit_guide.engine.train.lean import NoProfiler, leave_out_empty_hooks
from lit_guide.engine.train.metrics import MetricsCSV, Throughput
from lit_guide.engine.train.optim import find_class, subclasses
from lit_guide.engine.train.progress import ProgressBar
from lit_guide.engine.train.stop import Stop
from lit_guide.engine.train.summary import Summary
from lit_guide.engine.train.writer import CheckpointWriter
from lit_guide.export.callback import EXPORTS
from lit_guide.model import LitClassifier

PACKAGE = __name__.split(".")[0]
# A configuration file may name classes of these modules and of no others (FAULTS F11).
IMPORTABLE = [
    "torch.optim",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.plugins",
    "lightning.pytorch.profilers",
    "lightning.pytorch.strategies",
    PACKAGE,
]
set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=IMPORTABLE)

SUGGESTED = (DataModule, Optimizer, LRScheduler, Callback, Logger, Strategy)  # their classes, where a name is misspelt

CALL_ONLY = ("config", "ckpt_path", "run", "run_dir", "resume", "images", "verbose")  # not of the run: left out of config.yaml


class Parser(LightningArgumentParser):
    """LightningArgumentParser that takes no abbreviations and says errors in a line, with the nearest valid name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise ConfigError where jsonargparse would print its usage and exit."""
        if not self.exit_on_error:  # the parsers that jsonargparse makes for itself expect its own error
            super().error(message, ex)
        classes = [cls.__name__ for base in SUGGESTED for cls in subclasses(base)]
        told = explain(message, self._known_keys(), classes, IMPORTABLE, self.prog)
        precision = re.match(r"trainer\.precision is (\S+): expected", told)
        raise (no_precision(precision[1]) if precision else ConfigError(told)) from None

    def _known_keys(self) -> list[str]:
        keys = [key.replace(".init_args", "") for key in self.get_defaults(skip_validation=True).keys()]  # noqa: SIM118  # a Namespace
        sources = [DataModule, *subclasses(DataModule)]
        keys += [f"data.{name}" for source in sources for name in inspect.signature(source).parameters]
        return [*keys, *SHORT_FORMS]


class ClassifierCLI(LightningCLI):
    """One command's parser and, once it has parsed, its data, model and trainer.

    Args:
        command: fit, validate, test or predict; all take the same configuration.
        args: the command line after the command.
    """

    run_dir: Path
    ckpt_path: str | None
    validated = False

    def __init__(self, command: str, args: list[str]) -> None:
        self.command = command
        self.checkpoint: dict[str, Any] | None = None
        self.stop = Stop()
        args, self.continued = expand(command, args)
        super().__init__(
            LitClassifier,
            DataModule,
            subclass_mode_data=True,
            args=args,
            run=False,
            seed_everything_default=0,
            save_config_callback=None,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # it would put import paths into the checkpoint
            parser_class=Parser,
            parser_kwargs={
                "prog": f"lit-guide {command}",
                "usage": f"lit-guide {command} --config FILE [--config OVERLAY] [--KEY VALUE ...]",
                "description": " ".join(str(inspect.getdoc(getattr(Trainer, command, type(self)))).partition("\n\n")[0].split()),
                "epilog": "--accelerator, --devices, --strategy and --precision stand for --trainer.accelerator and so on.",
                "dump_header": [f"{PACKAGE}=={__version__}"],
            },
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; a checkpoint's hyperparameters are defaults under whatever is typed or in a file."""
        self.ckpt_path = last_value(args, "--ckpt_path")
        if self.ckpt_path is not None:
            if self.command == "fit" and self.ckpt_path.endswith(SUFFIX):
                raise ConfigError(f"{self.ckpt_path} holds weights alone, nothing to go on with: give a .ckpt.")
            self.checkpoint = read_checkpoint(self.ckpt_path)
            parser.set_defaults(_as_defaults(self.checkpoint["hyper_parameters"], training=self.command == "fit"))
        self.config = parser.parse_args(args)
        fit_to_machine(self.config)
        for key in ("ckpt_path", "run", "resume"):
            value, typed = self.config.get(key), last_value(args, f"--{key}")
            if value not in (None, False, typed) and (typed is None or key != "resume"):
                raise ConfigError(f"{key} stands in a configuration file, but it belongs to one call: give it as --{key}.")
        if self.continued is not None and self.config.run_dir is not None:
            raise ConfigError("--run goes on in that run's own directory: leave --run_dir out, or give --ckpt_path FILE instead.")
        if self.checkpoint is not None:
            epoch, most = self.checkpoint.get("epoch", 0), self.config.trainer.max_epochs
            if self.command == "fit" and most is not None and 0 <= most < epoch:
                raise ConfigError(
                    f"{self.ckpt_path} is of epoch {epoch + 1}: --trainer.max_epochs {most} is too few to go on from it."
                )
            self.config.model.weights = None  # the checkpoint's own weights come in their place; nothing is downloaded
        images = self.config.get("images")
        if images:
            assert self.checkpoint is not None  # expand refused anything else
            self.config.data = _images_data(images, self.checkpoint["hyper_parameters"], self.config.data)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The keys beyond trainer, model and data."""
        parser.set_defaults({"model.optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-3}}})
        for name in ("class_names", "input_shape", "mean", "std", "crop"):
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")
        for name, callback in EXPORTS.items():
            parser.add_lightning_class_args(callback, f"export.{name}")
        parser.add_argument(
            "--checkpoint.every_n_steps", type=PositiveInt | None, default=None, help="Save last.ckpt within epochs too."
        )
        parser.add_argument("--name", type=str, default="default", help="The run goes to runs/<name>/<timestamp>.")
        parser.add_argument("--run_dir", type=str | None, default=None, help="Where the run goes instead: a new directory.")
        parser.add_argument(
            "--run", type=str | None, default=None, help="An earlier run's directory, or latest: its config.yaml and checkpoint."
        )
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="A checkpoint to go on from or to use.")
        if self.command == "fit":
            parser.add_argument("--resume", type=bool, default=False, help="Go on with --run_dir if it holds a checkpoint.")
        if self.command in ("validate", "test"):
            parser.add_argument("--verbose", type=bool, default=False, help="Print Lightning's own table too.")
        if self.command == "predict":
            parser.add_argument(
                "--images", type=str, nargs="+", default=None, help="Image files and folders, instead of the test split."
            )

    def build(self) -> None:
        """Build data, model and trainer."""
        super().instantiate_classes()

    def instantiate_classes(self) -> None:
        """Build what the command needs; jsonargparse wraps what constructors raise, so our own errors are unwrapped."""
        try:
            self.build()
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, UserError):
                cause = cause.__cause__ or cause.__context__
            raise cause or error from None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with its own callbacks and logger, in the run's directory."""
        fit = self.command == "fit"
        if self.checkpoint is not None:
            check_fits(self.checkpoint, self.model.hparams, str(self.ckpt_path))
        if self.continued is not None:
            self.run_dir = self.continued
            runs.enter_run_dir(self.run_dir)
        elif fit:
            self.run_dir = runs.claim_run_dir(self.config.run_dir, self.config.name, self.config.resume)
        else:
            self.run_dir = self._results_dir()
        settings, going_on = self.config.trainer, self.continued is not None
        self.callbacks: list[Callback] = [self.stop, Throughput()]
        if settings.enable_progress_bar is not False:
            self.callbacks.append(ProgressBar())
        if fit and settings.enable_model_summary is not False:
            self.callbacks.append(Summary())
        if fit:
            self.callbacks += [Guards(), LearningRateMonitor("epoch")]
            self.validated = len(self.datamodule.rows["val"]) > 0 and settings.limit_val_batches != 0
        if fit and settings.enable_checkpointing is not False:
            monitor = "val/loss" if self.validated else "train/loss"
            self.callbacks.append(BestCheckpoint(self.run_dir, going_on, monitor))
            start = int((self.checkpoint or {}).get("global_step", 0))
            every = self.config.checkpoint.every_n_steps
            self.callbacks.append(LastCheckpoint(self.run_dir, self.stop, every, start, self.validated))
        self.trainer_defaults = {"callbacks": self.callbacks}
        given = self.config_init.trainer.get("logger")
        extra = [] if given in (None, True, False) else given if isinstance(given, list) else [given]
        loggers = [MetricsCSV(self.run_dir, self._rows_to_keep()), *extra] if fit else False
        try:
            profiler = self.config_init.trainer.get("profiler") or NoProfiler()
            kwargs |= {"logger": loggers, "default_root_dir": str(self.run_dir), "profiler": profiler}
            # Our samplers divide the data among the processes; Lightning's would count some samples twice.
            kwargs["use_distributed_sampler"] = False
            plugins = self.config_init.trainer.get("plugins") or []
            kwargs["plugins"] = [CheckpointWriter(), *(plugins if isinstance(plugins, list) else [plugins])]
            trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, RuntimeError, ImportError, ModuleNotFoundError, UserError) as error:
            if fit and self.continued is None:
                runs.release_run_dir(self.run_dir)
            if isinstance(error, UserError):
                raise
            raise misfit(f"The trainer refused its settings: {_first_sentences(error)}") from None
        leave_out_empty_hooks(trainer, self.model)
        return trainer

    def save_config(self) -> None:
        """Write the resolved config.yaml: alone enough to repeat, resume, test or export the run."""
        config = self.config.clone()
        for key in CALL_ONLY:
            config.pop(key, None)
        for key in ("path", "root", "table", "cache_dir"):
            path = config.data.init_args.get(key)
            if path is not None and Path(path).expanduser().exists():
                config.data.init_args[key] = str(Path(path).expanduser().absolute())  # found again from any directory
        text = self.parser.dump(config, skip_none=False, skip_validation=True)
        runs.write_atomic(self.run_dir / "config.yaml", text)

    def _rows_to_keep(self) -> int | None:
        """Rows of metrics.csv that a run goes on after; None: all, also those of the evaluation at the end of its training."""
        if self.continued is None and self.config.resume:
            return 0
        if self.continued is None or self.checkpoint is None:
            return None
        results, limits = runs.read_results(self.run_dir), self.config.trainer
        ended = results.get("steps") == self.checkpoint["global_step"]
        # That evaluation comes again, and its rows would stand there twice.
        nothing_left = limits.max_epochs == results.get("epochs") or limits.max_steps == results.get("steps")
        return None if ended and not nothing_left else self.checkpoint.get("metrics_rows")

    def _results_dir(self) -> Path:
        """Where an evaluation writes: --run_dir, else the run of the checkpoint, else a new directory."""
        if self.config.run_dir is not None:
            path = Path(self.config.run_dir).absolute()
        else:
            path = runs.run_of_checkpoint(Path(str(self.ckpt_path))) or runs.claim_run_dir(None, self.config.name)
        runs.make_results_dir(path)
        runs.check_space(path)
        return path


def _as_defaults(hyper_parameters: dict[str, Any], training: bool) -> dict[str, Any]:
    """A checkpoint's hyperparameters as defaults of the parser."""
    plain = ("network", "network_args", "label_smoothing", "class_weights", "scale_lr")
    defaults = {f"model.{key}": hyper_parameters[key] for key in plain if key in hyper_parameters}
    for key, base in (("optimizer", Optimizer), ("scheduler", LRScheduler)):
        value = hyper_parameters.get(key)
        cls = find_class(value["name"], base) if training and value is not None else None
        if value is not None and cls is not None:
            arguments = {name: v for name, v in value.items() if name != "name"}
            defaults[f"model.{key}"] = {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": arguments}
    return defaults


def _images_data(images: list[str], hyper_parameters: dict[str, Any], data: Namespace) -> Namespace:
    given = data.init_args
    init = {key: hyper_parameters.get(key) for key in ("class_names", "input_shape", "mean", "std", "crop")}
    init |= {key: given[key] for key in ("batch_size", "num_workers") if key in given}
    class_path = f"{PACKAGE}.engine.photos.images.ImagesToPredict"
    return Namespace({"class_path": class_path, "init_args": Namespace({"paths": images, **init})})  # type: ignore[no-untyped-call]


def _first_sentences(error: Exception) -> str:
    return ". ".join(" ".join(str(error).split()).split(". ")[:2]).rstrip(".") + "."
