import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lit_guide import __version__
from lit_guide.cli import COMMANDS, fail, main


@pytest.mark.parametrize("flag", ["--help", "-h", "--version"])
def test_help_and_version_import_no_torch(flag: str) -> None:
    code = f"import sys; from lit_guide.cli import main; main([{flag!r}])"
    code += "; print('torch' in sys.modules, 'lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"


def test_version_is_the_package_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lit-guide {__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {command}" in out for command in COMMANDS)


def test_no_command_prints_the_help_and_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage:" in capsys.readouterr().out


def test_unknown_command_exits_2_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exprot"]) == 2
    assert "Did you mean export?" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert f"lit-guide {command}" in out
    assert {"data": "check|show", "doctor": "--json"}.get(command, "--export.onnx.opset") in out


def test_python_m_runs_the_same_command() -> None:
    command = [sys.executable, "-m", "lit_guide", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"lit-guide {__version__}\n"


def test_an_unexpected_error_is_one_message_and_debug_shows_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(args: list[str]) -> None:
        raise ZeroDivisionError("of course")

    monkeypatch.setattr("lit_guide.fit.test", broken)
    assert main(["test"]) == 1
    err = capsys.readouterr().err
    assert "ZeroDivisionError: of course" in err
    assert "Traceback" not in err
    monkeypatch.setenv("LIT_GUIDE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["test"])


@pytest.mark.slow
def test_a_closed_screen_is_no_reason_to_end(tmp_path: Path) -> None:
    words = ["-m", "lit_guide", "fit", "--config", "configs/digits.yaml", "--trainer.max_epochs", "1", "--accelerator", "cpu"]
    words += [
        "--run_dir",
        "run",
        *(word for name in ("onnx", "torchscript", "pt2") for word in (f"--export.{name}.enabled", "false")),
    ]
    command = shlex.join([sys.executable, *words])
    done = subprocess.run(["sh", "-c", f"{command} >&-"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run/results.json").read_text())["epochs"] == 1


def test_a_message_of_any_length_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail("x" * 3_000_000, 1) == 1
    assert len(capsys.readouterr().err) < 21_000
