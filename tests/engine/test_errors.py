import io
import unicodedata

import pytest

from lit_guide.engine.config.parser import explain
from lit_guide.engine.errors import ConfigError, UserError, printable, say, warn

KNOWN = ["model.network", "model.optimizer.lr", "trainer.max_epochs", "data.batch_size"]


def test_exit_codes() -> None:
    assert (UserError.exit_code, ConfigError.exit_code) == (1, 2)
    assert issubclass(ConfigError, UserError)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            "unrecognized arguments: --trainer.max_epoch=2",
            "There is no flag or key 'trainer.max_epoch'. Did you mean trainer.max_epochs?",
        ),
        ("Group 'model' does not accept option 'netwrk'", "There is no flag or key 'model.netwrk'. Did you mean model.network?"),
        (
            "unrecognized arguments: --zzz",
            "There is no flag or key 'zzz'. lit-guide fit --help lists all keys.",
        ),
        (
            "Parser key \"model.optimizer\":\n  ...\n    - Option 'lrr' is not accepted. Got value: ...",
            "There is no flag or key 'model.optimizer.lrr'. Did you mean model.optimizer.lr?",
        ),
        (
            "Parser key \"model.optimizer\":\n  ...\n    - Option 'lr' is not accepted. Got value: ...",
            "model.optimizer.lr is no setting of what was chosen for model.optimizer.",
        ),
        (
            "Parser key \"data\":\n  ...\n    - Importing 'os.system' is not allowed, denied by the 'os' entry",
            "data: os.system may not be imported by a configuration. It may name classes of torch.optim.",
        ),
        (
            'Parser key "model.optimizer":\n  - Expected a dot import path string: Sgd\n  - other',
            "model.optimizer: there is no class 'Sgd'. Did you mean SGD?",
        ),
        (
            'Parser key "trainer.strategy":\n  - Expected a dot import path string: ddp\n  - other',
            "trainer.strategy: there is no class 'ddp'. Did you mean DDPStrategy?",
        ),
        (
            "Parser key \"trainer.max_epochs\":\n  - Expected a <class 'int'>\n  - Expected a <class 'NoneType'>\n"
            "  Given value: x",
            "trainer.max_epochs is x: expected int, or null.",
        ),
        (
            'Parser key "data":\n  Errors:\n    - Problem with given class_path \'a.B\':\n        Parser key "num_workers":\n'
            "            - Not of type NonNegativeInt: does not conform to restriction v>=0\n"
            "            - Expected a typing.Literal['auto']\n          Given value: -1\n    - Expected a <class 'NoneType'>\n"
            "  Given value: NestedArg(key='num_workers', val='-1')",
            "data.num_workers is -1: expected int of 0 or more, or 'auto'.",
        ),
        (
            'Parser key "data":\n  Errors:\n    - Problem with given class_path \'a.B\':\n        Parser key "batch_size":\n'
            "          Not of type PositiveInt: 0 does not conform to restriction v>0\n    - Expected a <class 'NoneType'>\n"
            "  Given value: {'init_args': {'batch_size': 0}}",
            "data.batch_size is 0: expected int above 0.",
        ),
        (
            "Parser key \"model.label_smoothing\":\n  Expected a <class 'float'>. Got value: x",
            "model.label_smoothing is x: expected float.",
        ),
        (
            "the following arguments are required: data",
            "No data were chosen: give a recipe, such as --config configs/digits.yaml.",
        ),
        ("something new", "something new"),
    ],
)
def test_parser_errors_in_plain_words(message: str, told: str) -> None:
    classes = ["SGD", "Adam", "DDPStrategy"]
    assert explain(message, KNOWN, classes, ["torch.optim"], "lit-guide fit") == told


def test_f37_whatever_acts_on_a_screen_is_shown_as_an_escape() -> None:
    assert printable("a\x1b[2J\r\tb\x07\x9b1m\x7f") == r"a\x1b[2J\r\tb\x07\x9b1m\x7f"
    assert printable("photo\u202egpj.exe") == r"photo\u202egpj.exe"  # which a screen would show as photoexe.jpg
    assert printable("one\ntwo") == r"one\ntwo"
    assert printable("one\ntwo\r\n", keep="\n") == "one\ntwo\\r\n"
    assert printable("caf\udce9 \ud800") == r"caf\udce9 \ud800"
    assert printable("猫 é", encoding="cp1252") == r"\u732b é"
    for code in range(0x3000):
        shown = printable(chr(code))
        assert not [letter for letter in shown if unicodedata.category(letter) in ("Cc", "Zl", "Zp")], hex(code)
        assert printable(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "plain.png",
        r"C:\new\x1b",
        "żółw 猫 🖼️",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "👨\u200d👩\u200d👧",
        "全角\u3000空白",
        "a\xa0b",
        "",
        " ",
    ],
)
def test_f37_what_can_be_read_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_f37_lines_are_said_without_what_acts_on_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    say("one\n\x1b[31mtwo")
    warn("three\n\x1b]0;four\x07")
    assert capsys.readouterr() == ("one\n\\x1b[31mtwo\n", "lit-guide: three\n\\x1b]0;four\\x07\n")
    stream = io.StringIO()
    say("five\x00", stream)
    assert stream.getvalue() == "five\\x00\n"
