from pathlib import Path

import pytest

from lit_guide.engine.config.arguments import find_config, read_call, spelled_out
from lit_guide.engine.errors import ConfigError
from tests.conftest import Run


def test_long_forms_stand_for_the_four_short_flags_only() -> None:
    assert spelled_out(["--devices=2", "--precision", "--model.network", "devices", "--name=x"]) == [
        "--trainer.devices=2",
        "--trainer.precision",
        "--model.network",
        "devices",
        "--name=x",
    ]


def test_what_belongs_to_the_call_is_read_in_both_spellings_and_taken_out() -> None:
    call = read_call("fit", ["--run_dir", "a", "--name=x", "--run_dir=b", "--devices", "1", "--allow", "one", "--allow=two"])
    assert (call.run_dir, call.allow, call.args) == ("b", ["one", "two"], ["--name=x", "--trainer.devices", "1"])
    assert read_call("predict", ["--ckpt_path", "c", "--images", "a", "b", "--name", "x"]).images == ["a", "b"]


@pytest.mark.parametrize(
    ("args", "words"), [(["--run"], "--run: expected one argument"), (["--resume", "maybe"], "--resume: invalid choice: 'maybe'")]
)
def test_a_flag_of_the_call_without_its_value_is_refused(args: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_call("fit", args)


def test_f12_flags_of_the_call_are_not_abbreviated() -> None:
    assert read_call("fit", ["--run_di", "a"]).args == ["--run_di", "a"]  # the parser of settings refuses it


def test_an_existing_file_comes_before_a_shipped_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = find_config("configs/digits.yaml")
    assert Path(shipped).is_file()
    Path("configs").mkdir()
    Path("configs/digits.yaml").write_text("name: mine\n")
    assert find_config("configs/digits.yaml") == str(Path("configs/digits.yaml"))
    assert spelled_out(["--config=configs/device/ddp.yaml", "-c", "configs/digits.yaml"])[2] == str(Path("configs/digits.yaml"))


def test_run_becomes_that_runs_config_and_checkpoint(trained: Path) -> None:
    call = read_call("test", ["--run", str(trained), "--devices", "1"])
    assert call.args == [
        "--config",
        str(trained / "config.yaml"),
        *("--trainer.devices", "1", "--trainer.num_nodes", "1", "--trainer.strategy", "auto"),
        "--trainer.devices",
        "1",
    ]
    assert (call.ckpt_path, call.continued) == (str(trained / "checkpoints" / "best.ckpt"), None)
    call = read_call("fit", [f"--run={trained}"])
    assert (call.ckpt_path, call.continued) == (str(trained / "checkpoints" / "last.ckpt"), trained)


def test_evaluation_without_a_checkpoint_is_refused() -> None:
    with pytest.raises(ConfigError, match="--run latest"):
        read_call("predict", ["--config", "configs/digits.yaml"])


def test_resume_goes_on_from_its_own_checkpoint_once_it_has_one(trained: Path, tmp_path: Path) -> None:
    begun = ["--resume", "true", f"--ckpt_path={tmp_path / 'other.ckpt'}", "--name", "x"]
    call = read_call("fit", [*begun, "--run_dir", str(tmp_path / "new")])
    assert (call.continued, call.resume, call.ckpt_path) == (None, True, str(tmp_path / "other.ckpt"))
    call = read_call("fit", [*begun, "--run_dir", str(trained)])
    assert (call.continued, call.ckpt_path) == (trained, str(trained / "checkpoints" / "last.ckpt"))
    assert call.args[-2:] == ["--name", "x"]


def test_f25_resume_in_a_file_is_refused_and_overwrites_nothing(run: Run, own_run: Path, tmp_path: Path) -> None:
    (tmp_path / "resume.yaml").write_text(f"resume: true\nrun_dir: {own_run}\n")
    before = (own_run / "metrics.csv").read_bytes()
    outcome = run("fit", "--config", "configs/digits.yaml", "--config", "resume.yaml")
    assert outcome.code == 2
    assert "resume stands in a configuration file, but it belongs to one call: give it as --resume." in outcome.err
    assert (own_run / "metrics.csv").read_bytes() == before
