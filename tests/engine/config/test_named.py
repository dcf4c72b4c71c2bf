"""F31: what a configuration, or a checkpoint, from elsewhere names. Nothing of it is called, whatever key it stands at."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace

import lit_guide.networks
from lit_guide.engine.config.named import check_named
from lit_guide.engine.errors import ConfigError
from lit_guide.engine.run.checkpoint import read_checkpoint
from lit_guide.engine.run.runs import write_atomic
from lit_guide.export.weights import write_weights
from tests.conftest import Run

WRITES = "lit_guide.engine.run.runs.write_atomic"
LAMBDA = "lightning.pytorch.callbacks.LambdaCallback"
SPEC = {"class_path": WRITES, "init_args": {"path": "evidence", "text": "written"}}
HOSTILE: dict[str, dict[str, Any]] = {
    "a function of the package": {"callbacks": [{"class_path": LAMBDA, "init_args": {"on_fit_start": WRITES}}]},
    "a function with arguments": {"callbacks": [{"class_path": LAMBDA, "init_args": {"on_fit_start": SPEC}}]},
    "no function yet": {"callbacks": [{"class_path": LAMBDA}]},
    "a function as a callback": {"callbacks": [SPEC]},
    "a function as a logger": {"logger": SPEC},
    "a function of torch": {
        "callbacks": [{"class_path": "WeightAveraging", "init_args": {"avg_fn": "torch.nn.functional.dropout"}}]
    },
    "a spec in keywords": {"callbacks": [{"class_path": "WeightAveraging", "init_args": {"avg_fn": SPEC}}]},
    "a spec in dict_kwargs": {"callbacks": [{"class_path": "WeightAveraging", "dict_kwargs": {"avg_fn": SPEC}}]},
    "a profiler's function": {"profiler": {"class_path": "PyTorchProfiler", "init_args": {"schedule": WRITES}}},
    "a strategy's function": {"strategy": {"class_path": "DDPStrategy", "init_args": {"ddp_comm_hook": WRITES}}},
    "a callback of fit's own": {
        "callbacks": [{"class_path": "lit_guide.engine.train.checkpoints.BestCheckpoint", "init_args": {"run_dir": "evidence"}}]
    },
    "a logger of fit's own": {
        "logger": {"class_path": "lit_guide.engine.train.metrics.MetricsCSV", "init_args": {"run_dir": "evidence"}}
    },
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_f31_a_trainer_section_that_names_it_is_refused_before_anything_is_made(run: Run, kind: str) -> None:
    Path("theirs.yaml").write_text(yaml.safe_dump({"trainer": HOSTILE[kind]}))
    outcome = run("fit", "--config", "configs/digits.yaml", "--config", "theirs.yaml")
    assert outcome.code == 2, outcome.out + outcome.err
    assert "trainer." in outcome.err
    assert [path.name for path in Path().iterdir()] == ["theirs.yaml"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("network_args", SPEC),
        ("network_args", {"widths": SPEC}),
        ("network_args", {"widths": [4, [SPEC]]}),
        ("network_args", {"widths": json.dumps(SPEC)}),
        ("network", WRITES),
        ("loss", WRITES),
        ("loss", {"class_path": "torch.nn.functional.cross_entropy"}),
        ("optimizer", WRITES),
        ("scheduler", {"class_path": "torch.optim.lr_scheduler.LambdaLR", "init_args": {"lr_lambda": WRITES}}),
    ],
)
def test_f31_a_model_section_that_names_it_is_refused(run: Run, key: str, value: object) -> None:
    Path("theirs.yaml").write_text(yaml.safe_dump({"model": {key: value}}))
    outcome = run("fit", "--config", "configs/digits.yaml", "--config", "theirs.yaml", "--trainer.max_epochs=1")
    assert outcome.code == 2, outcome.out + outcome.err
    assert not Path("evidence").exists()


def test_f31_a_recipe_of_a_class_that_is_a_function_is_refused(run: Run) -> None:
    Path("theirs.yaml").write_text(yaml.safe_dump({"data": {"class_path": "lit_guide.fit.start", "init_args": {"args": []}}}))
    assert run("fit", "--config", "theirs.yaml").code == 2


SAVED: dict[str, dict[str, Any]] = {
    "a text in network_args": {"network_args": {"widths": json.dumps(SPEC)}},
    "a text in a list": {"network_args": {"widths": [json.dumps(SPEC)]}},
    "a text of YAML": {"network_args": {"widths": "class_path: " + WRITES}},
    "a text as network_args": {"network_args": json.dumps(SPEC)},
    "a text as class weights": {"class_weights": json.dumps(SPEC)},
    "a text as an optimizer's argument": {"optimizer": {"name": "Adam", "lr": json.dumps(SPEC)}},
    "a path as a schedule's argument": {"scheduler": {"name": "LambdaLR", "lr_lambda": WRITES}},
    "a text as a loss's argument": {"loss": {"name": "CrossEntropyLoss", "reduction": json.dumps(SPEC)}},
    "a function as a network": {"network": WRITES},
}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
@pytest.mark.parametrize("kind", SAVED)
def test_f31_values_of_a_checkpoint_are_never_parsed(run: Run, trained: Path, kind: str, suffix: str) -> None:
    content = read_checkpoint(trained / "checkpoints/last.ckpt")
    content["hyper_parameters"] |= SAVED[kind]
    path = Path(f"theirs.{suffix}")
    write_weights(content, path) if suffix == "safetensors" else torch.save(content, path)
    for command in ("fit", "test", "export"):
        recipe = ["--config", "configs/digits.yaml"] if command != "export" else []
        more = ["--trainer.max_epochs=3"] if command == "fit" else []
        outcome = run(command, *recipe, "--ckpt_path", path, "--run_dir", f"run-{command}", *more)
        harmless = command == "export" and kind.endswith(("optimizer's argument", "schedule's argument"))  # they are not used
        harmless |= command == "test" and "argument" in kind
        assert outcome.code in ((0, 1, 2) if harmless else (1, 2)), outcome.out + outcome.err
        assert "Traceback" not in outcome.err
        assert not Path("evidence").exists()


def test_f31_the_function_of_these_tests_would_write(tmp_path: Path) -> None:
    write_atomic(tmp_path / "evidence", "written")
    assert (tmp_path / "evidence").read_text() == "written"


def test_what_a_configuration_may_name_is_taken(run: Run) -> None:
    callbacks = [{"class_path": "WeightAveraging"}, {"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss"}}]
    mine = {"trainer": {"callbacks": callbacks, "strategy": {"class_path": "SingleDeviceStrategy"}, "profiler": "simple"}}
    Path("mine.yaml").write_text(yaml.safe_dump(mine | {"model": {"loss": "MultiMarginLoss"}}))
    outcome = run("fit", "--config", "configs/digits.yaml", "--config", "mine.yaml", "--print_config")
    assert outcome.code == 0, outcome.err


def test_a_default_that_is_a_function_is_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(torch.nn.Module):
        def __init__(self, act: Any = torch.relu) -> None:
            super().__init__()

    monkeypatch.setattr(Own, "__module__", "lit_guide.networks")
    monkeypatch.setattr(lit_guide.networks, "Own", Own, raising=False)
    check_named(Namespace(a=Namespace(class_path="lit_guide.networks.Own", init_args=Namespace(act=torch.relu))))
    other = Namespace(act=torch.nn.functional.dropout)
    with pytest.raises(ConfigError, match=r"a\.act: dropout is a function"):
        check_named(Namespace(a=Namespace(class_path="lit_guide.networks.Own", init_args=other)))
