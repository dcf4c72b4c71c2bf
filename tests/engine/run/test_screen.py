import re
from pathlib import Path

import pytest
import torch

from lit_guide.engine.run.screen import print_metrics
from lit_guide.export.closing import print_closing, print_exports


def trained_at(run_dir):
    """A run directory with a best checkpoint."""
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "checkpoints" / "best.ckpt").touch()
    return run_dir


def words_of(text):
    """What was printed, without the lines of the tables and the breaks within cells."""
    return re.sub(r"[\s│┃┏┓┗┛┡┩└┘├┤┌┐─━┳╇┴┼┬]+", "", text)


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
    run_dir = trained_at(tmp_path / "runs" / "digits" / "1")
    (run_dir / "export").mkdir()
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
    print_closing(trained_at(tmp_path / "there"), {})
    text = printed()
    assert f"lit-guide test --run {tmp_path / 'there'}" in text
    assert "Exports" not in text


def test_print_closing_shows_a_path_with_brackets_as_it_is(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    print_closing(trained_at(tmp_path / "[red]run[a]"), {})
    text = capsys.readouterr().out
    assert "Everything is in [red]run[a]: " in text
    assert "lit-guide test --run '[red]run[a]'" in text


def test_f58_without_a_checkpoint_nothing_is_offered_next(printed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    print_closing(tmp_path / "run", {"test": {}})
    assert printed() == "\nEverything is in run: checkpoints/\n"
