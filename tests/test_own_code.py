"""Code of one's own beside the package's: models, data, losses, networks, optimizers, callbacks; `--allow` for other packages."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import lit_guide
from lit_guide.engine.allowed import allow as allow_packages
from lit_guide.engine.errors import UserError
from lit_guide.engine.run.checkpoint import read_checkpoint
from lit_guide.predict import Predictor
from tests.conftest import Run

OWN = '''
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, TensorDataset

DIGITS = [str(digit) for digit in range(10)]


def layers(hidden=16):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


class Bare(LightningModule):
    """The least that trains."""

    def __init__(self, hidden: int = 16, lr: float = 0.01):
        super().__init__()
        self.layers, self.lr = layers(hidden), lr

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.layers(batch[0]), batch[1])

    def configure_optimizers(self):
        return SGD(self.parameters(), lr=self.lr)


class Renamed(Bare):
    """Logs under other names."""

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.layers(batch[0]), batch[1]))

    def test_step(self, batch, batch_idx):
        self.log("test_accuracy", (self.layers(batch[0]).argmax(1) == batch[1]).float().mean())


class Silent(Bare):
    """Evaluates, and logs nothing."""

    def validation_step(self, batch, batch_idx):
        self.layers(batch[0])

    test_step = validation_step


class ByHand(Renamed):
    """Two optimizers, stepped by hand."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(self.layers(batch[0]), batch[1]))
            optimizer.step()

    def configure_optimizers(self):
        return [SGD(self.layers[i].parameters(), lr=self.lr) for i in (1, 3)]


class Whole(LightningModule):
    """All pieces; its parameters are kept."""

    def __init__(self, class_names: list[str], input_shape: tuple[int, int, int], hidden: int = 32, lr: float = 0.01):
        super().__init__()
        self.save_hyperparameters()
        C, H, W = input_shape
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(C * H * W, hidden), nn.ReLU(), nn.Linear(hidden, len(class_names)))

    def forward(self, image_BCHW):
        return self.layers(image_BCHW)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", F.cross_entropy(self(batch[0]), batch[1]), sync_dist=True)

    def test_step(self, batch, batch_idx):
        self.log("test/accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean(), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])


class Attributes(LightningModule):
    """What it tells stands in attributes; it takes nothing."""

    class_names, input_shape = DIGITS, (1, 8, 8)
    training_step, forward, validation_step = Whole.training_step, Whole.forward, Whole.validation_step

    def __init__(self):
        super().__init__()
        self.layers = layers()

    def configure_optimizers(self):
        return SGD(self.parameters(), lr=0.1)


class Forgetful(Attributes):
    """Its parameter is not kept."""

    def __init__(self, hidden: int = 16):
        super().__init__()
        self.layers = layers(hidden)


class WithOptimizer(Attributes):
    """Takes an optimizer, as ours does, and keeps it: no plain value."""

    def __init__(self, optimizer: OptimizerCallable = SGD, mean: tuple = ()):
        super().__init__()
        self.optimizer, self.mean = optimizer, mean
        self.keep()

    def keep(self):
        self.save_hyperparameters({"optimizer": self.optimizer})

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


class SparesOptimizer(WithOptimizer):
    def keep(self):
        self.save_hyperparameters({"mean": list(self.mean)})


class Empty(LightningModule):
    pass


class OfDicts(Renamed):
    """Takes batches of another form."""

    def training_step(self, batch, batch_idx):
        return {"loss": super().training_step((batch["image"], batch["label"]), batch_idx)}

    def validation_step(self, batch, batch_idx):
        super().validation_step((batch["image"], batch["label"]), batch_idx)

    def test_step(self, batch, batch_idx):
        super().test_step((batch["image"], batch["label"]), batch_idx)


def samples(count):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % 10


class PlainData(LightningDataModule):
    """Shares nothing with ours."""

    def __init__(self, batch_size: int = 32, count: int = 96):
        super().__init__()
        self.batch_size, self.count = batch_size, count

    def train_dataloader(self):
        return DataLoader(TensorDataset(*samples(self.count)), batch_size=self.batch_size)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class ToldData(PlainData):
    """Tells what ours tells."""

    class_names, input_shape, mean, std = DIGITS, (1, 8, 8), (0.5,), (0.3,)


class TrainData(LightningDataModule):
    """Takes nothing, and has one split."""

    def train_dataloader(self):
        return DataLoader(TensorDataset(*samples(64)), batch_size=32)


class DictData(LightningDataModule):
    def train_dataloader(self):
        return DataLoader([{"image": image, "label": label} for image, label in zip(*samples(64))], batch_size=16)

    val_dataloader = test_dataloader = train_dataloader


class FocalLoss(nn.Module):
    def __init__(self, gamma: float = 2.0):
        super().__init__()
        self.gamma = gamma

    def forward(self, logits_BK, label_B):
        log_B = logits_BK.log_softmax(1).gather(1, label_B[:, None])[:, 0]
        return -((1 - log_B.exp()) ** self.gamma * log_B).mean()


class WeightedLoss(nn.Module):
    def __init__(self, weight=None, label_smoothing: float = 0.0):
        super().__init__()
        self.register_buffer("weight", weight)
        self.label_smoothing = label_smoothing

    def forward(self, logits_BK, label_B):
        return F.cross_entropy(logits_BK, label_B, self.weight, label_smoothing=self.label_smoothing)


class LearntLoss(nn.Module):
    """It has a parameter."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, logits_BK, label_B):
        return F.cross_entropy(logits_BK * self.scale, label_B)


class OwnMLP(nn.Module):
    def __init__(self, channels: int, classes: int, hidden: int = 16):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(channels * 64, hidden), nn.ReLU(), nn.Linear(hidden, classes))

    def forward(self, image_BCHW):
        return self.layers(image_BCHW)


class OwnAdamW(AdamW):
    """Two groups."""

    def __init__(self, params, lr: float = 1e-3, weight_decay: float = 0.05):
        every = list(params)
        groups = [([p for p in every if p.ndim > 1], weight_decay), ([p for p in every if p.ndim <= 1], 0.0)]
        super().__init__([{"params": params, "weight_decay": decay} for params, decay in groups], lr=lr)


class OwnSchedule(LRScheduler):
    def __init__(self, optimizer, factor: float = 0.5):
        self.factor = factor
        super().__init__(optimizer)

    def get_lr(self):
        return [rate * self.factor**self.last_epoch for rate in self.base_lrs]


class OwnCallback(Callback):
    def __init__(self, word: str = "done"):
        self.word = word

    def on_train_epoch_end(self, trainer, pl_module):
        print(self.word, trainer.current_epoch)


class OwnLogger(Logger):
    name, version = "own", "0"

    def __init__(self, word: str = "logged"):
        super().__init__()
        self.word, self.count = word, 0

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.count += 1
        print(self.word, self.count)
'''
QUIET = ["--accelerator", "cpu", "--trainer.max_epochs", "2", "--trainer.enable_model_summary", "false"]
FIT = ["fit", "--config", "configs/digits.yaml", *QUIET]
NO_EXPORT = [f"--export.{name}.enabled=false" for name in ("onnx", "torchscript", "pt2")]
BARE_DATA = ["fit", *QUIET]


@pytest.fixture(scope="module", autouse=True)
def own(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """A file that somebody wrote into the package: `lit_guide.mine`."""
    path = tmp_path_factory.mktemp("own") / "mine.py"
    path.write_text(OWN)
    spec = importlib.util.spec_from_file_location("lit_guide.mine", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # For good: its classes stay known to their bases, and jsonargparse asks each of them for the module that it is from.
    sys.modules["lit_guide.mine"] = lit_guide.mine = module  # type: ignore[attr-defined]
    spec.loader.exec_module(module)
    return module


def results(run_dir: str = "r") -> dict[str, object]:
    return json.loads(Path(run_dir, "results.json").read_text())


def step_of(checkpoint: str) -> int:
    return read_checkpoint(checkpoint)["global_step"]


def pictures(folder: Path) -> list[Path]:
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


# --- a LightningModule


@pytest.mark.parametrize(
    ("model", "metric", "tested"),
    [
        ("Bare", "train/loss", None),
        ("Silent", "val/loss", None),
        ("Renamed", "val/loss", "test_accuracy"),
        ("ByHand", "val/loss", "test_accuracy"),
    ],
)
def test_a_module_that_shares_nothing_trains_and_hears_what_it_lacks(
    run: Run, model: str, metric: str, tested: str | None
) -> None:
    outcome = run(*FIT, "--model", f"lit_guide.mine.{model}", "--run_dir", "r")
    assert outcome.code == 0, outcome.err
    last = 2 * 19 * (2 if model == "ByHand" else 1)
    assert [step_of(f"r/checkpoints/{name}.ckpt") for name in ("best", "last")] == [last, last]
    assert f"best.ckpt is the latest checkpoint: the model logs no {metric} to choose it by." in outcome.out
    assert list(results()["test"]) == ([tested] if tested else [])
    lacking = outcome.out.partition("For export and predict it still lacks:\n")[2].partition("\n\n")[0].splitlines()
    assert [line.split(":")[0].strip() for line in lacking] == ["forward", "class_names", "input_shape", "hidden, lr"]
    assert "def forward(self, image_BCHW)" in lacking[0]
    assert all("save_hyperparameters()" in line for line in lacking[1:])
    assert not Path("r/export").exists()
    assert ("lit-guide test --run r" in outcome.out) == (tested is not None)
    assert "lit-guide predict" not in outcome.out


def test_what_it_lacks_is_said_by_the_commands_that_need_it(run: Run) -> None:
    assert run(*FIT, "--model", "lit_guide.mine.Renamed", "--run_dir", "r").code == 0
    first = results()["test"]
    assert run("test", "--run", "r").code == 0
    assert results()["test"] == first
    again = run("fit", "--run", "r", "--trainer.max_epochs", "3", "--model.lr", "0.001")
    assert again.code == 0, again.err
    assert [step_of(f"r/checkpoints/{name}.ckpt") for name in ("best", "last")] == [57, 57]
    assert torch.load("r/checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"][0]["lr"] == 0.01
    predicted = run("predict", "--run", "r")
    assert predicted.code == 1
    assert "Renamed can't predict yet. It lacks:\n  forward: def forward" in predicted.err
    for args in (["export", "--run", "r"], ["predict", "--run", "r", "--images", *pictures(Path("album"))]):
        outcome = run(*args)
        assert outcome.code == 1
        assert "Renamed: it has no hyper_parameters; self.save_hyperparameters() in its __init__ keeps them" in outcome.err
    with pytest.raises(UserError, match="save_hyperparameters"):
        Predictor("r")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["fit", "--model", "lit_guide.mine.Empty"], "Empty lacks what fit calls: def training_step(self, batch, batch_idx)."),
        (["fit", "--model", "lit_guide.mine.Nope"], "model: there is no lit_guide.mine.Nope."),
        (["fit", "--model", "lit_guide.nope.Nope"], "model: there is no lit_guide.nope."),
        (["fit", "--model", "lit_guide.mine.PlainData"], "model: lit_guide.mine.PlainData is no LightningModule."),
        (["fit", "--model", "lit_guide.mine.Whole", "--model.hiden", "3"], "'model.hiden'. Did you mean model.hidden?"),
        (["fit", "--model", "lit_guide.mine.WithOptimizer"], "Leave it out: self.save_hyperparameters(ignore=['optimizer'])"),
        (["fit", "--model.loss", "lit_guide.mine.PlainData"], "model.loss: lit_guide.mine.PlainData is no Module."),
        (["fit", "--model.optimizer", "lit_guide.mine.Nope"], "model.optimizer: there is no lit_guide.mine.Nope."),
        (["fit", "--model.network", "lit_guide.mine.FocalLos"], "model.network: there is no lit_guide.mine.FocalLos."),
        (["fit", "--trainer.callbacks", "lit_guide.mine.OwnMLP"], "trainer.callbacks: lit_guide.mine.OwnMLP is no Callback."),
        (["fit", "--data", "lit_guide.mine.OwnMLP"], "data: lit_guide.mine.OwnMLP is no LightningDataModule."),
    ],
)
def test_a_class_that_does_not_fit_is_refused_in_one_line(run: Run, args: list[str], words: str) -> None:
    outcome = run(*args[:1], "--config", "configs/digits.yaml", *QUIET, *args[1:])
    assert outcome.code == 2
    assert words in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not Path("runs").exists()


def test_an_evaluation_that_the_model_has_no_step_for_is_refused(run: Run) -> None:
    assert run(*FIT, "--model", "lit_guide.mine.Bare", "--run_dir", "r").code == 0
    for command, step in (("test", "test_step"), ("validate", "validation_step")):
        outcome = run(command, "--run", "r")
        assert outcome.code == 2
        assert outcome.err == f"lit-guide: Bare lacks what {command} calls: def {step}(self, batch, batch_idx).\n"


@pytest.mark.slow
@pytest.mark.parametrize("model", ["Whole", "Attributes"])
def test_a_module_with_all_pieces_does_all_that_ours_does(run: Run, model: str) -> None:
    sized = ["--model.hidden", "48", "--model.lr", "0.02"] if model == "Whole" else []
    outcome = run(*FIT, "--model", f"lit_guide.mine.{model}", *sized, "--run_dir", "r")
    assert outcome.code == 0, outcome.err
    assert "lacks" not in outcome.out
    assert {path.name for path in Path("r/export").iterdir()} == {"model.onnx", "model.torchscript.pt", "model.pt2"}
    assert all(entry["max_abs_diff"] < 1e-5 for entry in results()["exports"])
    config = yaml.safe_load(Path("r/config.yaml").read_text())["model"]
    assert config["class_path"] == f"lit_guide.mine.{model}"
    if model == "Whole":
        assert config["init_args"] == {"hidden": 48, "lr": 0.02}
        figures = results()["test"]
        assert run("test", "--run", "r").code == 0
        assert results()["test"] == figures
    assert run("validate", "--run", "r").code == 0
    Path("r/export/model.onnx").unlink()
    assert run("export", "--run", "r", "--formats", "onnx").code == 0
    assert Path("r/export/model.onnx").is_file()
    assert run("predict", "--run", "r", "--run_dir", "split").code == 0
    assert len(Path("split/predictions.csv").read_text().splitlines()) == 1 + 359
    album = pictures(Path("album"))
    assert run("predict", "--run", "r", "--run_dir", "files", "--images", "album").code == 0
    rows = json.loads(Path("files/predictions.json").read_text())
    for path, row in zip(album, rows, strict=True):
        likeliest, probability = next(iter(Predictor("r")(path).items()))
        assert (likeliest, round(probability, 5)) == (row["class"], pytest.approx(row["probability"], abs=2e-5))
    assert Predictor("r/checkpoints/best.ckpt")(album[0]) == Predictor("r")(album[0])
    more = run("fit", "--run", "r", "--trainer.max_epochs", "3", *NO_EXPORT)
    assert more.code == 0, more.err
    assert step_of("r/checkpoints/last.ckpt") == 57
    # config.yaml alone repeats the run, to the same bits.
    assert run("fit", "--config", "r/config.yaml", "--run_dir", "again", *NO_EXPORT).code == 0
    one, other = (read_checkpoint(f"{name}/checkpoints/last.ckpt")["state_dict"] for name in ("r", "again"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_not_kept_is_said_although_the_run_itself_exports(run: Run) -> None:
    outcome = run(*FIT, "--model", "lit_guide.mine.Forgetful", "--run_dir", "r", "--export.pt2.enabled=false")
    assert outcome.code == 0, outcome.err
    assert {path.name for path in Path("r/export").iterdir()} == {"model.onnx", "model.torchscript.pt"}
    assert "still lacks:\n  hidden: call self.save_hyperparameters() in __init__" in outcome.out
    assert run("export", "--run", "r").code == 1


def test_a_module_may_take_an_optimizer_and_only_some_of_the_facts(run: Run) -> None:
    args = ["--model", "lit_guide.mine.SparesOptimizer", "--model.optimizer", "SGD", "--model.optimizer.lr", "0.25"]
    outcome = run(*FIT, *args, "--run_dir", "r", *NO_EXPORT)
    assert outcome.code == 0, outcome.err
    saved = read_checkpoint("r/checkpoints/last.ckpt")
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == 0.25
    assert len(saved["hyper_parameters"]["mean"]) == 1  # of the data
    again = run("fit", "--run", "r", "--trainer.max_epochs", "3", *NO_EXPORT)
    assert again.code == 0, again.err


def test_keys_stay_where_they_are_in_yaml(run: Run) -> None:
    Path("own.yaml").write_text("model:\n  class_path: lit_guide.mine.Whole\n  init_args:\n    hidden: 24\n")
    outcome = run(*FIT, "--config", "own.yaml", "--model.lr", "0.02", "--run_dir", "r", *NO_EXPORT)
    assert outcome.code == 0, outcome.err
    hyper_parameters = read_checkpoint("r/checkpoints/best.ckpt")["hyper_parameters"]
    assert {key: hyper_parameters[key] for key in ("hidden", "lr")} == {"hidden": 24, "lr": 0.02}


# --- a LightningDataModule


def test_data_that_share_nothing_train_a_model_that_asks_for_nothing(run: Run) -> None:
    args = ["--data", "lit_guide.mine.PlainData", "--data.count", "64", "--model", "lit_guide.mine.Renamed"]
    outcome = run(*BARE_DATA, *args, "--run_dir", "r")
    assert outcome.code == 0, outcome.err
    assert step_of("r/checkpoints/last.ckpt") == 4
    assert run("test", "--run", "r").code == 0
    assert list(results()["test"]) == ["test_accuracy"]
    assert run("fit", "--run", "r", "--trainer.max_epochs", "3").code == 0
    assert step_of("r/checkpoints/last.ckpt") == 6


@pytest.mark.parametrize(
    ("model", "asks"), [([], "class_names, input_shape, mean, std"), (["--model", "Whole"], "class_names, input_shape")]
)
def test_what_a_model_asks_and_the_data_do_not_say_is_said_in_one_message(run: Run, model: list[str], asks: str) -> None:
    outcome = run(*BARE_DATA, "--data", "lit_guide.mine.PlainData", *model)
    assert outcome.code == 2
    told = f"{model[1] if model else 'LitClassifier'} takes {asks}, and the data (PlainData) do not say: give them attributes"
    assert outcome.err.startswith(f"lit-guide: {told}")
    assert len(outcome.err.splitlines()) == 1
    assert not Path("runs").exists()


def test_data_that_tell_the_facts_train_ours(run: Run) -> None:
    outcome = run(*BARE_DATA, "--data", "lit_guide.mine.ToldData", "--run_dir", "r", *NO_EXPORT)
    assert outcome.code == 0, outcome.err
    assert {"loss", "accuracy", "confusion_matrix"} <= set(results()["test"])
    assert run("predict", "--run", "r").code == 0
    assert run("export", "--run", "r", "--formats", "onnx").code == 0
    outcome = run("fit", "--run", "r", "--trainer.max_epochs", "3", *NO_EXPORT)
    assert outcome.code == 0, outcome.err


def test_data_of_one_split_train(run: Run) -> None:
    args = ["--data", "lit_guide.mine.TrainData", "--model", "lit_guide.mine.Renamed"]
    outcome = run(*BARE_DATA, *args, "--run_dir", "r")
    assert outcome.code == 0, outcome.err
    assert "Next:" not in outcome.out  # there is nothing to score it on, and it can't predict
    outcome = run("test", "--run", "r")
    assert outcome.code == 2
    assert outcome.err == "lit-guide: TrainData lacks what test calls: def test_dataloader(self).\n"


def test_batches_may_have_another_form(run: Run) -> None:
    args = ["--data", "lit_guide.mine.DictData", "--model", "lit_guide.mine.OfDicts"]
    outcome = run(*BARE_DATA, *args, "--run_dir", "r")
    assert outcome.code == 0, outcome.err
    assert results()["images_per_second"] > 0


# --- a loss


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "kept"),
    [
        (["MultiMarginLoss", "--model.loss.margin", "0.5"], {"name": "MultiMarginLoss", "margin": 0.5}),
        (["lit_guide.mine.FocalLoss", "--model.loss.gamma", "1.5"], {"name": "lit_guide.mine.FocalLoss", "gamma": 1.5}),
        (["lit_guide.mine.LearntLoss"], {"name": "lit_guide.mine.LearntLoss"}),
    ],
    ids=["of torch", "own", "with a parameter"],
)
def test_another_loss_trains_and_comes_back(run: Run, loss: list[str], kept: dict[str, object]) -> None:
    outcome = run(*FIT, *NO_EXPORT, "--model.label_smoothing", "0", "--model.loss", *loss, "--run_dir", "r")
    assert outcome.code == 0, outcome.err
    saved = read_checkpoint("r/checkpoints/best.ckpt")["hyper_parameters"]["loss"]
    assert {key: saved[key] for key in kept} == kept
    model = lit_guide.load_classifier("r/checkpoints/best.ckpt")
    assert type(model.criterion).__name__ == str(kept["name"]).rpartition(".")[2]
    # The reported loss is this loss of the test split.
    figures = results()["test"]
    assert run("test", "--run", "r").code == 0
    assert results()["test"] == figures
    # A checkpoint alone knows it too.
    recipe = ["--config", "configs/digits.yaml", "--model.label_smoothing", "0", "--accelerator", "cpu"]
    assert run("test", "--ckpt_path", "r/checkpoints/best.safetensors", *recipe, "--run_dir", "elsewhere").code == 0
    assert results("elsewhere")["test"] == figures
    more = run("fit", "--run", "r", "--trainer.max_epochs", "3", *NO_EXPORT)
    assert more.code == 0, more.err
    assert "in place of" not in more.out
    assert run("export", "--run", "r", "--formats", "onnx").code == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["MultiMarginLoss"], "label_smoothing is set, but MultiMarginLoss takes no label_smoothing"),
        (
            ["lit_guide.mine.FocalLoss", "--model.label_smoothing", "0", "--model.class_weights", "auto"],
            "class_weights is set, but lit_guide.mine.FocalLoss takes no weight",
        ),
        (["L1Loss", "--model.label_smoothing", "0"], "model.loss: L1Loss takes no logits (11, 10) with labels (11,)"),
        (["CTCLoss", "--model.label_smoothing", "0"], "model.loss: CTCLoss takes no logits"),
        (["Nope", "--model.label_smoothing", "0"], "model.loss: there is no class 'Nope'"),
    ],
)
def test_a_loss_that_can_not_take_what_is_given_is_named(run: Run, args: list[str], words: str) -> None:
    outcome = run(*FIT, "--model.loss", *args)
    assert outcome.code == 2
    assert words in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not Path("runs").exists()


@pytest.mark.slow
def test_smoothing_and_class_weights_pass_through_to_a_loss_that_takes_them(run: Run) -> None:
    same = [*FIT, *NO_EXPORT, "--model.label_smoothing", "0.1", "--model.class_weights", "auto"]
    assert run(*same, "--run_dir", "plain").code == 0
    for name, loss in (("own", "lit_guide.mine.WeightedLoss"), ("torch", "torch.nn.CrossEntropyLoss")):
        outcome = run(*same, "--model.loss", loss, "--run_dir", name)
        assert outcome.code == 0, outcome.err
        one, other = (read_checkpoint(f"{run}/checkpoints/last.ckpt")["state_dict"] for run in ("plain", name))
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_shares_of_classes_train_cross_entropy_and_are_refused_by_a_loss_of_classes(run: Run) -> None:
    mixed = [*FIT, *NO_EXPORT, "--data.mixup", "0.2", "--data.cutmix", "1.0"]
    assert run(*mixed, "--run_dir", "r").code == 0
    outcome = run(*mixed, "--model.loss", "lit_guide.mine.FocalLoss", "--model.label_smoothing", "0")
    assert outcome.code == 2
    assert "model.loss: FocalLoss takes no shares of classes, (11, 10), as MixUp and CutMix give them" in outcome.err


# --- a network, and what trains it


def test_a_network_by_class_trains_comes_back_and_exports(run: Run) -> None:
    args = ["--model.network", "lit_guide.mine.OwnMLP", "--model.network_args.hidden", "24"]
    outcome = run(*FIT, *args, "--run_dir", "r", "--export.torchscript.enabled=false", "--export.pt2.enabled=false")
    assert outcome.code == 0, outcome.err
    model = lit_guide.load_classifier("r/checkpoints/best.ckpt")
    assert model.network.body.layers[1].out_features == 24
    figures = results()["test"]
    assert run("test", "--run", "r").code == 0
    assert results()["test"] == figures
    assert run("export", "--run", "r", "--formats", "onnx").code == 0
    outcome = run(*FIT, "--model.network", "lit_guide.mine.OwnMLP", "--model.network_args.hiden", "24")
    assert outcome.code == 2
    assert "Did you mean hidden?" in outcome.err


@pytest.mark.slow
@pytest.mark.parametrize("way", ["flags", "yaml"])
def test_optimizer_schedule_callback_and_logger_of_the_package(run: Run, way: str) -> None:
    chosen = {
        "model.optimizer": ("OwnAdamW", {"lr": 0.002, "weight_decay": 0.1}),
        "model.scheduler": ("OwnSchedule", {"factor": 0.25}),
        "trainer.callbacks": ("OwnCallback", {"word": "hi"}),
        "trainer.logger": ("OwnLogger", {"word": "lo"}),
    }
    args: list[str] = []
    sections: dict[str, dict[str, object]] = {"model": {}, "trainer": {}}
    for key, (name, arguments) in chosen.items():
        args += [f"--{key}", f"lit_guide.mine.{name}", *(f"--{key}.{arg}={value}" for arg, value in arguments.items())]
        section, _, part = key.partition(".")
        entry = {"class_path": f"lit_guide.mine.{name}", "init_args": arguments}
        sections[section][part] = [entry] if part == "callbacks" else entry
    if way == "yaml":
        Path("own.yaml").write_text(yaml.safe_dump(sections))
        args = ["--config", "own.yaml"]
    outcome = run(*FIT, *NO_EXPORT, *args, "--run_dir", "r")
    assert outcome.code == 0, outcome.err
    assert "hi 0\n" in outcome.out
    assert "lo 1\n" in outcome.out
    groups = read_checkpoint("r/checkpoints/last.ckpt")["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert groups[0]["lr"] == pytest.approx(0.002 * 0.25**2)
    outcome = run("fit", "--run", "r", *NO_EXPORT, "--trainer.max_epochs", "3")
    assert outcome.code == 0, outcome.err
    assert "hi 2\n" in outcome.out
    groups = read_checkpoint("r/checkpoints/last.ckpt")["optimizer_states"][0]["param_groups"]
    assert groups[0]["lr"] == pytest.approx(0.002 * 0.25**3)


# --- packages from elsewhere


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a package that can be imported, and leaves a file where it is. Each test has another: classes stay known."""
    name = f"other_{tmp_path.name}"
    package = tmp_path / "elsewhere" / name
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'imported')!r}).touch()\n")
    (package / "code.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(package.parent))
    return name


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        ("--model ", "Whole"),
        ("--data ", "ToldData"),
        ("--model.loss ", "FocalLoss"),
        ("--model.network ", "OwnMLP"),
        ("--model.optimizer ", "OwnAdamW"),
        ("--model.scheduler ", "OwnSchedule"),
        ("--trainer.callbacks ", "OwnCallback"),
        ("--trainer.callbacks+=", "OwnCallback"),
        ("--trainer.logger ", "OwnLogger"),
    ],
)
def test_a_class_of_another_package_is_refused_with_the_whole_command_to_type(run: Run, other: str, flag: str, name: str) -> None:
    args = f"{flag}{other}.code.{name}".split()
    outcome = run(*FIT, *args, "--name", "a name")
    assert outcome.code == 2
    assert "may not be imported" in outcome.err
    assert f"If you trust {other}: lit-guide {' '.join([*FIT, *args])} --name 'a name' --allow {other}" in outcome.err
    assert not Path("imported").exists()
    assert not Path("runs").exists()


@pytest.mark.slow
def test_every_command_takes_allowed_classes_and_none_without(run: Run, other: str) -> None:
    args = ["--model.network", f"{other}.code.OwnMLP", "--model.loss", f"{other}.code.FocalLoss", "--model.label_smoothing", "0"]
    args += ["--model.optimizer", f"{other}.code.OwnAdamW", "--trainer.callbacks", f"{other}.code.OwnCallback"]
    allow = ["--allow", other]
    outcome = run(*FIT, *args, "--run_dir", "r", "--export.torchscript.enabled=false", "--export.pt2.enabled=false", *allow)
    assert outcome.code == 0, outcome.err
    assert f"lit-guide test --run r --allow {other}" in outcome.out
    assert Path("imported").exists()
    album = pictures(Path("album"))
    for command in (
        ["test", "--run", "r"],
        ["validate", "--run", "r"],
        ["predict", "--run", "r"],
        ["predict", "--run", "r", "--images", *album],
        ["export", "--run", "r", "--formats", "onnx"],
        ["fit", "--run", "r", "--trainer.max_epochs", "3", *NO_EXPORT],
    ):
        refused = run(*command)
        assert refused.code in (1, 2)
        typed = " ".join(str(part) for part in command)
        assert f"lit-guide {typed} --allow {other}" in refused.err
        outcome = run(*command, *allow)
        assert outcome.code == 0, outcome.err
    allow_packages([])
    with pytest.raises(UserError, match=rf"lit_guide\.engine\.allowed\.allow\(\['{other}'\]\)"):
        Predictor("r")
    allow_packages([other])
    assert len(Predictor("r")(album[0])) == 10
    allow_packages([])


def test_a_model_of_another_package_is_remembered_by_its_run(run: Run, other: str) -> None:
    allow = ["--allow", other]
    assert run(*FIT, "--model", f"{other}.code.Whole", "--run_dir", "r", *NO_EXPORT, *allow).code == 0
    for command in (["test"], ["predict"], ["export", "--formats", "onnx"], ["fit", "--trainer.max_epochs", "3", *NO_EXPORT]):
        typed = [command[0], "--run", "r", *command[1:]]
        refused = run(*typed)
        assert refused.code == 2
        assert f"lit-guide {' '.join(typed)} --allow {other}" in refused.err
        outcome = run(*typed, *allow)
        assert outcome.code == 0, outcome.err


def test_allow_in_a_file_is_refused(run: Run, other: str) -> None:
    Path("own.yaml").write_text(f"allow: [{other}]\nmodel:\n  class_path: {other}.code.Whole\n")
    outcome = run(*FIT, "--config", "own.yaml")
    assert outcome.code == 2
    assert not Path("imported").exists()
    Path("own.yaml").write_text(f"allow: [{other}]\n")
    outcome = run(*FIT, "--config", "own.yaml")
    assert outcome.code == 2
    assert "allow stands in a configuration file, but it belongs to one call: give it as --allow." in outcome.err
    assert not Path("imported").exists()


def test_a_package_that_is_not_there_can_not_be_allowed(run: Run) -> None:
    outcome = run(*FIT, "--allow", "no_such_package_here")
    assert outcome.code == 2
    assert "--allow no_such_package_here: it can't be imported" in outcome.err


# --- in processes of their own


def call(*args: str, cwd: Path, path: Path) -> subprocess.CompletedProcess[str]:
    """A command of the package that lies in `path`."""
    command = [sys.executable, "-m", "lit_guide", *args]
    environment = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the package with a file of one's own, as a generated project is one."""
    root = Path(str(lit_guide.__file__)).parents[1]
    shutil.copytree(root / "lit_guide", tmp_path / "project/lit_guide", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(root / "configs", tmp_path / "project/configs")
    (tmp_path / "project/lit_guide/mine.py").write_text(OWN)
    return tmp_path / "project"


DDP = ["--devices", "2", "--strategy", "ddp"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the gloo build for Windows needs a network name that CI lacks")
def test_two_processes_train_a_module_of_the_project(project: Path) -> None:
    done = call(*FIT, *DDP, "--model", "lit_guide.mine.Whole", "--run_dir", "r", cwd=project, path=project)
    assert done.returncode == 0, done.stderr
    found = results(str(project / "r"))
    assert found["device"]["devices"] == 2
    assert len(found["exports"]) == 3
    done = call("fit", "--run", "r", "--trainer.max_epochs", "3", *NO_EXPORT, cwd=project, path=project)
    assert done.returncode == 0, done.stderr
    assert step_of(str(project / "r/checkpoints/last.ckpt")) == 30
    done = call(*FIT, *DDP, "--model", "lit_guide.mine.Renamed", "--run_dir", "renamed", cwd=project, path=project)
    assert done.returncode == 0, done.stderr
    assert step_of(str(project / "renamed/checkpoints/best.ckpt")) == 20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the gloo build for Windows needs a network name that CI lacks")
def test_the_other_processes_of_a_run_may_import_what_is_allowed(tmp_path: Path, other: str) -> None:
    path = Path(f"{tmp_path / 'elsewhere'}{os.pathsep}{Path(str(lit_guide.__file__)).parents[1]}")
    args = [*FIT, *DDP, *NO_EXPORT, "--model.network", f"{other}.code.OwnMLP", "--data", "DigitsData", "--run_dir", "r"]
    done = call(*args, cwd=tmp_path, path=path)
    assert done.returncode == 2
    assert f"--allow {other}" in done.stderr
    assert not (tmp_path / "imported").exists()
    done = call(*args, "--allow", other, cwd=tmp_path, path=path)
    assert done.returncode == 0, done.stderr
    assert results(str(tmp_path / "r"))["device"]["devices"] == 2


@pytest.mark.slow
def test_short_names_and_help_of_the_project(project: Path) -> None:
    (project / "lit_guide/fit.py").write_text(
        (project / "lit_guide/fit.py").read_text() + textwrap.dedent("\nfrom lit_guide import mine  # noqa: E402, F401\n")
    )
    done = call(*FIT, *NO_EXPORT, "--model", "Whole", "--data", "DigitsData", "--run_dir", "r", cwd=project, path=project)
    assert done.returncode == 0, done.stderr
    done = call("fit", "--model.help", "Whole", cwd=project, path=project)
    assert done.returncode == 0
    assert "--model.hidden" in done.stdout
