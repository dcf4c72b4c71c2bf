import csv
import re
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_guide.data import DigitsData
from lit_guide.engine.train.report import (
    MetricsCSV,
    Throughput,
    environment,
    print_closing,
    print_exports,
    print_metrics,
)
from lit_guide.model import LitClassifier

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),  # Lightning 2.6 on torch 2.11 and up
    pytest.mark.filterwarnings("ignore:Experiment logs directory .* exists and is not empty"),  # it is to be continued
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


def words_of(text):
    """What was printed, without the lines of the tables and the breaks within cells."""
    return re.sub(r"[\s│┃┏┓┗┛┡┩└┘├┤┌┐─━┳╇┴┼┬]+", "", text)


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


@pytest.mark.parametrize("val_check_interval", [1.0, 2])
def test_throughput_measures_training_and_leaves_validation_out(tmp_path, val_check_interval):
    throughput, sleepy = Throughput(), Sleepy(train=0.1, validation=0.3)
    fit(tmp_path, throughput, sleepy, val_check_interval=val_check_interval)
    assert sleepy.slept["train"] == pytest.approx(8 * 0.1)
    assert sleepy.slept["validation"] >= 2 * 2 * 0.3 - 1e-6
    assert sleepy.slept["train"] <= throughput.seconds < sleepy.slept["train"] + sleepy.slept["validation"] / 2


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


# Tables

GOOD = {"format": "onnx", "path": "export/model.onnx", "bytes": 1_179_104, "max_abs_diff": 7.45e-9}
BAD = {"format": "pt2", "error": "[enforce fail at inline_container.cc] . open file failed, [/tmp/x] is no directory"}


@pytest.fixture(params=["80", "160"])
def printed(request, capsys, monkeypatch):
    """What was printed, in a narrow and a wide terminal."""
    monkeypatch.setenv("COLUMNS", request.param)
    return lambda: capsys.readouterr().out


def test_print_metrics_shows_each_figure_with_four_digits(printed):
    print_metrics("Test", {"loss": 0.123456, "accuracy": torch.tensor(0.98768).item()})
    words = words_of(printed())
    assert "loss0.1235" in words
    assert "accuracy0.9877" in words


def test_print_exports_shows_size_difference_and_reason(printed):
    print_exports([GOOD, {"format": "pt2", "error": "the pt2 file differs from eager by 5.00e-01, more than 1e-04; not kept"}])
    words = words_of(printed())
    assert "onnxexport/model.onnx1179kB7.4e-09" in words or "onnxexport/model.onnx1179kB7.5e-09" in words
    assert "pt2--" in words
    for word in ("differs", "5.00e-01", "1e-04;"):
        assert word in words


def test_print_exports_shows_an_error_with_brackets_as_it_is(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "240")  # wide enough for one line
    print_exports([BAD])
    assert BAD["error"] in capsys.readouterr().out


def test_print_closing_shows_test_figures_exports_and_the_next_commands(printed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = {"test": {"loss": 0.125, "accuracy": 0.9375, "confusion_matrix": [[1, 0], [0, 1]]}, "exports": [GOOD]}
    run_dir = tmp_path / "runs" / "digits" / "1"
    for folder in ("checkpoints", "export"):
        (run_dir / folder).mkdir(parents=True)
    for name in ("config.yaml", "metrics.csv", "results.json"):
        (run_dir / name).touch()
    print_closing(run_dir, results)
    text = printed()
    here = str(Path("runs/digits/1"))
    assert f"Everything is in {here}: config.yaml, metrics.csv, checkpoints/, export/, results.json" in text
    (run_dir / "export").rmdir()  # as where all exports are switched off
    print_closing(run_dir, results)
    assert f"Everything is in {here}: config.yaml, metrics.csv, checkpoints/, results.json" in printed()
    lines = [line.strip() for line in text.splitlines()]
    assert f"lit-guide predict --run {here} --images FILE_OR_FOLDER" in lines
    assert f"lit-guide test --run {here}" in lines
    assert f"lit-guide export --run {here} --formats onnx" in lines
    words = words_of(text)
    assert "loss0.1250" in words
    assert "accuracy0.9375" in words
    assert "confusion" not in words
    assert "export/model.onnx" in words


def test_print_closing_names_a_run_elsewhere_by_its_whole_path(printed, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    print_closing(tmp_path / "there", {})
    text = printed()
    assert f"lit-guide test --run {tmp_path / 'there'}" in text
    assert "Exports" not in text


def test_print_closing_shows_a_path_with_brackets_as_it_is(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    print_closing(tmp_path / "[red]run[a]", {})
    text = capsys.readouterr().out
    assert "Everything is in [red]run[a]: " in text
    assert "lit-guide test --run '[red]run[a]'" in text
