"""LightningCLI as it is used here: what can be configured, and what is built from it."""

import inspect
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt, register_type
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from torch import nn

from lit_guide import __version__
from lit_guide.engine.allowed import allow, import_class
from lit_guide.engine.config.arguments import CALL, read_call
from lit_guide.engine.config.devices import REFUSALS, fit_to_machine, refused
from lit_guide.engine.config.named import check_named
from lit_guide.engine.config.parser import Parser, not_made
from lit_guide.engine.config.places import check_places, leave_out_writers, refuse_other_runs, told, with_home
from lit_guide.engine.config.saved import BY_NAME, FACTS, classes_of, left_out, path_of_class
from lit_guide.engine.errors import ConfigError, UserError, causes, first_line, warn
from lit_guide.engine.run import bounded, runs
from lit_guide.engine.run import checkpoint as stored

PACKAGE = __name__.split(".")[0]
# Numbers with a range of jsonargparse, and enumerations that are text: classes of their own, which YAML does not know.
yaml.SafeDumper.add_multi_representer(int, lambda dumper, number: dumper.represent_int(int(number)))
yaml.SafeDumper.add_multi_representer(float, lambda dumper, number: dumper.represent_float(float(number)))
yaml.SafeDumper.add_multi_representer(str, lambda dumper, text: dumper.represent_str(str.__str__(text)))
register_type(torch.device)
BASES: dict[str, type] = {"data": LightningDataModule, "trainer": Trainer}


class ClassifierCLI(LightningCLI):
    """One command's settings and, once `build` was called, its data and model; `make_trainer` makes the rest.

    Args:
        command: fit, validate, test or predict; all take the same configuration.
        args: the command line after the command.
        model: the class of the model where none is named.
        flags: key -> a class whose arguments are flags below that key; `self.built[key]` is made of them.
        gone: keys of parts that this project does not have -> the part: an old configuration may hold them.
    """

    run_dir: Path
    datamodule: Any  # a LightningDataModule
    model: Any  # a LightningModule

    def __init__(
        self,
        command: str,
        args: list[str],
        model: type[LightningModule],
        flags: Mapping[str, type],
        gone: Mapping[str, str] | None = None,
    ) -> None:
        self.command, self.default_model, self.flags, self.gone = command, model, flags, dict(gone or {})
        self.checkpoint: dict[str, Any] | None = None
        self.call = read_call(command.split()[0], args)
        self.ckpt_path, self.continued = self.call.ckpt_path, self.call.continued
        allow(self.call.allow, [*command.split(), *self.call.typed])
        # Lists the arguments of the usual model, and below it; others have --model.help CLASS.
        helping = any(arg in ("-h", "--help") or re.match(r"--model\.[\w.]+\.help\b", arg) for arg in args)
        super().__init__(
            model if helping else None,
            None,
            subclass_mode_model=not helping,
            args=self.call.args,
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
                "epilog": "--accelerator, --devices, --strategy and --precision stand for --trainer.accelerator and so on. "
                "--model CLASS takes another LightningModule of this project, --model.help CLASS lists its arguments.",
                "dump_header": [f"{PACKAGE}=={__version__}"],
            },
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The keys beyond trainer, model and data."""
        takes = inspect.signature(self.default_model).parameters
        assert isinstance(parser, Parser)
        parser.usual = self.default_model
        usual: dict[str, Any] = {"optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-3}}}
        usual = usual if "optimizer" in takes else {}
        if self.subclass_mode_model:
            parser.set_defaults({"model": {"class_path": path_of_class(self.default_model), "init_args": usual}})
        elif usual:
            parser.set_defaults({"model": usual})
        for name in FACTS if self.subclass_mode_model else set(FACTS) & set(takes):
            target = f"model.init_args.{name}" if self.subclass_mode_model else f"model.{name}"
            parser.link_arguments("data", target, compute_fn=self._fact(name), apply_on="instantiate")
        for key, cls in self.flags.items():
            parser.add_class_arguments(cls, key)
        for key in self.gone:
            parser.add_argument(f"--{key}", type=dict | None, default=None)
        parser.add_argument("--checkpoint.every_n_steps", type=PositiveInt | None, default=None, help="Save last.ckpt so often.")
        parser.add_argument("--name", type=str, default="default", help="The run goes to runs/<name>/<timestamp>.")
        if self.command in ("validate", "test"):
            parser.add_argument("--verbose", type=bool, default=False, help="Print Lightning's own table too.")
        for name, (_, text, commands) in CALL.items():  # for --help: they are taken out before
            if not commands or self.command in commands:
                parser.add_argument(f"--{name}", type=Any, default=None, help=text)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; a checkpoint's hyperparameters are defaults under whatever is typed or in a file."""
        if self.ckpt_path is not None:
            if self.command == "fit" and self.ckpt_path.endswith(stored.SUFFIX):
                raise ConfigError(f"{self.ckpt_path} holds weights alone, nothing to go on with: give a .ckpt.")
            self.checkpoint = stored.read_checkpoint(self.ckpt_path)
            usual = parser.get_defaults(skip_validation=True).model
            before = usual.init_args.as_dict() if "init_args" in usual else {}
            named = classes_of(self._saved(), BY_NAME if self.command == "fit" else {"loss": nn.Module}, self.ckpt_path)
            parser.set_defaults({"model": {"class_path": usual.class_path, "init_args": {**before, **named}}})
        self.config = with_home(parser.parse_args(args))
        if odd := [key for key in ("name", "checkpoint", *self.flags) if isinstance(self.config.get(key), int | None)]:
            raise ConfigError(f"{odd[0]} is {self.config.get(odd[0])}: expected another kind of value.")
        check_named(self.config)
        said = told(args, self.call.typed)
        if self.command != "fit":
            leave_out_writers(self.config.trainer, said)
        check_places(self.config, said, self.command == "fit" and self.checkpoint is None)
        fit_to_machine(self.config)
        for key in CALL:
            if self.config.pop(key, None) is not None:
                raise ConfigError(f"{key} stands in a configuration file, but it belongs to one call: give it as --{key}.")
        for key, part in self.gone.items():
            if self.config.pop(key, None) is not None:
                warn(f"{key} in the configuration is of the part {part}, which this project does not have: it is left out.")
        self.model_type = import_class(self.config.model.class_path, LightningModule, "model")
        if self.checkpoint is not None:
            given, path = self.config.model.get("init_args") or {}, str(self.ckpt_path)
            if self.model_type is self.default_model:
                usual = ["--model", path_of_class(self.default_model)]  # which need not be named
                typed = parser.parse_args([*usual, *args], defaults=False).get("model.init_args") or {}
                for key, value in left_out(typed, self._saved()).items():
                    given[key] = value
            if self.checkpoint["hyper_parameters"] or self.model_type is self.default_model:
                stored.check_hyper_parameters(self.checkpoint, self.model_type, path)
            stored.check_fits(self.checkpoint, {k: v for k, v in given.items() if k == "network" and isinstance(v, str)}, path)
            at, most = self.checkpoint.get("epoch", 0), self.config.trainer.max_epochs
            if self.command == "fit" and most is not None and 0 <= most < at:
                raise ConfigError(f"{path} is of epoch {at + 1}: --trainer.max_epochs {most} is too few to go on from it.")
            if "weights" in given:
                self.weights, given["weights"] = given["weights"], None  # the checkpoint's own come; config.yaml names these

    def instantiate_classes(self) -> None:
        """Nothing: `build` does it, where the command wants it."""

    def build(self, only: str | None = None) -> None:
        """Make the data and the model, what `flags` names, and what the trainer is made of.

        Args:
            only: data or trainer, where nothing else is wanted.

        Raises:
            UserError: what a constructor of ours raised: jsonargparse wraps it.
        """
        config, parser = self.config, self.parser
        if only != "trainer" and not config.get("data"):
            raise ConfigError("No data were chosen: give a recipe, such as --config configs/digits.yaml.")
        if only is not None:  # by a parser without links: the model's ask the data for what they may not have
            config, parser = Namespace({only: config[only]}), Parser()  # type: ignore[no-untyped-call]
            parser.add_lightning_class_args(BASES[only], only, subclass_mode=only == "data")
        try:
            with bounded.no_larger_than(self.checkpoint["state_dict"]) if self.checkpoint else nullcontext():
                self.config_init = parser.instantiate(config)
        except Exception as error:
            misfit = UserError(f"{self.ckpt_path}: its hyperparameters do not fit, or the settings: {first_line(error)}")
            told = not_made(str(error)) or (misfit if self.checkpoint else error)
            raise next((cause for cause in causes(error) if isinstance(cause, UserError)), told) from None
        self.built = {key: self.config_init.get(key) for key in self.flags}
        self.datamodule, self.model = self.config_init.get("data"), self.config_init.get("model")
        if self.model is not None:
            stored.check_plain(self.model.hparams, self.model_type)
            if self.checkpoint is not None:
                stored.check_fits(self.checkpoint, self.model.hparams, str(self.ckpt_path))

    def make_trainer(self, callbacks: list[Callback], plugins: list[Any], **settings: Any) -> Trainer:
        """The trainer of these settings, with callbacks and plugins besides those that are configured.

        Raises:
            ConfigError: it refuses its settings.
        """
        self.trainer_defaults = {"callbacks": callbacks}
        given = self.config_init.trainer.get("plugins") or []
        settings["plugins"] = [*plugins, *(given if isinstance(given, list) else [given])]
        try:
            # Our samplers divide the data among the processes; Lightning's would count some samples twice.
            trainer = super().instantiate_trainer(use_distributed_sampler=False, default_root_dir=str(self.run_dir), **settings)
        except REFUSALS as error:
            raise refused("The trainer refused its settings", error) from None
        made: Any = trainer  # its attributes are set by Lightning's connectors
        folders = {Path(one.dirpath) for one in made.callbacks if getattr(one, "dirpath", None)}
        for plugin in plugins:
            getattr(plugin, "folders", set[Path]()).update(folders)
        refuse_other_runs((*made.loggers, *made.callbacks, made.profiler), self.run_dir)
        return trainer

    def save_config(self) -> None:
        """Write the resolved config.yaml: alone enough to repeat, resume, test or export the run."""
        config = self.config.clone()
        config.pop("config", None)
        if weights := getattr(self, "weights", None):
            config.model.init_args.weights = weights
        for part, key in (*(("data", key) for key in ("path", "root", "table", "cache_dir")), ("model", "weights")):
            given = config[part].get("init_args") or {}  # a class without arguments has none
            if (path := given.get(key)) is not None and Path(path).exists():
                given[key] = str(Path(path).absolute())  # found again from any directory
        try:
            with warnings.catch_warnings():  # jsonargparse writes that it could not write something, and warns
                warnings.filterwarnings("error", r"\s*Unable to serialize")
                text = self.parser.dump(config, skip_none=False, skip_validation=True)
        except Exception as error:
            raise ConfigError(f"config.yaml can't hold these settings: {' '.join(str(error).split())}.") from None
        self.parser.parse_object(yaml.safe_load(text))  # what can't be read again is refused before anything is trained
        runs.write_atomic(self.run_dir / "config.yaml", text)

    def _saved(self) -> dict[str, Any]:
        """The hyperparameters of the checkpoint; none where they are of another class than the usual one."""
        saved: dict[str, Any] = (self.checkpoint or {}).get("hyper_parameters", {})
        return {} if set(saved) - set(inspect.signature(self.default_model).parameters) else saved

    def _fact(self, name: str) -> Callable[[Any], Any]:
        """What takes a fact from the data for the model; a model without a parameter of that name never gets it."""

        def take(data: Any) -> Any:
            takes = {parameter.name: parameter.default for parameter in stored.parameters_of(self.model_type)}
            lacking = [fact for fact in FACTS if fact in takes and not hasattr(type(data), fact) and not hasattr(data, fact)]
            if needed := [fact for fact in lacking if takes[fact] is inspect.Parameter.empty]:
                raise ConfigError(
                    f"{self.model_type.__name__} takes {', '.join(needed)}, and the data ({type(data).__name__}) do not say: "
                    "give them attributes or properties of these names."
                )
            return getattr(data, name) if name in takes and name not in lacking else takes.get(name)

        return take
