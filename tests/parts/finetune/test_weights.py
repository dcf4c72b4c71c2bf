"""`model.weights FILE`: which weights a network gets of a file, made on the spot."""

import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torchvision import models

from lit_guide import LitClassifier
from lit_guide.engine.errors import ConfigError, UserError

SHAPE, RGB = (1, 8, 8), (3, 32, 32)


def model(classes: str, shape: tuple[int, int, int] = SHAPE, seed: int = 0, **arguments: Any) -> LitClassifier:
    torch.manual_seed(seed)
    values = [0.1 * (seed + 1)] * shape[0]
    small = {} if "network" in arguments else {"network_args": {"widths": [4, 6]}}
    return LitClassifier([*classes], shape, values, values, **(small | arguments))


def saved(trained: LitClassifier, path: Path) -> Path:
    """A checkpoint as Lightning writes it, of what matters here."""
    about = {"epoch": 1, "global_step": 5, "pytorch-lightning_version": "2.6.6", "optimizer_states": [], "lr_schedulers": []}
    torch.save({"state_dict": trained.state_dict(), "hyper_parameters": dict(trained.hparams), **about}, path)
    return path


def test_other_classes_get_the_body_and_a_new_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = model("abcd")
    after = model("xyz", seed=1, weights=str(saved(before, tmp_path / "best.ckpt")))
    for name, value in after.network.state_dict().items():
        assert name.startswith("body.head") or torch.equal(value, before.network.state_dict()[name]), name
    assert after.network.body.head[2].weight.shape == (3, 6)
    assert (after.hparams["mean"], after.hparams["std"]) == ([pytest.approx(0.1)], [pytest.approx(0.1)])
    whole = sum(value.numel() for value in after.network.state_dict().values())
    told = capsys.readouterr().out
    assert f"{whole - 21:,} of {whole:,} numbers are taken; the head is new, for 3 classes, which was of 4 others." in told


def test_the_same_classes_in_another_order_get_their_own_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = model("abc")
    after = model("cab", seed=1, weights=str(saved(before, tmp_path / "best.ckpt")))
    image_BCHW = torch.rand(5, *SHAPE)
    torch.testing.assert_close(after.eval()(image_BCHW), before.eval()(image_BCHW)[:, [2, 0, 1]])
    assert "the head is its own too" in capsys.readouterr().out


def test_as_many_other_classes_get_a_new_head(tmp_path: Path) -> None:
    before = model("abc")
    after = model("abd", seed=1, weights=str(saved(before, tmp_path / "best.ckpt")))
    assert not torch.equal(after.network.body.head[2].weight, before.network.body.head[2].weight)
    assert torch.equal(after.network.body.features[0].weight, before.network.body.features[0].weight)


def test_safetensors_of_a_run_are_as_good(tmp_path: Path) -> None:
    from lit_guide.export.weights import write_weights

    before, path = model("abc"), tmp_path / "best.safetensors"
    write_weights({"state_dict": before.state_dict(), "hyper_parameters": dict(before.hparams)}, path)
    after = model("abc", seed=1, weights=str(path))
    assert all(
        torch.equal(a, b) for a, b in zip(after.network.state_dict().values(), before.network.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_a_file_of_another_library_holds_the_body_alone(name: str, tmp_path: Path) -> None:
    """torchvision's own names, and 1,000 classes that nobody names."""
    network, path = models.get_model(name), tmp_path / "theirs.safetensors"
    safetensors.torch.save_file(network.state_dict(), path)
    after = model("ab", (3, 64, 64), network=name, weights=str(path))
    theirs, taken = network.state_dict(), after.network.body.state_dict()
    assert taken.keys() == theirs.keys()
    other = [key for key in taken if not torch.equal(taken[key], theirs[key])]
    assert {taken[key].shape[0] for key in other} == {2}
    assert len(other) == 2
    assert after.hparams["mean"] == [pytest.approx(0.1)] * 3  # of the data: the file says nothing of it


def test_grey_images_get_the_mean_of_filters_for_colours(tmp_path: Path) -> None:
    before = model("ab", RGB)
    after = model("ab", (1, 32, 32), seed=1, weights=str(saved(before, tmp_path / "best.ckpt")))
    filters_O3HW = before.network.body.features[0].weight
    torch.testing.assert_close(after.network.body.features[0].weight, filters_O3HW.sum(dim=1, keepdim=True))
    assert after.hparams["mean"] == [pytest.approx(0.2)]  # three values fit no single channel: those of the data stay


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"network": "resnet18"}, "holds the network cnn, but resnet18 is given: take it with --model.network cnn"),
        ({"network_args": {"widths": [4, 8]}}, "Use the network_args {'widths': [4, 6]}"),
    ],
)
def test_another_network_is_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = saved(model("ab", RGB), tmp_path / "best.ckpt")
    with pytest.raises(ConfigError, match=re.escape(message)):
        model("ab", RGB, weights=str(path), **given)


def test_a_file_that_lacks_weights_is_refused_by_their_names(tmp_path: Path) -> None:
    network = models.resnet18(num_classes=2).state_dict()
    del network["layer1.0.conv1.weight"]
    safetensors.torch.save_file(network, tmp_path / "theirs.safetensors")
    with pytest.raises(ConfigError, match=r"1 of \d+ weights are not in it, or of another size: body\.layer1\.0\.conv1\.weight"):
        model("ab", RGB, network="resnet18", weights=str(tmp_path / "theirs.safetensors"))


def test_no_file_and_no_checkpoint_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.weights: there is no file .*none\.ckpt"):
        model("ab", weights=str(tmp_path / "none.ckpt"))
    (tmp_path / "bad.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match=r"bad\.ckpt can't be read"):
        model("ab", weights=str(tmp_path / "bad.ckpt"))


def test_hyperparameters_of_a_model_that_started_from_a_file_name_no_file(tmp_path: Path) -> None:
    after = model("ab", weights=str(saved(model("ab"), tmp_path / "best.ckpt")))
    assert "weights" not in after.hparams


@pytest.mark.parametrize("names", [["a", "b", "c", "d"], ["a", 1, None], 7, ["a", "a", "b"], {"a": 1}, []])
def test_class_names_that_can_not_be_are_those_of_others(names: object, tmp_path: Path) -> None:
    before = model("abc")
    before.hparams["class_names"] = names
    after = model("abc", seed=1, weights=str(saved(before, tmp_path / "best.ckpt")))
    assert not torch.equal(after.network.body.head[2].weight, before.network.body.head[2].weight)
    assert torch.equal(after.network.body.features[0].weight, before.network.body.features[0].weight)
