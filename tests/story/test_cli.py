"""The command: what it lists, what it refuses in a sentence, and the exit codes that scripts rely on."""

from pathlib import Path

import pytest

import lit_guide
from lit_guide.cli import COMMANDS, Command

from .conftest import fit

ALWAYS = {"fit", "validate", "test", "predict", "export"}


def test_help_lists_the_commands_that_are_there_and_no_other(run, monkeypatch):
    monkeypatch.setitem(COMMANDS, "gone", Command("parts.gone:gone", "did something", ""))
    files = {name: command.function.partition(":")[0].replace(".", "/") + ".py" for name, command in COMMANDS.items()}
    package = Path(lit_guide.__file__).parent
    lines = run("--help")[1].partition("\ncommands:\n")[2].partition("\n\n")[0].splitlines()
    assert {line.split()[0] for line in lines} == {name for name in files if (package / files[name]).is_file()} >= ALWAYS
    for command in ALWAYS:
        code, out, _ = run(command, "--help")
        assert (code, f" {command} --" in out, "--export.onnx.opset" in out) == (0, True, True)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["exprot"], "Did you mean export?"),
        (["fit"], "--config configs/digits.yaml"),
        ([*fit("digits"), "--trainer.max_epoch", "2"], "Did you mean trainer.max_epochs?"),
        ([*fit("digits"), "--model.label_smoothing", "2"], "model.label_smoothing is 2"),
        (["test", "--config", "configs/digits.yaml"], "--run latest"),
        (["predict", "--run", "latest"], "no run below runs"),
    ],
)
def test_what_is_wrong_in_a_command_is_named_and_exits_2(run, args, words):
    code, _, err = run(*args)
    assert (code, words in err, Path("r").exists()) == (2, True, False)


def test_a_failure_is_one_message_and_exits_1(run, monkeypatch):
    monkeypatch.setattr("lit_guide.fit.test", lambda args: 1 / 0)
    code, _, err = run("test")
    assert (code, "ZeroDivisionError: division by zero" in err, "Traceback" in err) == (1, True, False)
