"""F35, F36: what a file from elsewhere asks to be written, connected to or downloaded; and what the command line may ask."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_guide.engine.run.checkpoint import read_checkpoint
from tests.conftest import Run

FIT = ("fit", "--config", "configs/digits.yaml", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2")
FIT += tuple(f"--export.{name}.enabled=false" for name in ("onnx", "torchscript", "pt2"))
ELSEWHERE: dict[str, dict[str, Any]] = {
    "another run": {"logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "HOME/run", "name": "", "version": ""}}},
    "above": {"logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "../home"}}},
    "where it is started": {"logger": {"class_path": "CSVLogger", "init_args": {"save_dir": ""}}},
    "here": {"logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "somewhere"}}},
    "by a name": {"logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "RUN", "name": "../../home"}}},
    "the home directory": {"profiler": {"class_path": "SimpleProfiler", "init_args": {"dirpath": "~/x"}}},
    "a profiler's file": {"profiler": {"class_path": "SimpleProfiler", "init_args": {"filename": "../../x"}}},
    "a checkpoint": {"callbacks": [{"class_path": "ModelCheckpoint", "init_args": {"dirpath": "HOME"}}]},
    "a checkpoint's name": {"callbacks": [{"class_path": "ModelCheckpoint", "init_args": {"filename": "HOME/x"}}]},
    "one of several": {
        "callbacks": [{"class_path": "RichModelSummary"}, {"class_path": "OnExceptionCheckpoint", "init_args": {"dirpath": "x"}}]
    },
    "an address": {"logger": {"class_path": "MLFlowLogger", "init_args": {"tracking_uri": "http://127.0.0.1:9"}}},
    "an address in keywords": {"callbacks": [{"class_path": "WeightAveraging", "dict_kwargs": {"to": "https://example.com/x"}}]},
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder of the user's, with a run in it."""
    (tmp_path / "home/run/checkpoints").mkdir(parents=True)
    (tmp_path / "home/run/config.yaml").write_text("{}")
    (tmp_path / "home/run/metrics.csv").write_text("precious")
    return tmp_path / "home"


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_f35_f36_a_place_or_an_address_in_a_file_is_refused(run: Run, home: Path, kind: str) -> None:
    text = json.dumps({"trainer": ELSEWHERE[kind]}).replace("HOME", str(home))
    Path("theirs.yaml").write_text(text)
    before = files(Path())
    outcome = run(*FIT, "--config", "theirs.yaml")
    assert outcome.code == 2, outcome.out + outcome.err
    assert "in a file. Where a run writes to, or connects to, is typed: --trainer." in outcome.err
    assert files(Path()) == before


@pytest.mark.parametrize("name", ["CometLogger", "WandbLogger", "MLFlowLogger"])
def test_f35_f36_a_logger_that_sends_figures_away_is_typed(run: Run, name: str) -> None:
    Path("theirs.yaml").write_text(json.dumps({"trainer": {"logger": [{"class_path": f"lightning.pytorch.loggers.{name}"}]}}))
    outcome = run(*FIT, "--config=theirs.yaml", "--run_dir=own")
    assert (outcome.code, Path("own").exists()) == (2, False)
    assert f"trainer.logger is {name}, in a file. What sends figures away is typed: --trainer.logger {name}" in outcome.err
    for typed in ([f"--trainer.logger={name}"], ["--config=theirs.yaml", f"--trainer.logger+={name}"]):
        assert f"lightning.pytorch.loggers.{name} can't be made: Requirement" in run(*FIT, *typed).err  # as it is not installed


def test_f35_what_is_typed_is_taken(run: Run, home: Path) -> None:
    outcome = run(*FIT, "--run_dir=own", "--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={home}/logs")
    assert outcome.code == 0, outcome.err
    assert list((home / "logs").rglob("metrics.csv"))
    spec = json.dumps({"class_path": "CSVLogger", "init_args": {"save_dir": str(home / "more")}})
    assert run(*FIT, "--run_dir=other", "--trainer.logger", spec).code == 0
    assert list((home / "more").rglob("metrics.csv"))


def test_f35_a_run_that_logs_elsewhere_goes_on_where_that_is_typed_again(run: Run, home: Path) -> None:
    there = f"--trainer.logger.save_dir={home}/logs"
    assert run(*FIT, "--run_dir=own", "--trainer.logger=CSVLogger", there).code == 0
    outcome = run("fit", "--run=own", "--trainer.max_epochs=2")
    assert outcome.code == 2
    assert f"--trainer.logger.save_dir {home}/logs" in outcome.err
    assert run("fit", "--run=own", "--trainer.max_epochs=2", there).code == 0
    assert run("test", "--run=own").code == 0


@pytest.mark.parametrize(
    ("logger", "message"),
    [
        (
            ["CSVLogger", "--trainer.logger.save_dir=home/run", "--trainer.logger.name=", "--trainer.logger.version="],
            "another run",
        ),
        (
            ["CSVLogger", "--trainer.logger.save_dir=home", "--trainer.logger.name=run", "--trainer.logger.version="],
            "another run",
        ),
        (["CSVLogger", "--trainer.logger.save_dir=logs", "--trainer.logger.name=", "--trainer.logger.version="], "would replace"),
    ],
)
def test_f35_a_typed_place_that_is_taken_is_refused(run: Run, home: Path, logger: list[str], message: str) -> None:
    Path("logs").mkdir()
    Path("logs/metrics.csv").write_text("precious")
    before = files(Path())
    outcome = run(*FIT, f"--trainer.logger={logger[0]}", *logger[1:])
    assert outcome.code == 2, outcome.out + outcome.err
    assert message in outcome.err
    assert files(Path()) == before
    assert not Path("runs/digits").exists() or not list(Path("runs/digits").iterdir())


@pytest.mark.parametrize("name", ["/", "a/b", "..", ".", "", "a\\b", "a\nb", "\x1b[31m", "/etc"])
def test_f35_a_name_is_one_plain_folder_name(run: Run, name: str) -> None:
    Path("theirs.yaml").write_text(yaml.safe_dump({"name": name}))
    outcome = run(*FIT, "--config", "theirs.yaml")
    assert outcome.code == 2, outcome.out + outcome.err
    assert not list(Path().rglob("results.json"))


def test_f35_a_cache_folder_in_a_file_is_not_used(run: Run, tmp_path: Path) -> None:
    from torchvision.io import write_png

    for name in ("cat", "dog"):
        for number in range(6 * (name == "dog"), 6 + 6 * (name == "dog")):
            Path(f"photos/{name}").mkdir(parents=True, exist_ok=True)
            write_png(torch.full((3, 8, 8), 9 * number, dtype=torch.uint8), f"photos/{name}/{number}.png")
    Path("theirs.yaml").write_text(
        yaml.safe_dump({"data": {"init_args": {"cache_dir": str(tmp_path / "there"), "cache": "disk"}}})
    )
    args = ["data", "check", "--config", "configs/folder.yaml", "--data.root", "photos", "--config", "theirs.yaml"]
    outcome = run(*args)
    assert outcome.code == 0, outcome.err
    assert "data.cache_dir stands in a file, so it is not used" in outcome.err
    assert not Path("there").exists()
    assert run(*args, "--data.cache_dir", tmp_path / "there").code == 0
    assert Path("there").is_dir()


def test_f36_weights_in_a_file_start_no_download(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr("torch.hub.download_url_to_file", fetched)
    Path("theirs.yaml").write_text("model: {network: resnet18, weights: IMAGENET1K_V1}\ndata: {init_args: {image_size: 32}}\n")
    outcome = run(*FIT, "--config", "theirs.yaml")
    assert (outcome.code, "--model.weights IMAGENET1K_V1" in outcome.err) == (2, True), outcome.err


@pytest.mark.parametrize("key", ["weights", "weights_backbone", "pretrained"])
@pytest.mark.parametrize("command", ["fit", "test", "export"])
def test_f36_a_checkpoint_starts_no_download(
    run: Run, trained: Path, monkeypatch: pytest.MonkeyPatch, key: str, command: str
) -> None:
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *args, **kwargs: pytest.fail("a download"))
    content = read_checkpoint(trained / "checkpoints/last.ckpt")
    content["hyper_parameters"] |= {"network": "resnet18", "network_args": {key: "DEFAULT"}}
    torch.save(content, "theirs.ckpt")
    recipe = ["--config", "configs/digits.yaml"] if command != "export" else []
    outcome = run(command, *recipe, "--ckpt_path", "theirs.ckpt", "--run_dir", "there")
    assert outcome.code in (1, 2), outcome.out
    assert "download" not in outcome.err
    assert "Traceback" not in outcome.err


def test_f36_a_file_from_elsewhere_downloads_no_set(run: Run) -> None:
    """Where no name can be looked up, a download says so; a set that is not asked for is only not there."""
    Path("theirs.yaml").write_text("data: {class_path: TorchvisionData, init_args: {dataset: USPS, root: sets}}\n")
    outcome = run("fit", "--config", "theirs.yaml", "--trainer.max_epochs=1")
    assert outcome.code in (1, 2), outcome.out
    assert "urlopen error" not in outcome.err
    outcome = run("fit", "--config", "theirs.yaml", "--trainer.max_epochs=1", "--data.download=true")
    assert "urlopen error" in outcome.err


def test_f36_no_value_is_fetched_from_an_address(run: Run, trained: Path) -> None:
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_GET = do_HEAD

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for key in ("data", "model", "trainer"):
            address = f"http://127.0.0.1:{server.server_port}/x.yaml"
            Path("theirs.yaml").write_text(yaml.safe_dump({key: address}))
            assert run(*FIT, "--config", "theirs.yaml").code != 0
        server.shutdown()
    assert asked == []


@pytest.mark.parametrize("how", ["file", "checkpoint"])
def test_f36_a_model_is_no_loss_and_downloads_nothing(run: Run, trained: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *args, **kwargs: pytest.fail("a download"))
    facts = {"class_names": ["a", "b"], "input_shape": [3, 32, 32], "mean": [0, 0, 0], "std": [1, 1, 1]}
    args = {**facts, "network": "resnet18", "weights": "DEFAULT"}
    if how == "file":
        spec = {"class_path": "lit_guide.model.LitClassifier", "init_args": args}
        Path("theirs.yaml").write_text(yaml.safe_dump({"model": {"loss": spec}}))
        assert run(*FIT, "--config", "theirs.yaml").code == 2
        return
    content = read_checkpoint(trained / "checkpoints/last.ckpt")
    content["hyper_parameters"] |= {"loss": {"name": "lit_guide.model.LitClassifier", **args}, "label_smoothing": 0.0}
    torch.save(content, "theirs.ckpt")
    for command in (["test", "--config", "configs/digits.yaml"], ["export"]):
        outcome = run(*command, "--ckpt_path", "theirs.ckpt", "--run_dir", "there")
        assert outcome.code in (1, 2), outcome.out


@pytest.mark.parametrize("name", ['".{epoch].__class__.__name__[0:.0s}./.{epoch].__class__.__name__[0:.0s}./home/x"', "sub/x"])
def test_f33_f35_a_checkpoint_is_written_inside_of_the_run_whatever_its_name_becomes(run: Run, home: Path, name: str) -> None:
    before = files(home)
    assert run(*FIT, "--run_dir=r").code == 0
    Path("r/checkpoints/sub").symlink_to(home)
    callback = {"class_path": "ModelCheckpoint", "init_args": {"filename": name.strip('"'), "auto_insert_metric_name": False}}
    Path("theirs.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    run("fit", "--run=r", "--config", "theirs.yaml", "--trainer.max_epochs=2")
    assert files(home) == before


def test_f35_a_flag_counts_for_its_own_key(run: Run, home: Path) -> None:
    Path("theirs.yaml").write_text(
        yaml.safe_dump({"trainer": {"logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "cnn"}}}})
    )
    assert run(*FIT, "--config", "theirs.yaml").code == 2  # a word of the recipe
    assert run(*FIT, "--config", "theirs.yaml", "--name=cnn").code == 2


def test_f35_data_check_moves_and_writes_where_it_was_told(run: Run, home: Path) -> None:
    before = files(Path())
    for theirs in ({"fix": "quarantine"}, {"output": "home/run"}):
        Path("theirs.yaml").write_text(yaml.safe_dump({**theirs, "data": {"init_args": {"root": "home"}}}))
        assert run("data", "check", "--config", "configs/folder.yaml", "--config", "theirs.yaml").code == 2
    outcome = run("data", "check", "--config", "configs/folder.yaml", "--config", "theirs.yaml", "--fix=quarantine", "--output=o")
    assert (outcome.code, "--data.root home" in outcome.err) == (2, True)
    Path("theirs.yaml").unlink()
    assert files(Path()) == before
