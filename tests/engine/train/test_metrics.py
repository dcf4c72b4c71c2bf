import csv
import re
import time
from importlib.metadata import version

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_guide.data import DigitsData
from lit_guide.engine.train.metrics import MetricsCSV, Throughput, environment
from lit_guide.model import LitClassifier

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),  # Lightning 2.6 on torch 2.11 and up
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small networks are slower on several threads, and times vary more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fit(run_dir, *callbacks, batch_size=64, ckpt_path=None, **trainer_args):
    seed_everything(0, verbose=False)
    data = DigitsData(batch_size=batch_size)
    model = LitClassifier(data.class_names, data.input_shape, data.mean, data.std, network_args={"widths": [2]})
    trainer = Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": 2,
            "limit_train_batches": 4,
            "limit_val_batches": 2,
            "logger": False,
            "log_every_n_steps": 1,
            "default_root_dir": run_dir,
            "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": list(callbacks),
            **trainer_args,
        }
    )
    trainer.fit(model, data, ckpt_path=ckpt_path)
    return trainer


def rows_of(run_dir):
    with (run_dir / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def names_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# metrics.csv


def test_metrics_csv_is_the_only_file_of_a_run_and_has_every_value(tmp_path):
    class Remember(Callback):
        val_loss, train_loss, step_loss = [], [], []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.step_loss.append(outputs["loss"].item())

        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                self.val_loss.append(trainer.callback_metrics["val/loss"].item())

        def on_train_epoch_start(self, trainer, pl_module):
            self.train_loss += [trainer.callback_metrics[k].item() for k in ("train/loss",) if k in trainer.callback_metrics]

        on_train_end = on_train_epoch_start

    seen = Remember()
    fit(tmp_path, seen, logger=MetricsCSV(tmp_path))
    assert names_below(tmp_path) == ["metrics.csv"]
    rows = rows_of(tmp_path)
    for name, expected in (("val/loss", seen.val_loss), ("train/loss", seen.train_loss), ("train/loss_step", seen.step_loss)):
        assert [float(row[name]) for row in rows if row[name]] == pytest.approx(expected)
    assert (len(seen.val_loss), len(seen.train_loss), len(seen.step_loss)) == (2, 2, 8)
    assert [int(row["step"]) for row in rows if row["train/loss_step"]] == list(range(8))
    assert [int(row["epoch"]) for row in rows if row["val/loss"]] == [0, 1]


def test_a_continued_run_goes_on_in_the_same_file_and_keeps_its_rows(tmp_path):
    fit(tmp_path, ModelCheckpoint(tmp_path, filename="last"), logger=MetricsCSV(tmp_path), max_epochs=1)
    earlier = rows_of(tmp_path)
    fit(
        tmp_path,
        ModelCheckpoint(tmp_path, filename="last", enable_version_counter=False),
        logger=MetricsCSV(tmp_path),
        ckpt_path=tmp_path / "last.ckpt",
    )
    rows = rows_of(tmp_path)
    assert rows[: len(earlier)] == earlier
    assert len(earlier) > 4
    later = rows[len(earlier) :]
    assert [int(row["step"]) for row in later if row["train/loss_step"]] == [4, 5, 6, 7]
    assert {row["epoch"] for row in later} == {"1"}


def test_a_new_metric_gets_a_column_and_earlier_rows_keep_theirs(tmp_path):
    first = MetricsCSV(tmp_path)
    first.log_metrics({"loss": 0.5, "lr": 0.125}, step=0)
    first.finalize("success")
    second = MetricsCSV(tmp_path)
    second.log_metrics({"loss": 0.25}, step=1)
    second.log_metrics({"accuracy": 1.0}, step=2)
    second.finalize("success")
    third = MetricsCSV(tmp_path)
    third.log_metrics({"lr": 2.0}, step=3)
    third.finalize("success")
    assert rows_of(tmp_path) == [
        {"step": "0", "loss": "0.5", "lr": "0.125", "accuracy": ""},
        {"step": "1", "loss": "0.25", "lr": "", "accuracy": ""},
        {"step": "2", "loss": "", "lr": "", "accuracy": "1.0"},
        {"step": "3", "loss": "", "lr": "2.0", "accuracy": ""},
    ]


def test_a_continued_run_that_logs_nothing_leaves_the_file_as_it_was(tmp_path):
    first = MetricsCSV(tmp_path)
    first.log_metrics({"loss": 0.5}, step=0)
    first.finalize("success")
    rows = rows_of(tmp_path)
    MetricsCSV(tmp_path).finalize("success")
    assert rows_of(tmp_path) == rows == [{"step": "0", "loss": "0.5"}]


def test_an_empty_metrics_csv_of_a_killed_run_is_started_anew(tmp_path):
    (tmp_path / "metrics.csv").write_text("")
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"loss": 0.5}, step=0)
    logger.finalize("success")
    assert rows_of(tmp_path) == [{"step": "0", "loss": "0.5"}]


# Throughput


def test_throughput_counts_every_training_image_once_and_no_other(tmp_path):
    throughput = Throughput()
    fit(tmp_path, throughput, batch_size=500, limit_train_batches=None, max_epochs=2, val_check_interval=1)
    assert throughput.images == 2 * len(DigitsData().rows["train"])  # the last, smaller batch counts as what it is


class Sleepy(Callback):
    """Takes a known time at a hook."""

    def __init__(self, **seconds):
        self.seconds = seconds
        self.slept = dict.fromkeys(seconds, 0.0)

    def _sleep(self, hook):
        if hook in self.seconds:
            time.sleep(self.seconds[hook])
            self.slept[hook] += self.seconds[hook]

    def on_train_batch_start(self, *args):
        self._sleep("train")

    def on_validation_batch_start(self, *args):
        self._sleep("validation")

    def on_save_checkpoint(self, *args):
        self._sleep("checkpoint")


@pytest.mark.slow
@pytest.mark.parametrize("val_check_interval", [1.0, 2])
def test_throughput_measures_training_and_leaves_validation_out(tmp_path, val_check_interval):
    throughput, sleepy = Throughput(), Sleepy(train=0.1, validation=0.3)
    fit(tmp_path, throughput, sleepy, val_check_interval=val_check_interval)
    assert sleepy.slept["train"] == pytest.approx(8 * 0.1)
    assert sleepy.slept["validation"] >= 2 * 2 * 0.3 - 1e-6
    assert sleepy.slept["train"] <= throughput.seconds < sleepy.slept["train"] + sleepy.slept["validation"] / 2


@pytest.mark.slow
def test_throughput_leaves_checkpoints_out(tmp_path):
    throughput, sleepy = Throughput(), Sleepy(checkpoint=0.5)
    # As in a run: both checkpoints are saved after Throughput's own hooks.
    saved = [ModelCheckpoint(tmp_path, filename="best", monitor="val/loss", mode="max", save_top_k=-1)]
    saved += [ModelCheckpoint(tmp_path, filename="last")]
    fit(tmp_path, throughput, sleepy, *saved)
    assert sleepy.slept["checkpoint"] >= 1.5
    assert throughput.seconds < 0.75


def test_throughput_figures_are_images_over_training_seconds():
    throughput = Throughput()
    assert throughput.figures(1.0) == {}
    throughput.images, throughput.seconds = 3000, 1.5
    assert throughput.figures(12.3456) == {"seconds": 12.35, "images_per_second": 2000.0}


# Environment


def test_environment_has_the_versions_and_the_device(tmp_path):
    found = environment(Trainer(accelerator="cpu", devices=1, logger=False, default_root_dir=tmp_path, precision="bf16-mixed"))
    assert set(found) == {"versions", "device"}
    packages = ("torch", "torchvision", "lightning", "torchmetrics", "onnx", "onnxruntime")
    assert set(found["versions"]) == {"python", *packages}
    assert {name: found["versions"][name] for name in packages} == {name: version(name) for name in packages}
    assert re.fullmatch(r"3\.\d+\.\d+.*", found["versions"]["python"])
    assert set(found["device"]) == {"accelerator", "name", "devices", "strategy", "precision"}
    assert found["device"]["accelerator"] == "cpu"
    assert found["device"]["devices"] == 1
    assert found["device"]["precision"] == "bf16-mixed"
    assert found["device"]["name"]
    assert isinstance(found["device"]["strategy"], str)
