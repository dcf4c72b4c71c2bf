import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lit_guide.engine.errors import UserError
from lit_guide.engine.run.checkpoint import read_checkpoint
from lit_guide.export.weights import write_weights
from lit_guide.model import load_classifier
from tests.conftest import Run

DIGITS = ["--config", "configs/digits.yaml", "--accelerator", "cpu"]


@pytest.fixture
def shared(trained: Path, tmp_path: Path) -> Path:
    """The .safetensors of a run, in a folder without its checkpoint."""
    return Path(shutil.copy(trained / "checkpoints/best.safetensors", tmp_path / "mine.safetensors"))


def rewritten(path: Path, **about: str) -> Path:
    """The same weights with another header."""
    with safe_open(path, "pt") as file:
        weights = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # no mapping
        known = file.metadata()
    save_file(weights, path, {**known, **about})
    return path


def test_it_holds_the_weights_of_the_best_checkpoint_to_the_bit(trained: Path, shared: Path) -> None:
    best, ours = read_checkpoint(trained / "checkpoints/best.ckpt"), read_checkpoint(shared)
    assert ours["hyper_parameters"] == best["hyper_parameters"]
    assert set(ours["state_dict"]) == set(best["state_dict"])
    for name, weight in best["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], weight)
        assert ours["state_dict"][name].dtype == weight.dtype
    image_BCHW = torch.rand(3, 1, 8, 8)
    assert torch.equal(load_classifier(shared)(image_BCHW), load_classifier(trained / "checkpoints/best.ckpt")(image_BCHW))


def test_test_predict_and_export_take_it(run: Run, trained: Path, shared: Path) -> None:
    args = ["--ckpt_path", str(shared), "--run_dir", "mine"]
    for command in ("test", "predict"):
        assert run(command, *DIGITS, *args).code == 0
    assert run("export", *args, "--formats", "onnx").code == 0
    theirs, ours = (json.loads((path / "results.json").read_text()) for path in (trained, Path("mine")))
    assert ours["test"] == theirs["test"]
    assert Path("mine/export/model.onnx").is_file()
    assert len(Path("mine/predictions.csv").read_text().splitlines()) == 1 + sum(map(sum, theirs["test"]["confusion_matrix"]))


def test_fit_has_nothing_to_go_on_with(run: Run, shared: Path) -> None:
    done = run("fit", *DIGITS, "--ckpt_path", str(shared))
    assert done.code == 2
    assert f"{shared} holds weights alone" in done.err


@pytest.mark.parametrize("size", [0, 5, 100, -10])
def test_f06_a_truncated_file_is_refused(shared: Path, size: int) -> None:
    os.truncate(shared, size % shared.stat().st_size)
    with pytest.raises(UserError, match="truncated or not a checkpoint") as caught:
        load_classifier(shared)
    assert str(shared) in str(caught.value)


def test_f06_weights_of_another_kind_are_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="has no hyper_parameters"):
        load_classifier(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize("header", ["no JSON", "[]", "3"])
def test_f06_a_header_that_is_no_dictionary_is_refused(shared: Path, header: str) -> None:
    with pytest.raises(UserError, match=r"can't be read|hyper_parameters is .*, not a mapping"):
        load_classifier(rewritten(shared, hyper_parameters=header))


def test_f09_a_header_that_names_code_is_refused(shared: Path) -> None:
    hyper_parameters = read_checkpoint(shared)["hyper_parameters"] | {"network": "os.system"}
    with pytest.raises(UserError, match=r"was refused.*os\.system"):
        load_classifier(rewritten(shared, hyper_parameters=json.dumps(hyper_parameters)))


def test_f06_f09_a_header_nested_without_end_is_refused(shared: Path) -> None:
    hyper_parameters = read_checkpoint(shared)["hyper_parameters"] | {"network_args": "HERE"}
    header = json.dumps(hyper_parameters).replace('"HERE"', "[" * 500 + "]" * 500)
    with pytest.raises(UserError, match="was refused: its values are nested too deeply"):
        load_classifier(rewritten(shared, hyper_parameters=header))


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_f06_a_missing_weight_is_named_by_the_test_command(run: Run, trained: Path, suffix: str) -> None:
    checkpoint, path = read_checkpoint(trained / "checkpoints/best.ckpt"), Path(f"less.{suffix}")
    del checkpoint["state_dict"]["network.body.features.0.weight"]
    if suffix == "ckpt":
        torch.save(checkpoint, path)
    else:
        write_weights(checkpoint, path)
    done = run("test", *DIGITS, "--ckpt_path", str(path), "--run_dir", "less")
    assert done.code == 1
    assert f"{path}: its weights do not fit the network" in done.err
    assert "network.body.features.0.weight" in done.err


def test_tied_and_channels_last_weights_are_written(tmp_path: Path, trained: Path) -> None:
    checkpoint = read_checkpoint(trained / "checkpoints/best.ckpt")
    filter_OIHW = torch.rand(4, 3, 5, 5).to(memory_format=torch.channels_last)
    checkpoint["state_dict"] = {"one": filter_OIHW, "same": filter_OIHW, "part": filter_OIHW[1:]}
    write_weights(checkpoint, tmp_path / "all.safetensors")
    read = read_checkpoint(tmp_path / "all.safetensors")["state_dict"]
    assert [torch.equal(read[name], weight) for name, weight in checkpoint["state_dict"].items()] == [True] * 3
    assert list(tmp_path.iterdir()) == [tmp_path / "all.safetensors"]


def test_a_folder_in_its_place_is_an_error_and_kept(tmp_path: Path, trained: Path) -> None:
    (tmp_path / "best.safetensors").mkdir()
    with pytest.raises(UserError, match=r"best\.safetensors can't be written: Is a directory\. The checkpoint is safe\."):
        write_weights(read_checkpoint(trained / "checkpoints/best.ckpt"), tmp_path / "best.safetensors")
    assert list(tmp_path.iterdir()) == [tmp_path / "best.safetensors"]
