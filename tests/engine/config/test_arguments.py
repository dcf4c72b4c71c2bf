from pathlib import Path

import pytest

from lit_guide.engine.config.arguments import expand, find_config, last_value, long_form, with_recipes
from lit_guide.engine.errors import ConfigError
from tests.conftest import Run


def test_long_form_touches_the_four_short_flags_only() -> None:
    assert [long_form(arg) for arg in ("--devices=2", "--precision", "--model.network", "devices", "--name=x")] == [
        "--trainer.devices=2",
        "--trainer.precision",
        "--model.network",
        "devices",
        "--name=x",
    ]


def test_last_value_reads_both_spellings() -> None:
    assert last_value(["--run", "a", "--run=b"], "--run") == "b"
    assert last_value(["--run_dir", "a"], "--run") is None
    assert last_value([], "--run") is None


def test_an_existing_file_comes_before_a_shipped_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = find_config("configs/digits.yaml")
    assert Path(shipped).is_file()
    Path("configs").mkdir()
    Path("configs/digits.yaml").write_text("name: mine\n")
    assert find_config("configs/digits.yaml") == str(Path("configs/digits.yaml"))
    assert with_recipes(["--config=configs/device/ddp.yaml", "-c", "configs/digits.yaml"])[2] == str(Path("configs/digits.yaml"))


def test_run_becomes_that_runs_config_and_checkpoint(trained: Path) -> None:
    args, continued = expand("test", ["--run", str(trained), "--devices", "1"])
    assert args == [
        "--config",
        str(trained / "config.yaml"),
        "--ckpt_path",
        str(trained / "checkpoints" / "best.ckpt"),
        *("--trainer.devices", "1", "--trainer.num_nodes", "1", "--trainer.strategy", "auto"),
        "--run",
        str(trained),
        "--trainer.devices",
        "1",
    ]
    assert continued is None
    args, continued = expand("fit", [f"--run={trained}"])
    assert args[3] == str(trained / "checkpoints" / "last.ckpt")
    assert continued == trained


def test_evaluation_without_a_checkpoint_is_refused() -> None:
    with pytest.raises(ConfigError, match="--run latest"):
        expand("predict", ["--config", "configs/digits.yaml"])


def test_resume_goes_on_from_its_own_checkpoint_once_it_has_one(trained: Path, tmp_path: Path) -> None:
    begun = ["--resume", "true", f"--ckpt_path={tmp_path / 'other.ckpt'}", "--name", "x"]
    args, continued = expand("fit", [*begun, "--run_dir", str(tmp_path / "new")])
    assert continued is None
    assert last_value(args, "--ckpt_path") == str(tmp_path / "other.ckpt")
    args, continued = expand("fit", [*begun, "--run_dir", str(trained)])
    assert continued == trained
    assert last_value(args, "--ckpt_path") == str(trained / "checkpoints" / "last.ckpt")
    assert args[-2:] == ["--name", "x"]


def test_f25_resume_in_a_file_is_refused_and_overwrites_nothing(run: Run, own_run: Path, tmp_path: Path) -> None:
    (tmp_path / "resume.yaml").write_text(f"resume: true\nrun_dir: {own_run}\n")
    before = (own_run / "metrics.csv").read_bytes()
    outcome = run("fit", "--config", "configs/digits.yaml", "--config", "resume.yaml")
    assert outcome.code == 2
    assert "resume stands in a configuration file, but it belongs to one call: give it as --resume." in outcome.err
    assert (own_run / "metrics.csv").read_bytes() == before
