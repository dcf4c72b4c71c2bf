"""`~` is the home directory in each option that takes a path, typed or in a file, as a shell would have it."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from jsonargparse import Namespace
from PIL import Image

from lit_guide.data import ArraysData, FolderData, TableData
from lit_guide.engine.config.arguments import find_config, read_call
from lit_guide.engine.config.places import with_home
from lit_guide.engine.errors import ConfigError
from lit_guide.predict import Predictor
from tests.conftest import Run


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory with photos, and a table and arrays of them; another one is the current directory."""
    home = tmp_path / "home"
    for at in range(40):
        path = home / "photos" / ("cat", "dog")[at % 2] / f"{at}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(at).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    files = sorted((home / "photos").rglob("*.png"))
    rows = [f"{path.relative_to(home / 'photos').as_posix()},{path.parent.name}" for path in files]
    (home / "table.csv").write_text("\n".join(["path,label", *rows]))
    images = np.stack([np.asarray(Image.open(path)) for path in files])
    np.savez(home / "arrays.npz", images=images, labels=np.arange(40) % 2)
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(home))
    return home


def test_f49_flags_of_the_call(home: Path, trained: Path) -> None:
    (home / "run").symlink_to(trained)
    call = read_call("predict", ["--ckpt_path=~/run/x.ckpt", "--run_dir", "~/out", "--images", "~/a.png", "b~.png", "~/c"])
    assert (call.ckpt_path, call.run_dir) == (str(home / "run/x.ckpt"), str(home / "out"))
    assert call.images == [str(home / "a.png"), "b~.png", str(home / "c")]
    assert read_call("test", ["--run=~/run"]).ckpt_path == str(home / "run/checkpoints/best.ckpt")
    (home / "mine.yaml").write_text("name: mine")
    assert read_call("fit", ["--config=~/mine.yaml", "-c", "~/mine.yaml"]).args == [
        f"--config={home / 'mine.yaml'}",
        "-c",
        str(home / "mine.yaml"),
    ]
    with pytest.raises(ConfigError, match=r"--config ~/gone\.yaml: there is no such file"):
        find_config("~/gone.yaml")


def test_f49_settings_at_any_depth(home: Path) -> None:
    inner = Namespace(class_path="A", init_args=Namespace(save_dir="~/logs", n=1, none=None))
    settings = Namespace(trainer=Namespace(logger=[inner], d={"x": ["~/a", ("~", "a~/b")]}), name="~nobody.has.this/x")
    found = with_home(settings)
    assert found.trainer.logger[0].init_args == Namespace(save_dir=str(home / "logs"), n=1, none=None)
    assert found.trainer.d == {"x": [str(home / "a"), (str(home), "a~/b")]}
    assert found.name == "~nobody.has.this/x"


@pytest.mark.parametrize(
    ("recipe", "key", "path"),
    [("folder", "root", "photos"), ("table", "table", "table.csv"), ("arrays", "path", "arrays.npz")],
)
@pytest.mark.parametrize("typed", [True, False])
def test_f49_data_of_a_flag_and_of_a_file(run: Run, home: Path, recipe: str, key: str, path: str, typed: bool) -> None:
    given = {key: f"~/{path}", **({"root": "~/photos"} if recipe == "table" else {})}
    words = [word for name, value in given.items() for word in (f"--data.{name}", value)]
    if not typed:
        Path("mine.yaml").write_text(yaml.safe_dump({"data": {"init_args": given}, "output": "~/found"}))
        words = ["--config", "mine.yaml"]
    outcome = run("data", "check", "--config", f"configs/{recipe}.yaml", *words, *(["--output", "~/found"] if typed else []))
    report = json.loads((home / "found/data_check.json").read_text(encoding="utf-8"))
    assert (report["images"], outcome.code) == (40, 0 if report["ok"] else 1)
    assert not Path("~").exists()


def test_f49_a_run_at_home_from_its_recipe_to_a_prediction(run: Run, home: Path, tmp_path: Path) -> None:
    (home / "mine.yaml").write_text(
        "data: {class_path: ArraysData, init_args: {path: ~/arrays.npz}}\n"
        "trainer: {max_epochs: 1, default_root_dir: ~/root, logger: CSVLogger}\n"
    )
    quick = ["--export.onnx.enabled=false", "--export.pt2.enabled=false", "--accelerator=cpu"]
    outcome = run("fit", "--config=~/mine.yaml", "--run_dir=~/runs/1", "--trainer.logger.save_dir=~/logs", *quick)
    assert outcome.code == 0, outcome.err
    config = yaml.safe_load((home / "runs/1/config.yaml").read_text())
    assert config["data"]["init_args"]["path"] == str(home / "arrays.npz")
    assert list((home / "logs").rglob("metrics.csv"))
    assert run("test", "--run=~/runs/1").code == 0
    words = ["--ckpt_path=~/runs/1/checkpoints/best.ckpt", "--run_dir=~/out", "--images", "~/photos/cat"]
    outcome = run("predict", *words)
    assert outcome.code == 0, outcome.err
    assert len(json.loads((home / "out/predictions.json").read_text())) == 20
    assert run("export", "--run", "~/runs/1", "--formats", "torchscript", "--run_dir", "~/exported").code == 0
    assert (home / "exported/export/model.torchscript.pt").is_file()
    assert not list(tmp_path.rglob("~*"))


def test_f49_from_python(home: Path, trained: Path) -> None:
    (home / "run").symlink_to(trained)
    for run in ("~/run", "~/run/checkpoints/best.ckpt", Path("~/run")):
        assert Predictor(run).input_shape == (1, 8, 8)
    for data in (FolderData("~/photos"), TableData("~/table.csv", root="~/photos"), ArraysData("~/arrays.npz")):
        assert len(data.source.labels_N) == 40


def test_f49_a_name_that_begins_so_and_is_no_user_stays(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (home / "photos").rename("~nobody.has.this")
    assert len(FolderData("~nobody.has.this").source.labels_N) == 40
