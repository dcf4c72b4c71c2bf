"""What can be configured, and what a wrong configuration says. The commands run in this process, up to the error."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from lit_guide.engine.config.started import Started
from lit_guide.engine.errors import UserError
from lit_guide.fit import start
from lit_guide.model import LitClassifier
from tests.conftest import Run

ROOT = Path(__file__).parents[3]
RECIPES = sorted(ROOT.glob("configs/*.yaml"))
OVERLAYS = sorted(ROOT.glob("configs/*/*.yaml"))
DIGITS = ["--config", "configs/digits.yaml"]


def parse(tmp_path: Path, *args: str) -> Started:
    return start("fit", [*DIGITS, "--run_dir", str(tmp_path / "run"), "--accelerator", "cpu", *args])


def test_short_forms_stand_for_trainer_keys(tmp_path: Path) -> None:
    cli = parse(tmp_path, "--devices=1", "--precision", "bf16-mixed", "--strategy", "auto")
    assert cli.trainer.num_devices == 1
    assert cli.trainer.precision == "bf16-mixed"
    assert cli.config.trainer.strategy == "auto"


def test_optimizer_and_its_rate_by_flag(tmp_path: Path) -> None:
    cli = parse(tmp_path, "--model.optimizer", "SGD", "--model.optimizer.lr", "0.1")
    assert cli.model.hparams["optimizer"]["name"] == "SGD"
    assert cli.model.hparams["optimizer"]["lr"] == 0.1


def test_the_rate_of_the_default_optimizer_by_flag(tmp_path: Path) -> None:
    assert parse(tmp_path, "--model.optimizer.lr", "0.05").model.hparams["optimizer"]["lr"] == 0.05


def test_a_later_config_wins_and_keeps_the_rest(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("trainer: {max_epochs: 3}\ndata: {init_args: {batch_size: 7}}\n")
    cli = parse(tmp_path, "--config", str(overlay))
    assert (cli.trainer.max_epochs, cli.datamodule.batch_size, cli.model.hparams["label_smoothing"]) == (3, 7, 0.05)


def test_data_facts_reach_the_model_untyped(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 12, 10, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(40) % 4, class_names=["ä", "b", "c", "d"])
    args = ["--config", "configs/arrays.yaml", "--data.path", str(tmp_path / "a.npz"), "--run_dir", str(tmp_path / "run")]
    cli = start("fit", [*args, "--accelerator", "cpu"])
    assert cli.model.hparams["class_names"] == ["ä", "b", "c", "d"]
    assert cli.model.hparams["input_shape"] == [3, 12, 10]
    train = images[cli.datamodule.rows["train"]] / 255
    np.testing.assert_allclose(cli.model.hparams["mean"], train.mean(axis=(0, 1, 2)), atol=1e-5)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_every_shipped_recipe_parses(recipe: Path, tmp_path: Path) -> None:
    images, labels = np.zeros((40, 8, 8), dtype=np.uint8), np.arange(40) % 2
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    rows = ["path,label"]
    for number, label in enumerate(labels):
        path = tmp_path / "photos" / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), number, dtype=np.uint8)).save(path)
        rows.append(f"{path},{label}")
    (tmp_path / "photos.csv").write_text("\n".join(rows))
    where = {
        "arrays": ["--data.path", tmp_path / "a.npz"],
        "folder": ["--data.root", tmp_path / "photos"],
        "table": ["--data.table", tmp_path / "photos.csv"],
    }
    if recipe.stem == "torchvision":  # not downloaded; tests/data/test_torchvision_set.py has sets of its own
        with pytest.raises(UserError, match="CIFAR10 is not complete in"):
            parse(tmp_path, "--config", str(recipe), "--data.root", str(tmp_path), "--data.download", "false")
        return
    parse(tmp_path, "--config", str(recipe), *map(str, where.get(recipe.stem, [])))


@pytest.mark.parametrize("overlay", ["multinode", "slurm"])
def test_fsdp_keeps_the_time_limit_of_several_machines_and_takes_another(run: Run, overlay: str) -> None:
    command = ["fit", *DIGITS, "--config", f"configs/device/{overlay}.yaml", "--config", "configs/device/fsdp.yaml"]
    for more, timeout in (([], "0:00:40"), (["--trainer.strategy.timeout", "0:05:00"], "0:05:00")):
        outcome = run(*command, *more, "--print_config")
        assert outcome.code == 0, outcome.err
        strategy = yaml.safe_load(outcome.out)["trainer"]["strategy"]
        assert strategy["class_path"].endswith("FSDPStrategy")
        assert strategy["init_args"]["timeout"] == timeout


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_shipped_overlay_parses(overlay: Path, tmp_path: Path) -> None:
    keys = yaml.safe_load(overlay.read_text())
    # What is written for GPUs or several machines must parse without them too.
    on_this_machine = ["--accelerator", "cpu", "--devices", "1", "--trainer.num_nodes", "1"]
    if overlay.stem == "fsdp":
        on_this_machine += ["--strategy", "ddp"]
    cli = parse(tmp_path, "--config", str(overlay), *on_this_machine)
    replaced = [arg.rpartition(".")[2].removeprefix("--") for arg in on_this_machine[::2]]
    for key in keys["trainer"].keys() - replaced:
        found, written = cli.config.trainer[key], keys["trainer"][key]
        if isinstance(written, dict):  # a class: the overlay's arguments among all of them
            assert found.class_path == written["class_path"]
            found, written = found.init_args, written["init_args"]
            assert {name: str(found[name]) for name in written} == written
        else:
            assert found == written


def test_recipes_are_found_from_any_directory(run: Run) -> None:
    outcome = run("fit", *DIGITS, "--print_config")
    assert outcome.code == 0
    assert yaml.safe_load(outcome.out)["data"]["class_path"] == "lit_guide.data.DigitsData"


@pytest.mark.parametrize(
    ("args", "wrong", "right"),
    [
        (["--trainer.max_epoch", "2"], "trainer.max_epoch", "trainer.max_epochs"),
        (["--trainer.max_epoch=2"], "trainer.max_epoch", "trainer.max_epochs"),
        (["--device", "1"], "device", "devices"),
        (["--data.batchsize", "2"], "data.batchsize", "data.batch_size"),
        (["--model.optimizer.lrr", "2"], "model.optimizer.lrr", "model.optimizer.lr"),
        (["--export.onx.enabled", "false"], "export.onx.enabled", "export.onnx.enabled"),
        (["--model.optimizer", "Sgd"], "Sgd", "SGD"),
        (["--data", "DigitData"], "DigitData", "DigitsData"),
        (["--trainer.callbacks+=EarlyStoping"], "EarlyStoping", "EarlyStopping"),
        (["--model.network", "resnet81"], "resnet81", "resnet18"),
        (["--model.network_args.width", "[8]"], "width", "widths"),
    ],
)
def test_f12_unknown_or_abbreviated_flag_is_refused_with_the_nearest(run: Run, args: list[str], wrong: str, right: str) -> None:
    outcome = run("fit", *DIGITS, *args, "--accelerator", "cpu")
    assert outcome.code == 2
    assert repr(wrong) in outcome.err
    assert right in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("text", "wrong", "right"),
    [
        ("model: {netwrk: cnn}", "model.netwrk", "model.network"),
        ("trainr: {max_epochs: 2}", "trainr.max_epochs", "trainer.max_epochs"),
        ("data: {init_args: {bach_size: 2}}", "data.bach_size", "data.batch_size"),
        ("model: {optimizer: {class_path: SGD, init_args: {momentumm: 2}}}", "model.optimizer.momentumm", None),
    ],
)
def test_f12_unknown_key_in_yaml_is_refused_with_the_nearest(run: Run, text: str, wrong: str, right: str | None) -> None:
    Path("wrong.yaml").write_text(text)
    outcome = run("fit", *DIGITS, "--config", "wrong.yaml")
    assert outcome.code == 2
    assert repr(wrong) in outcome.err
    assert right is None or f"Did you mean {right}?" in outcome.err


@pytest.mark.parametrize(
    "text",
    [
        "model: {optimizer: {class_path: subprocess.Popen, init_args: {args: [touch, pwned]}}}",
        "model: {optimizer: {class_path: os.system, init_args: {command: touch pwned}}}",
        'model: {optimizer: \'lambda parameters: open("pwned", "w")\'}',
        "model: {scheduler: {class_path: evil.Evil}}",
        "trainer: {callbacks: [{class_path: subprocess.Popen, init_args: {args: [touch, pwned]}}]}",
        "trainer: {callbacks: [{class_path: evil.Evil}]}",
        "trainer: {logger: {class_path: evil.Evil}}",
        "trainer: {profiler: {class_path: evil.Evil}}",
        "data: {class_path: evil.Evil}",
        "data: {class_path: subprocess.Popen, init_args: {args: [touch, pwned]}}",
    ],
)
def test_f11_yaml_imports_and_runs_nothing_foreign(run: Run, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("evil.py").write_text("open('pwned', 'w')\nclass Evil: pass\n")
    monkeypatch.syspath_prepend(".")
    Path("wrong.yaml").write_text(text)
    outcome = run("fit", *DIGITS, "--config", "wrong.yaml")
    assert outcome.code == 2
    assert not Path("pwned").exists()
    assert not Path("runs").exists()


def test_f11_classes_of_the_package_are_allowed(tmp_path: Path) -> None:
    cli = parse(tmp_path, "--model.scheduler", "WarmupCosine", "--model.scheduler.warmup", "0.2")
    assert cli.model.hparams["scheduler"]["name"] == "WarmupCosine"
    assert cli.model.hparams["scheduler"]["warmup"] == 0.2


@pytest.mark.parametrize(
    "args",
    [
        ["--accelerator", "gpu"],
        ["--accelerator", "cpu", "--devices", "4096"],
        ["--accelerator", "cpu", "--strategy", "fsdp"],
        ["--accelerator", "cpu", "--strategy", "nonsense"],
        ["--accelerator", "nonsense"],
    ],
)
def test_f22_devices_that_are_not_there_exit_2_and_say_what_is(run: Run, args: list[str]) -> None:
    import torch

    if args[1] == "gpu" and (torch.cuda.is_available() or torch.backends.mps.is_available()):
        pytest.skip("this machine has a GPU")
    outcome = run("fit", *DIGITS, *args)
    assert outcome.code == 2
    assert "This machine has" in outcome.err
    assert "CPU cores" in outcome.err
    assert not any(path.is_dir() for path in Path("runs").glob("*/*"))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "No data were chosen"),
        (["--config", "nope.yaml"], "configs/digits.yaml"),
        (["--config", "broken.yaml"], "broken.yaml is no valid YAML"),
        ([*DIGITS, "--trainer.max_epochs", "many"], "trainer.max_epochs is many: expected int"),
        ([*DIGITS, "--data.batch_size", "x"], "data.batch_size is x: expected int"),
        ([*DIGITS, "--data.batch_size", "0"], "data.batch_size is 0"),
        ([*DIGITS, "--data.val_fraction", "0.9"], "data.val_fraction"),
        ([*DIGITS, "--precision", "8"], "bf16-mixed"),
        ([*DIGITS, "--model.label_smoothing", "2"], "model.label_smoothing is 2"),
        ([*DIGITS, "--model.class_weights", "[1,2]"], "2 values for 10 classes"),
        ([*DIGITS, "--model.network", "vgg11"], "--data.image_size"),
        ([*DIGITS, "--model.weights", "DEFAULT"], "no pretrained weights"),
        ([*DIGITS, "--name", "../x"], "plain name"),
    ],
)
def test_a_wrong_configuration_exits_2_in_one_line(run: Run, args: list[str], words: str) -> None:
    Path("broken.yaml").write_text("model: [\n")
    outcome = run("fit", *args)
    assert outcome.code == 2
    assert words in outcome.err
    assert "Traceback" not in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not Path("runs").exists()


BROKEN = {
    "syntax": ("def (", "SyntaxError"),
    "missing": ("import nosuchpkg\n", "No module named 'nosuchpkg'"),
    "raises": ("1 / 0\n", "division by zero"),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("key", ["model", "data"])
def test_a_file_of_ones_own_that_can_not_be_imported_says_why(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, kind: str
) -> None:
    import lit_guide

    (tmp_path / f"broken_{kind}.py").write_text(BROKEN[kind][0])
    monkeypatch.setattr(lit_guide, "__path__", [*lit_guide.__path__, str(tmp_path)])
    outcome = run("fit", *DIGITS, f"--{key}", f"lit_guide.broken_{kind}.X")
    assert outcome.code == 2
    assert f"{key}: lit_guide.broken_{kind}.X can't be imported: " in outcome.err
    assert BROKEN[kind][1] in outcome.err


def test_a_source_without_load_is_told_what_it_lacks(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lit_guide

    (tmp_path / "no_load.py").write_text("from lit_guide.data import DataModule\n\n\nclass NoLoad(DataModule):\n    pass\n")
    monkeypatch.setattr(lit_guide, "__path__", [*lit_guide.__path__, str(tmp_path)])
    outcome = run("fit", *DIGITS, "--data", "lit_guide.no_load.NoLoad")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "data: lit_guide.no_load.NoLoad lacks load: add it." in outcome.err


def test_a_usual_model_that_takes_no_optimizer_has_help_and_trains(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(LitClassifier):
        def __init__(self, class_names: list[str], input_shape: list[int], mean: list[float], std: list[float]) -> None:
            super().__init__(class_names, input_shape, mean, std)

    monkeypatch.setattr("lit_guide.fit.LitClassifier", Plain)
    monkeypatch.setattr("lit_guide.model.Plain", Plain, raising=False)
    Plain.__module__, Plain.__qualname__ = "lit_guide.model", "Plain"
    assert run("fit", "--help").code == 0
    outcome = run("fit", "--data", "DigitsData", "--trainer.fast_dev_run", "true", "--accelerator", "cpu")
    assert outcome.code == 0, outcome.err


# --- F48: what a named class lacks

OWN_CALLBACKS = """
from lightning.pytorch import Callback


class Wants(Callback):
    def __init__(self, first: int, second: str, third: float = 1.0) -> None:
        if first < 0:
            raise KeyError("first")
        self.first = first
        import no_such_package_of_ours
"""


@pytest.fixture
def own_callbacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of a module of one's own."""
    import lit_guide

    (tmp_path / "wants_of_ours.py").write_text(OWN_CALLBACKS)
    monkeypatch.setattr(lit_guide, "__path__", [*lit_guide.__path__, str(tmp_path)])
    return "lit_guide.wants_of_ours"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        # a package is not there
        (["--trainer.plugins", "BitsandbytesPrecision", "--trainer.plugins.mode", "nf4"], "`pip install -U 'bitsandbytes'`"),
        # an argument is missing
        (["--trainer.callbacks", "EarlyStopping"], "trainer.callbacks lacks monitor: add --trainer.callbacks.monitor VALUE."),
        (["--trainer.callbacks+=EarlyStopping"], "trainer.callbacks lacks monitor: add --trainer.callbacks.monitor VALUE."),
        (["--trainer.logger", "TensorBoardLogger"], "trainer.logger lacks save_dir: add --trainer.logger.save_dir VALUE."),
        (["--model.scheduler", "CosineAnnealingLR"], "model.scheduler lacks T_max: add --model.scheduler.T_max VALUE."),
        (["--data", "ArraysData"], "data lacks path: add --data.path VALUE."),
        # a name that two classes have
        (
            ["--model.scheduler", "ReduceLROnPlateau"],
            "give the path, torch.optim.lr_scheduler.ReduceLROnPlateau.",
        ),
        (["--model.scheduler", "ReduceLROnPlateau", "--model.scheduler.patience", "2"], "several classes have this name"),
        # an argument is misspelt
        (["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitr", "x"], "Did you mean trainer.callbacks.monitor?"),
        (["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.patence", "3"], "Did you mean trainer.callbacks.patience?"),
        (["--trainer.profiler", "SimpleProfiler", "--trainer.profiler.filenme", "x"], "Did you mean trainer.profiler.filename?"),
        (["--model.optimizer", "SGD", "--model.optimizer.momentun", "1"], "Did you mean model.optimizer.momentum?"),
        (["--model.scheduler", "StepLR", "--model.scheduler.step_siz", "1"], "Did you mean model.scheduler.step_size?"),
        (["--model.loss", "NLLLoss", "--model.loss.weigt", "1"], "Did you mean model.loss.weight?"),
    ],
)
def test_f48_what_a_class_lacks_is_said_in_a_line(run: Run, args: list[str], words: str) -> None:
    outcome = run("fit", *DIGITS, "--accelerator", "cpu", *args)
    assert outcome.code == 2
    assert words in outcome.err
    assert outcome.err.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("name", "args", "package"),
    [("TensorBoardLogger", ["--trainer.logger.save_dir", "tb"], "tensorboard"), ("WandbLogger", [], "wandb"),
     ("MLFlowLogger", [], "mlflow"), ("CometLogger", [], "comet_ml")],
)  # fmt: skip
def test_f48_a_logger_whose_package_is_not_there_says_what_to_install(run: Run, name: str, args: list[str], package: str) -> None:
    if find_spec(package):
        pytest.skip(f"{package} is installed")
    outcome = run("fit", *DIGITS, "--accelerator", "cpu", "--trainer.logger", name, *args)
    assert outcome.code == 2
    assert f"lightning.pytorch.loggers.{name} can't be made: " in outcome.err
    assert "pip install" in outcome.err
    assert package.partition("_")[0] in outcome.err
    assert outcome.err.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("{}", "trainer.callbacks lacks first, second: add --trainer.callbacks.first VALUE --trainer.callbacks.second VALUE."),
        ("{first: 1, second: a, thrid: 2}", "'trainer.callbacks.thrid'. Did you mean trainer.callbacks.third?"),
        ("{first: 1, second: a}", "Wants can't be made: No module named 'no_such_package_of_ours'."),
        ("{first: -1, second: a}", "Wants can't be made: 'first'."),
    ],
)
def test_f48_a_class_of_ones_own_in_a_list_of_a_file_is_told_likewise(
    run: Run, own_callbacks: str, given: str, words: str
) -> None:
    Path("own.yaml").write_text(f"trainer: {{callbacks: [{{class_path: {own_callbacks}.Wants, init_args: {given}}}]}}")
    outcome = run("fit", *DIGITS, "--accelerator", "cpu", "--config", "own.yaml")
    assert outcome.code == 2
    assert words in outcome.err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "text",
    [
        "given class_path 'evil.Evil':\n Option 'a.b.c' is not accepted",
        "Got value: Namespace(class_path='evil.Evil', init_args Option 'x' is not accepted",
    ],
)
def test_f48_no_text_of_a_value_is_imported_for_a_suggestion(run: Run, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    Path("evil.py").write_text("open('pwned', 'w')\nclass Evil: pass\n")
    monkeypatch.syspath_prepend(".")
    Path("wrong.yaml").write_text(
        yaml.safe_dump({"trainer": {"callbacks": [text], "profiler": {"class_path": "SimpleProfiler", "init_args": {"x": text}}}})
    )
    assert run("fit", *DIGITS, "--config", "wrong.yaml").code == 2
    assert not Path("pwned").exists()
