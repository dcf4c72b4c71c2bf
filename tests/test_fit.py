"""The commands, run as a user runs them, and the files that they leave."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from PIL import Image

from lit_guide import DigitsData, load_classifier
from tests.conftest import FAST, Run

DIGITS = ["--config", "configs/digits.yaml"]
NO_EXPORT = [f"--export.{name}.enabled=false" for name in ("onnx", "torchscript", "pt2")]


def scores(results: dict[str, dict[str, object]], split: str) -> dict[str, object]:
    return {name: value for name, value in results[split].items() if name != "confusion_matrix"}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_fit_leaves_exactly_the_files_of_the_contract(trained: Path) -> None:
    files = {path.relative_to(trained).as_posix() for path in trained.rglob("*") if path.is_file()}
    exports = {f"export/model.{suffix}" for suffix in ("onnx", "torchscript.pt", "pt2")}
    checkpoints = {f"checkpoints/{name}" for name in ("best.ckpt", "best.safetensors", "last.ckpt")}
    assert files == {"config.yaml", "metrics.csv", "results.json", *checkpoints, *exports}


def test_results_json_holds_what_the_contract_lists(trained: Path) -> None:
    results = json.loads((trained / "results.json").read_text())
    assert results["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert results["device"]["accelerator"] == "cpu"
    assert results["epochs"] == 2
    assert results["steps"] == 2 * len(DigitsData().train_dataloader())
    assert results["seconds"] > 0
    assert results["images_per_second"] > 0
    for split, count in (("val", 270), ("test", 359)):
        assert set(results[split]) == {"loss", "accuracy", "f1", "ece", "top5", "confusion_matrix"}
        matrix = np.array(results[split]["confusion_matrix"])
        assert matrix.sum() == len(DigitsData().rows[split]) == count
        assert results[split]["accuracy"] == pytest.approx(matrix.trace() / count, abs=1e-6)
    entries = {entry["format"]: entry for entry in results["exports"]}
    assert set(entries) == {"torchscript", "onnx", "pt2"}
    for entry in entries.values():
        assert entry["bytes"] == (trained / entry["path"]).stat().st_size
        assert entry["max_abs_diff"] <= 1e-4
        assert entry["batch_sizes"] == [1, 3]
        assert len(entry["sha256"]) == 64


def test_metrics_csv_has_every_epoch(trained: Path) -> None:
    logged = rows(trained / "metrics.csv")
    for name in ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr-Adam"):
        assert len([row for row in logged if row[name]]) >= 2, name
    assert len([row for row in logged if row["test/accuracy"]]) == 1


def test_best_ckpt_is_read_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    read, load = [], torch.load

    def counting(file: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("map_location") != "meta":  # by which no weights are read
            read.append(str(getattr(file, "name", file)).rpartition("/")[2])
        return load(file, *args, **kwargs)

    monkeypatch.setattr(torch, "load", counting)
    outcome = run("fit", "--config", "configs/digits.yaml", *FAST)
    assert outcome.code == 0, outcome.err
    assert [name for name in read if name.endswith(".ckpt")] == ["best.ckpt"]


def test_config_yaml_alone_repeats_the_run_bit_for_bit(run: Run, trained: Path) -> None:
    outcome = run("fit", "--config", trained / "config.yaml", "--run_dir", "again", *NO_EXPORT)
    assert outcome.code == 0
    first, second = load_classifier(trained / "checkpoints/last.ckpt"), load_classifier("again/checkpoints/last.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


def test_fit_ends_with_tables_and_the_next_commands(run: Run) -> None:
    outcome = run("fit", *DIGITS, "--config", "configs/debug/one_batch.yaml", "--run_dir", "here", "--accelerator", "cpu")
    assert outcome.code == 0
    for words in ("Total FLOPs", "epoch 1/1", "accuracy", "export/model.onnx", "Everything is in here"):
        assert words in outcome.out
    for command in ("predict --run here --images", "test --run here", "export --run here"):
        assert f"lit-guide {command}" in outcome.out


def test_checkpoint_hyperparameters_are_plain_values(trained: Path) -> None:
    checkpoint = torch.load(trained / "checkpoints/best.ckpt", weights_only=True)
    text = json.dumps(checkpoint["hyper_parameters"])
    assert checkpoint["hyper_parameters"]["optimizer"]["name"] == "Adam"
    paths = ("class_path", "_instantiator", "torch.", "lit_guide.")
    assert not [path for path in paths if path in text]


def test_onnx_and_torchscript_give_the_classes_of_predict(run: Run, trained: Path) -> None:
    outcome = run("predict", "--run", trained, "--run_dir", "predicted")
    assert outcome.code == 0
    predicted = [int(row["class"]) for row in rows(Path("predicted/predictions.csv"))]
    data = DigitsData()
    image_BCHW = torch.cat([batch[0] for batch in data.test_dataloader()]).float() / 255
    session = onnxruntime.InferenceSession(str(trained / "export/model.onnx"))
    (logits_BK,) = session.run(["output"], {"input": image_BCHW.numpy()})
    assert logits_BK.argmax(axis=1).tolist() == predicted
    with pytest.warns(FutureWarning, match=r"torch\.jit\.load"):
        scripted = torch.jit.load(trained / "export/model.torchscript.pt")
    assert scripted(image_BCHW).argmax(dim=1).tolist() == predicted
    truth = [row["label"] for row in rows(Path("predicted/predictions.csv"))]
    assert truth == [str(label) for label in data.source.labels_N[data.rows["test"]]]


def test_test_and_validate_repeat_the_figures_of_fit(run: Run, own_run: Path) -> None:
    before = json.loads((own_run / "results.json").read_text())
    (own_run / "results.json").unlink()
    assert run("test", "--run", own_run).code == 0
    assert run("validate", "--run", own_run).code == 0
    after = json.loads((own_run / "results.json").read_text())
    for split in ("val", "test"):
        assert scores(after, split) == pytest.approx(scores(before, split))
        assert after[split]["confusion_matrix"] == before[split]["confusion_matrix"]


def test_test_adds_its_figures_to_another_directory_if_told_to(run: Run, trained: Path) -> None:
    before = (trained / "results.json").read_bytes()
    assert run("test", "--run", trained, "--run_dir", "elsewhere").code == 0
    assert json.loads(Path("elsewhere/results.json").read_text())["test"]["accuracy"] > 0
    assert (trained / "results.json").read_bytes() == before


def test_test_of_a_checkpoint_alone_uses_its_hyperparameters(run: Run) -> None:
    fit = ["--run_dir", "small", "--model.network_args.widths", "[8]", "--trainer.limit_train_batches=2", *NO_EXPORT]
    assert run("fit", *DIGITS, *FAST, *fit).code == 0
    assert run("test", *DIGITS, "--ckpt_path", "small/checkpoints/best.ckpt").code == 0


def test_latest_is_the_newest_run(run: Run) -> None:
    for _ in range(2):
        assert run("fit", *DIGITS, *FAST, "--trainer.limit_train_batches=1", *NO_EXPORT).code == 0
    older, newer = sorted(Path("runs/digits").iterdir(), key=lambda path: (path / "checkpoints/best.ckpt").stat().st_mtime)
    assert run("predict", "--run", "latest").code == 0
    assert (newer / "predictions.csv").is_file()
    assert not (older / "predictions.csv").exists()


def test_predict_brings_any_image_to_the_model(run: Run, trained: Path) -> None:
    digits = DigitsData().source
    Path("folder/deep").mkdir(parents=True)
    files = [("a.png", "L", (8, 8)), ("folder/b.bmp", "RGB", (40, 56)), ("folder/deep/c.png", "RGBA", (64, 64))]
    for row, (name, mode, size) in enumerate(files):
        Image.fromarray(digits.dataset.images[row, 0]).resize(size, Image.Resampling.BICUBIC).convert(mode).save(name)
    outcome = run("predict", "--run", trained, "--images", "a.png", "folder", "--run_dir", "out")
    assert outcome.code == 0
    table = rows(Path("out/predictions.csv"))
    assert [Path(row["file"]).as_posix() for row in table] == ["a.png", "folder/b.bmp", "folder/deep/c.png"]
    model = load_classifier(trained / "checkpoints/best.ckpt")
    # Pillow's own resize is the oracle; it differs from torchvision's by rounding.
    small = [np.asarray(Image.open(name).convert("L").resize((8, 8), Image.Resampling.BILINEAR)) for name, *_ in files]
    image_BCHW = torch.from_numpy(np.stack(small)[:, None]).float() / 255
    probability_BK = model.requires_grad_(False)(image_BCHW).softmax(dim=1)
    assert [row["class"] for row in table] == [str(int(k)) for k in probability_BK.argmax(dim=1)]
    plain = json.loads(Path("out/predictions.json").read_text())
    assert [len(entry["top"]) for entry in plain] == [3, 3, 3]
    assert plain[0]["probability"] == pytest.approx(float(probability_BK[0].max()), abs=2e-6)
    assert "a.png" in outcome.out


def test_predict_images_needs_no_data(run: Run, own_run: Path) -> None:
    config = yaml.safe_load((own_run / "config.yaml").read_text())
    config["data"] = {"class_path": "lit_guide.data.ArraysData", "init_args": {"path": "gone.npz"}}
    (own_run / "config.yaml").write_text(yaml.safe_dump(config))
    Image.new("L", (8, 8)).save("a.png")
    assert run("predict", "--run", own_run, "--images", "a.png").code == 0


def test_f28_predict_lists_what_it_could_not_read_and_predicts_the_rest(run: Run, trained: Path) -> None:
    Image.new("L", (8, 8)).save("good.png")
    Path("broken.png").write_bytes(b"\x89PNG not really")
    Path("empty").mkdir()
    outcome = run("predict", "--run", trained, "--run_dir", "out", "--images", "good.png", "broken.png", "missing.png", "empty")
    assert outcome.code == 1
    assert [row["file"] for row in rows(Path("out/predictions.csv"))] == ["good.png"]
    for name, reason in (("broken.png", "broken, or of"), ("missing.png", "no such file"), ("empty", "no image files")):
        assert f"{name}: {reason}" in outcome.err


def test_export_later_with_other_options_replaces_only_that_entry(run: Run, own_run: Path) -> None:
    before = {e["format"]: e for e in json.loads((own_run / "results.json").read_text())["exports"]}
    options = ["--formats", "torchscript,onnx", "--export.torchscript.method", "script", "--export.onnx.input_name", "pixels"]
    outcome = run("export", "--run", own_run, *options)
    assert outcome.code == 0
    after = {e["format"]: e for e in json.loads((own_run / "results.json").read_text())["exports"]}
    assert (after["torchscript"]["method"], after["onnx"]["input"]) == ("script", "pixels")
    assert after["pt2"] == before["pt2"]
    session = onnxruntime.InferenceSession(str(own_run / "export/model.onnx"))
    assert [node.name for node in session.get_inputs()] == ["pixels"]


def test_export_uses_the_options_of_the_run(run: Run, own_run: Path) -> None:
    config = yaml.safe_load((own_run / "config.yaml").read_text())
    config["export"]["torchscript"]["method"] = "script"
    (own_run / "config.yaml").write_text(yaml.safe_dump(config))
    assert run("export", "--run", own_run, "--formats", "torchscript").code == 0
    entries = {e["format"]: e for e in json.loads((own_run / "results.json").read_text())["exports"]}
    assert entries["torchscript"]["method"] == "script"


def test_an_export_is_switched_off_by_one_flag(run: Run) -> None:
    args = [
        "--config",
        "configs/debug/one_batch.yaml",
        "--run_dir",
        "r",
        "--export.onnx.enabled",
        "false",
        "--accelerator",
        "cpu",
    ]
    assert run("fit", *DIGITS, *args).code == 0
    assert sorted(path.name for path in Path("r/export").iterdir()) == ["model.pt2", "model.torchscript.pt"]


def test_f27_a_failed_export_keeps_the_run_and_exits_1(run: Run, own_run: Path) -> None:
    (own_run / "export/model.onnx").unlink()
    (own_run / "export/model.onnx").mkdir()  # nothing can be written under this name
    outcome = run("export", "--run", own_run)
    assert outcome.code == 1
    assert "onnx" in outcome.err
    assert "can't be written" in outcome.err
    assert sorted(path.name for path in (own_run / "export").iterdir()) == ["model.onnx", "model.pt2", "model.torchscript.pt"]


def test_fast_dev_run_saves_and_exports_nothing_and_says_so(run: Run) -> None:
    outcome = run("fit", *DIGITS, "--trainer.fast_dev_run", "true", "--accelerator", "cpu", "--run_dir", "r")
    assert outcome.code == 0
    assert "No checkpoint was saved" in outcome.out
    assert not Path("r/export").exists()


def test_without_validation_the_best_is_by_training_loss(run: Run) -> None:
    assert run("fit", *DIGITS, *FAST, "--data.val_fraction", "0", "--run_dir", "r", *NO_EXPORT).code == 0
    assert Path("r/checkpoints/best.ckpt").is_file()
    assert json.loads(Path("r/results.json").read_text())["val"] == {}


@pytest.mark.parametrize("command", ["validate", "test", "predict", "export"])
def test_f23_no_command_scores_random_weights(run: Run, command: str) -> None:
    outcome = run(command, *([] if command == "export" else DIGITS))
    assert outcome.code == 2
    assert "--run latest" in outcome.err


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "export"])
def test_f07_latest_without_a_run_exits_2(run: Run, command: str) -> None:
    outcome = run(command, "--run", "latest")
    assert outcome.code == 2
    assert "no run below runs" in outcome.err


def test_f07_ckpt_path_last_without_a_run_exits_2(run: Run) -> None:
    outcome = run("fit", *DIGITS, "--ckpt_path", "last")
    assert outcome.code == 2
    assert not Path("runs").exists()


def test_f10_other_classes_are_refused_with_both_lists(run: Run, trained: Path) -> None:
    np.savez("a.npz", images=np.zeros((30, 8, 8), dtype=np.uint8), labels=np.arange(30) % 3, class_names=["x", "y", "z"])
    before = (trained / "results.json").read_bytes()
    outcome = run("test", "--run", trained, "--data", "ArraysData", "--data.path", "a.npz")
    assert outcome.code == 1
    assert "x, y, z" in outcome.err
    assert "0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in outcome.err
    assert (trained / "results.json").read_bytes() == before


def test_f17_bad_labels_end_fit_before_it_starts(run: Run) -> None:
    np.savez("a.npz", images=np.zeros((30, 8, 8), dtype=np.uint8), labels=np.r_[np.arange(28) % 3, -1, -7])
    outcome = run("fit", "--config", "configs/arrays.yaml", "--data.path", "a.npz")
    assert outcome.code == 1
    assert "28, 29" in outcome.err
    assert not Path("runs").exists()


def test_f24_a_flag_beats_the_checkpoint_and_is_reported(run: Run, own_run: Path) -> None:
    args = ["--trainer.max_epochs", "3", "--model.optimizer.lr", "0.5", "--model.scheduler", "null"]
    outcome = run("fit", "--run", own_run, *args, *NO_EXPORT)
    assert outcome.code == 0
    assert "model.optimizer.lr is 0.5 as given, in place of 0.002" in outcome.out
    checkpoint = torch.load(own_run / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == 0.5
    assert checkpoint["hyper_parameters"]["optimizer"]["lr"] == 0.5


def test_f24_what_no_flag_changes_comes_from_the_checkpoint(run: Run, trained: Path) -> None:
    args = ["--data", "DigitsData", "--ckpt_path", trained / "checkpoints/last.ckpt", "--run_dir", "r"]
    outcome = run("fit", *args, "--trainer.max_epochs", "3", "--accelerator", "cpu", *NO_EXPORT)
    assert outcome.code == 0
    assert "as given" not in outcome.out
    saved = torch.load("r/checkpoints/last.ckpt", weights_only=True)["hyper_parameters"]
    assert (saved["optimizer"]["lr"], saved["label_smoothing"], saved["scheduler"]["name"]) == (0.002, 0.05, "WarmupCosine")


def test_another_network_than_the_checkpoints_is_refused(run: Run, trained: Path) -> None:
    outcome = run("test", "--run", trained, "--model.network", "resnet18")
    assert outcome.code == 2
    assert "cnn" in outcome.err
    assert "resnet18" in outcome.err


def test_f25_an_existing_run_directory_is_never_written_to(run: Run, own_run: Path) -> None:
    before = {path: path.read_bytes() for path in own_run.rglob("*") if path.is_file()}
    outcome = run("fit", *DIGITS, "--run_dir", own_run)
    assert outcome.code == 2
    assert f"fit --run {own_run}" in outcome.err
    assert {path: path.read_bytes() for path in own_run.rglob("*") if path.is_file()} == before


def test_f26_an_unwritable_run_directory_ends_fit_before_training(run: Run) -> None:
    Path("file").write_text("")
    outcome = run("fit", *DIGITS, "--run_dir", "file/run")
    assert outcome.code == 1
    assert "can't be made" in outcome.err
    assert "epoch 1" not in outcome.out


def test_resume_starts_below_the_first_loss_and_keeps_the_metrics(run: Run, own_run: Path) -> None:
    before = rows(own_run / "metrics.csv")
    outcome = run("fit", "--run", own_run, "--trainer.max_epochs", "4", *NO_EXPORT)
    assert outcome.code == 0
    assert "epoch 3/4" in outcome.out
    assert "epoch 2/4" not in outcome.out
    after = rows(own_run / "metrics.csv")
    shared = list(before[0])
    assert [{name: row[name] for name in shared} for row in after[: len(before)]] == before
    losses = [float(row["train/loss"]) for row in after if row["train/loss"]]
    assert len(losses) == 4
    assert losses[2] < losses[0]
    assert losses[3] < losses[0]


def test_continuing_a_finished_run_says_so_and_keeps_its_figures(run: Run, own_run: Path) -> None:
    before, metrics = json.loads((own_run / "results.json").read_text()), rows(own_run / "metrics.csv")
    outcome = run("fit", "--run", own_run, *NO_EXPORT)
    assert outcome.code == 0
    assert "Nothing was left to train" in outcome.out
    assert rows(own_run / "metrics.csv") == metrics  # not once more what is evaluated again
    after = json.loads((own_run / "results.json").read_text())
    assert (after["seconds"], after["images_per_second"]) == (before["seconds"], before["images_per_second"])
    assert scores(after, "test") == pytest.approx(scores(before, "test"))


def test_f12_too_few_epochs_to_go_on_from_are_refused_and_the_run_stays_as_it_is(run: Run, own_run: Path) -> None:
    before = (own_run / "config.yaml").read_text()
    for command in (["--run", own_run], ["--run_dir", own_run, "--resume", "true"]):
        outcome = run("fit", *DIGITS, *command, "--trainer.max_epochs", "0")
        assert outcome.code == 2
        assert "last.ckpt is of epoch 2: --trainer.max_epochs 0 is too few to go on from it.\n" in outcome.err
    assert (own_run / "config.yaml").read_text() == before


def test_continuing_a_moved_run_keeps_its_best_checkpoint(run: Run, own_run: Path) -> None:
    best = (own_run / "checkpoints/best.ckpt").read_bytes()  # `own_run` is a copy: another path than it was trained in
    worse = ["--trainer.max_epochs", "3", "--model.optimizer.lr", "50", "--model.scheduler", "null"]
    outcome = run("fit", "--run", own_run, *worse, *NO_EXPORT)
    assert outcome.code == 0, outcome.err
    assert (own_run / "checkpoints/best.ckpt").read_bytes() == best


def test_a_users_own_model_checkpoint_changes_nothing_of_ours(run: Run) -> None:
    own = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=val/loss", "--trainer.callbacks.mode=max"]
    outcome = run("fit", *DIGITS, *FAST, *own, "--trainer.callbacks.dirpath=theirs", "--run_dir", "r", *NO_EXPORT)
    assert outcome.code == 0, outcome.err
    scores_ = [float(row["val/loss"]) for row in rows(Path("r/metrics.csv")) if row["val/loss"]]
    assert json.loads(Path("r/results.json").read_text())["val"]["loss"] == pytest.approx(min(scores_), abs=1e-5)


def test_a_run_with_an_ambiguous_scheduler_name_can_be_used_afterwards(run: Run) -> None:
    args = ["--model.scheduler", "torch.optim.lr_scheduler.ReduceLROnPlateau", "--run_dir", "r"]
    assert run("fit", *DIGITS, *FAST, *args, *NO_EXPORT).code == 0
    for command in (["test"], ["export", "--formats", "pt2"], ["fit", "--trainer.max_epochs", "3", *NO_EXPORT]):
        outcome = run(command[0], "--run", "r", *command[1:])
        assert outcome.code == 0, (command, outcome.err)


def test_best_and_last_mean_those_of_the_run_that_is_named(run: Run, own_run: Path, trained: Path) -> None:
    outcome = run("test", "--run", own_run, "--ckpt_path=last", "--run_dir", "out")
    assert outcome.code == 0, outcome.err
    assert json.loads(Path("out/results.json").read_text())["test"]["accuracy"] > 0


@pytest.mark.parametrize("key", ["ckpt_path", "run"])
def test_f07_a_checkpoint_named_in_a_file_is_not_silently_ignored(run: Run, key: str) -> None:
    Path("c.yaml").write_text(f"{key}: nonexistent\n")
    outcome = run("fit", *DIGITS, "--config", "c.yaml")
    assert outcome.code == 2
    assert f"--{key}" in outcome.err


def test_a_refused_checkpoint_leaves_no_directory_behind(run: Run, trained: Path) -> None:
    args = ["--ckpt_path", trained / "checkpoints/last.ckpt", "--model.network", "resnet18", "--run_dir", "r"]
    assert run("fit", *DIGITS, *args).code == 2
    assert not Path("r").exists()


@pytest.mark.parametrize("flag", ["enable_progress_bar", "enable_model_summary", "enable_checkpointing"])
def test_lightnings_own_switches_work(run: Run, flag: str) -> None:
    args = [f"--trainer.{flag}", "false", "--trainer.log_every_n_steps", "0", "--trainer.limit_train_batches=1", "--run_dir", "r"]
    outcome = run("fit", *DIGITS, *FAST, *args, *NO_EXPORT)
    assert outcome.code == 0, outcome.err
    assert ("Total FLOPs" in outcome.out) == (flag != "enable_model_summary")
    assert ("epoch 1" in outcome.out) == (flag != "enable_progress_bar")
    assert Path("r/checkpoints/best.ckpt").exists() == (flag != "enable_checkpointing")


# --- F54: many classes


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 101 classes, 12 of each; the names have what a table must quote."""
    path, K = tmp_path_factory.mktemp("many") / "many.npz", 101
    pixels = np.random.default_rng(0).integers(0, 255, (12 * K, 8, 8), dtype=np.uint8)
    np.savez(path, images=pixels, labels=np.arange(12 * K) % K, class_names=[f'"{k}", ü' for k in range(K)])
    return path


SMALL = [*FAST, "--trainer.max_epochs=1", "--model.network_args.widths", "[4]"]


def test_f54_what_grows_with_the_square_of_the_classes_lies_in_a_file_of_its_own(run: Run, many: Path) -> None:
    outcome = run("fit", *SMALL, "--data", "ArraysData", "--data.path", many, "--run_dir", "r", "--export.onnx.enabled", "false")
    assert outcome.code == 0, outcome.err
    assert "results.json, confusion_val.csv, confusion_test.csv" in outcome.out
    text = Path("r/results.json").read_text()
    assert len(text) < 3000
    names = load_classifier("r/checkpoints/best.ckpt").hparams["class_names"]
    for split in ("val", "test"):
        figures = json.loads(text)[split]
        assert figures["confusion_matrix"] == f"confusion_{split}.csv"
        cells = rows(Path("r") / figures["confusion_matrix"])
        matrix = np.zeros((101, 101), int)
        for cell in cells:
            matrix[names.index(cell["true"]), names.index(cell["predicted"])] = int(cell["images"])
        assert 0 < len(cells) <= matrix.sum()
        assert figures["accuracy"] == pytest.approx(matrix.trace() / matrix.sum(), abs=1e-6)
    assert run("predict", "--run", "r").code == 0
    predicted = [(row["label"], row["class"]) for row in rows(Path("r/predictions.csv"))]
    counted = {(cell["true"], cell["predicted"]): int(cell["images"]) for cell in cells}
    assert {pair: predicted.count(pair) for pair in predicted} == counted
    before = Path("r/confusion_test.csv").read_bytes()
    assert run("test", "--run", "r", "--run_dir", "elsewhere").code == 0
    assert Path("elsewhere/confusion_test.csv").read_bytes() == before
    assert not Path("elsewhere/confusion_val.csv").exists()


def test_f54_a_run_of_before_with_a_large_results_json_goes_on(run: Run, own_run: Path) -> None:
    results = json.loads((own_run / "results.json").read_text())
    results["test"]["confusion_matrix"] = results["val"]["confusion_matrix"] = np.eye(300, dtype=int).tolist()
    (own_run / "results.json").write_text(json.dumps(results))
    assert run("export", "--run", own_run, "--formats", "torchscript").code == 0
    assert json.loads((own_run / "results.json").read_text())["test"] == results["test"]
    assert run("fit", "--run", own_run, "--trainer.max_epochs", "3", *NO_EXPORT).code == 0
    assert len(json.loads((own_run / "results.json").read_text())["test"]["confusion_matrix"]) == 10
