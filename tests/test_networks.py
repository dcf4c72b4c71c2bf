import json
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.transforms.v2 import functional as TF

from lit_guide.engine import zoo
from lit_guide.engine.errors import ConfigError
from lit_guide.engine.zoo import library_names
from lit_guide.networks import CNN, NETWORKS, Normalized, build_network
from tests.conftest import FAST

TORCHVISION = models.list_models(module=models)
SMALL = ["mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5", "regnet_x_400mf"]


def refusal(*args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        build_network(*args, **kwargs)
    assert caught.value.exit_code == 2
    return str(caught.value)


# --- CNN


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [(8, 8), (9, 9), (15, 8), (28, 28), (31, 33), (65, 64)])
def test_cnn_takes_any_channels_and_any_size(channels, size):
    network = build_network("cnn", channels, 7, size).eval()
    image_BCHW = torch.randn(2, channels, *size)
    logits_BK = network(image_BCHW)
    assert logits_BK.shape == (2, 7)
    for channel in range(channels):  # every channel counts
        other_BCHW = image_BCHW.clone()
        other_BCHW[:, channel] += 1
        assert not torch.allclose(network(other_BCHW), logits_BK)


@pytest.mark.parametrize("widths", [[4], [4] * 4, [4] * 9])
def test_any_number_of_stages_fits_eight_pixels(widths):
    network = build_network("cnn", 1, 3, (8, 8), args={"widths": widths}).eval()
    assert network(torch.rand(2, 1, 8, 8)).shape == (2, 3)
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == 2 * len(widths)


def test_widths_and_dropout_reach_the_layers():
    network = build_network("cnn", 3, 10, (32, 32), args={"widths": [8, 24], "dropout": 0.35})
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [(3, 8), (8, 8), (8, 24), (24, 24)]
    assert [module.p for module in network.modules() if isinstance(module, nn.Dropout)] == [0.35]
    assert (network.head[-1].in_features, network.head[-1].out_features) == (24, 10)


def test_the_weights_of_one_cnn_serve_every_image_size():
    trained = CNN(3, 10).eval()
    for size in ((8, 8), (28, 28), (32, 32), (33, 65)):
        other = build_network("cnn", 3, 10, size).eval()
        other.load_state_dict(trained.state_dict())
        image_BCHW = torch.rand(2, 3, *size)
        torch.testing.assert_close(other(image_BCHW), trained(image_BCHW))


class Handbook(nn.Module):
    """Two convolutions, a flatten and a Linear that knows the image size: made for 3 x 28 x 28."""

    def __init__(self, channels, classes):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(16 * 14 * 14, classes)

    def forward(self, image_BCHW):
        return self.head(self.features(image_BCHW).flatten(1))


def test_a_linear_after_a_flatten_fits_one_image_size_only(monkeypatch):
    monkeypatch.setitem(NETWORKS, "handbook", Handbook)
    assert "handbook" in [*NETWORKS, *library_names()]
    assert build_network("handbook", 3, 10, (28, 28))(torch.rand(2, 3, 28, 28)).shape == (2, 10)
    for size in ((32, 32), (8, 8)):
        message = refusal("handbook", 3, 10, size)
        assert f"model.network handbook can't take images of 3 x {size[0]} x {size[1]}" in message
        assert "--data.image_size" in message


# --- torchvision


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", SMALL)
def test_small_torchvision_networks_run_on_any_channels(name, channels):
    network = build_network(name, channels, 7, (64, 64)).eval()
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    assert first.in_channels == channels
    logits_BK = network(torch.rand(2, channels, 64, 64))
    assert logits_BK.shape == (2, 7)
    assert logits_BK.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_every_torchvision_network_takes_one_channel_and_seven_classes(name):
    size = (299, 299) if name == "inception_v3" else (224, 224)
    # RegNet computes its widths with tensors, so it alone can't be built without memory.
    device = "cpu" if name.startswith("regnet") else "meta"
    with torch.device(device):
        network = build_network(name, 1, 7, size).eval().to("meta")
    assert network(torch.empty(2, 1, *size, device="meta")).shape == (2, 7)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(8, 8), (28, 28)])
@pytest.mark.parametrize("name", [name for name in TORCHVISION if not name.startswith("regnet")])
def test_a_torchvision_network_takes_an_image_or_refuses_it_in_plain_words(name, size):
    refused = ""
    with torch.device("meta"):
        try:
            shape = build_network(name, 1, 7, size).eval()(torch.empty(2, 1, *size)).shape
        except ConfigError as error:
            refused = str(error)
    if refused:
        assert refused.startswith(f"model.network {name}")
        assert "--data.image_size" in refused
    else:
        assert shape == (2, 7)


def test_networks_with_auxiliary_classifiers_train_to_one_output():
    network = build_network("googlenet", 1, 7, (64, 64)).train()
    assert network(torch.rand(2, 1, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize("size", [28, 8, 30])
def test_vit_refuses_an_image_that_its_patches_do_not_tile(size):
    message = refusal("vit_b_32", 3, 7, (size, size))
    assert "vit_b_32" in message
    assert "--data.image_size" in message


@pytest.mark.parametrize(("name", "size"), [("alexnet", 8), ("inception_v3", 32), ("squeezenet1_1", 8)])
def test_images_too_small_for_a_network_are_refused_with_what_to_do(name, size):
    message = refusal(name, 3, 7, (size, size))
    assert message.startswith(f"model.network {name} can't take images of 3 x {size} x {size}: ")
    assert "Enlarge them with --data.image_size" in message


def test_the_check_of_the_shape_leaves_mode_and_statistics_alone():
    network = build_network("resnet18", 3, 7, (64, 64))
    assert all(module.training for module in network.modules())
    assert network.bn1.num_batches_tracked == 0
    assert (network.bn1.running_mean == 0).all()
    assert {parameter.device.type for parameter in network.parameters()} == {"cpu"}


# --- Wrong names and arguments


@pytest.mark.parametrize(("name", "near"), [("resnet81", "resnet18"), ("cnm", "cnn"), ("mobilenet_v3", "mobilenet_v3_large")])
def test_an_unknown_network_is_refused_with_the_nearest_names(name, near):
    message = refusal(name, 3, 7, (64, 64))
    assert f"model.network: there is no network {name!r}. Did you mean " in message
    assert near in message


def test_a_network_name_like_no_other_is_refused_with_where_to_look():
    assert f"Use {', '.join(NETWORKS)} or a name of torchvision.models." in refusal("???", 3, 7, (64, 64))


def test_detection_and_segmentation_networks_are_no_classifiers():
    assert "there is no network 'fcn_resnet50'" in refusal("fcn_resnet50", 3, 7, (64, 64))


def test_an_unknown_argument_is_refused_with_the_nearest_one():
    message = refusal("cnn", 3, 7, (64, 64), args={"width": [4]})
    assert message == "model.network_args: cnn has no argument 'width'. Did you mean widths?"


def test_an_argument_like_no_other_is_refused_with_all_there_are():
    assert "It takes widths, dropout." in refusal("cnn", 3, 7, (64, 64), args={"zzz": 1})


@pytest.mark.parametrize("args", [{"dropout": 2.0}, {"widths": "abc"}, {"widths": 3}])
def test_an_argument_of_the_wrong_value_is_refused_by_name(args):
    message = refusal("cnn", 3, 7, (64, 64), args=args)
    assert "cnn" in message


def test_a_wrong_argument_of_a_torchvision_network_is_refused():
    message = refusal("resnet18", 3, 7, (64, 64), args={"widht": 3})
    assert message.startswith("model.network resnet18: ")
    assert "widht" in message


def test_arguments_reach_torchvision_and_are_not_changed():
    args = {"dropout": 0.75}
    network = build_network("alexnet", 3, 7, (64, 64), args=args)
    assert [module.p for module in network.modules() if isinstance(module, nn.Dropout)] == [0.75, 0.75]
    assert args == {"dropout": 0.75}


# --- Normalized


@pytest.mark.parametrize("channels", [1, 3])
def test_normalized_normalises_as_torchvision_does(channels):
    mean, std = [0.1, 0.5, 0.7][:channels], [0.2, 0.3, 0.9][:channels]
    image_BCHW = torch.rand(4, channels, 5, 6)
    expected_BCHW = TF.normalize(image_BCHW, mean, std)
    torch.testing.assert_close(Normalized(nn.Identity(), mean, std)(image_BCHW), expected_BCHW)


def test_normalisation_is_saved_with_the_weights():
    state = Normalized(nn.Identity(), [0.25], [0.5]).state_dict()
    assert {key: value.flatten().tolist() for key, value in state.items()} == {"mean_C11": [0.25], "std_C11": [0.5]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_normalisation_is_one_that_torch_2_11_takes_and_no_bit_is_another_for_it(monkeypatch, dtype):
    image_BCHW, plain = torch.rand(2, 3, 5, 5), torch.nn.functional.batch_norm
    mean, std = [0.1, 0.5, 0.9], [1e-6, 0.3, 1.0]  # no smaller deviation is ever computed
    network = Normalized(nn.Identity(), mean, std).to(dtype)

    def as_in_2_11(*args, eps, **kwargs):
        assert eps > 0, f"batch_norm eps must be positive, but got {eps}"
        return plain(*args, eps=eps, **kwargs)

    monkeypatch.setattr(zoo.F, "batch_norm", as_in_2_11)
    exact_BCHW = plain(image_BCHW.to(dtype), network.mean_C11.flatten(), network.std_C11.flatten().square(), eps=0.0)
    assert torch.equal(network(image_BCHW), exact_BCHW)


def test_normalized_takes_float32_pixels_in_the_precision_of_its_weights():
    network = Normalized(nn.Conv2d(1, 2, 1), [0.5], [0.25]).to(torch.bfloat16)
    assert network(torch.rand(1, 1, 4, 4)).dtype == torch.bfloat16


# --- Pretrained weights


@pytest.fixture
def downloaded(tmp_path, monkeypatch):
    """Put a network's weights where torch.hub keeps what it has downloaded; the hash is checked on download only."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def store(name):
        folder = tmp_path / "hub" / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        state = models.get_model_builder(name)(weights=None, **options).state_dict()
        torch.save(state, folder / models.get_model_weights(name).DEFAULT.url.rsplit("/", 1)[1])
        return state

    return store


HEADS = {"resnet18": "fc", "squeezenet1_1": "classifier.1", "mobilenet_v3_small": "classifier.3"}


@pytest.mark.parametrize("name", HEADS)
def test_pretrained_weights_are_kept_except_for_the_head(downloaded, name):
    state = downloaded(name)
    network = build_network(name, 3, 7, (64, 64), weights="DEFAULT").eval()
    assert network(torch.rand(2, 3, 64, 64)).shape == (2, 7)
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key]) != key.startswith(HEADS[name]), key


def test_pretrained_first_filters_answer_grey_as_the_colour_network_does(downloaded):
    downloaded("resnet18")
    colour = build_network("resnet18", 3, 7, (64, 64), weights="DEFAULT").eval()
    grey_B1HW = torch.rand(2, 1, 64, 64)
    for channels in (1, 4):
        other = build_network("resnet18", channels, 7, (64, 64), weights="DEFAULT").eval()
        torch.testing.assert_close(
            other.conv1(grey_B1HW.expand(-1, channels, -1, -1)), colour.conv1(grey_B1HW.expand(-1, 3, -1, -1))
        )
        assert torch.equal(other.layer4[1].conv2.weight, colour.layer4[1].conv2.weight)


@pytest.mark.slow
def test_pretrained_googlenet_trains_to_one_output(downloaded):
    downloaded("googlenet")
    for channels in (1, 3):
        network = build_network("googlenet", channels, 7, (64, 64), weights="DEFAULT").train()
        assert network(torch.rand(2, channels, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_replaced_first_filters_are_the_mean_and_keep_geometry_and_bias(channels):
    old = nn.Conv2d(3, 6, (3, 5), stride=2, padding=(1, 2), dilation=(1, 2))
    network = nn.Sequential(nn.Sequential(deepcopy(old)), nn.ReLU())
    zoo._replace_first(network, channels, pretrained=True)
    new = network[0][0]
    assert new.weight.shape == (6, channels, 3, 5)
    for channel in range(channels):
        torch.testing.assert_close(new.weight[:, channel], old.weight.sum(1) / channels)
    assert torch.equal(new.bias, old.bias)
    for key in ("kernel_size", "stride", "padding", "dilation"):
        assert getattr(new, key) == getattr(old, key)


def test_unknown_weights_are_refused_with_those_there_are():
    message = refusal("resnet50", 3, 7, (64, 64), weights="IMAGENET")
    assert message == "model.weights: resnet50 has no weights 'IMAGENET'; it has IMAGENET1K_V1, IMAGENET1K_V2."


def test_weights_for_a_network_that_has_none_are_refused():
    assert "cnn has no pretrained weights" in refusal("cnn", 3, 7, (64, 64), weights="DEFAULT")


def test_weights_that_can_not_be_downloaded_are_an_error_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for variable in ("https_proxy", "HTTPS_PROXY"):  # nothing listens there: offline wherever this runs
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    message = refusal("resnet18", 3, 7, (64, 64), weights="DEFAULT")
    assert "the weights of resnet18 could not be downloaded" in message
    assert "leave model.weights out" in message


def test_a_network_with_another_number_of_logits_is_refused(monkeypatch):
    monkeypatch.setitem(NETWORKS, "three", lambda channels, classes: nn.Sequential(nn.Flatten(), nn.Linear(64 * channels, 3)))
    assert "three must give logits (B, 5)" in refusal("three", 1, 5, (8, 8))


def test_a_network_that_takes_any_argument_gets_it(monkeypatch):
    monkeypatch.setitem(NETWORKS, "open", lambda channels, classes, **more: CNN(channels, classes, **more))
    network = build_network("open", 1, 5, (8, 8), args={"widths": [4]})
    assert network.features[0].out_channels == 4


def test_a_network_that_fails_without_a_word_is_named(monkeypatch):
    class Silent(nn.Module):
        def __init__(self, channels, classes):
            super().__init__()

        def forward(self, image_BCHW):
            raise AssertionError

    monkeypatch.setitem(NETWORKS, "silent", Silent)
    assert "silent can't take images of 1 x 8 x 8: AssertionError" in refusal("silent", 1, 5, (8, 8))


# --- F57: more than logits, a batch above one


class Named(NamedTuple):
    aux: torch.Tensor
    logits: torch.Tensor


@dataclass
class Output:
    hidden: torch.Tensor
    logits: torch.Tensor


class Several(nn.Module):
    """Logits of a Linear, and more beside them: always, or only in one mode."""

    GIVES: ClassVar = {
        "tuple": lambda logits, more: (logits, more),
        "list": lambda logits, more: [logits, more],
        "named": lambda logits, more: Named(more, logits),
        "dict": lambda logits, more: {"aux": more, "logits": logits},
        "object": lambda logits, more: Output(more, logits),
    }

    def __init__(self, channels, classes, gives="tuple", modes=(True, False)):
        super().__init__()
        self.head, self.aux = nn.Linear(64 * channels, classes), nn.Linear(64 * channels, 3)
        self.gives, self.modes = self.GIVES[gives], modes

    def forward(self, image_BCHW):
        flat_BF = image_BCHW.flatten(1)
        logits_BK = self.head(flat_BF)
        return self.gives(logits_BK, self.aux(flat_BF)) if self.training in self.modes else logits_BK


@pytest.mark.parametrize("modes", [(True, False), (True,), (False,)])
@pytest.mark.parametrize("gives", Several.GIVES)
def test_f57_a_network_that_gives_more_than_logits_gives_the_logits(monkeypatch, gives, modes):
    monkeypatch.setitem(NETWORKS, "several", Several)
    network = build_network("several", 1, 5, (8, 8), args={"gives": gives, "modes": modes})
    image_BCHW = torch.rand(4, 1, 8, 8)
    for training in (True, False):
        assert torch.equal(network.train(training)(image_BCHW), network.head(image_BCHW.flatten(1)))
    assert list(network.state_dict()) == ["head.weight", "head.bias", "aux.weight", "aux.bias"]
    copied = deepcopy(network).eval()
    assert torch.equal(copied(image_BCHW), network(image_BCHW))


@pytest.mark.parametrize("output", [{"scores": 1}, (), [], None, {}, 7])
def test_f57_several_values_without_logits_are_refused(monkeypatch, output):
    class Without(Several):
        def forward(self, image_BCHW):
            return output

    monkeypatch.setitem(NETWORKS, "without", Without)
    assert "without must give logits (B, 5)" in refusal("without", 1, 5, (8, 8))


def test_f57_other_logits_in_training_are_refused_before_it(monkeypatch):
    class Wrong(Several):
        def forward(self, image_BCHW):
            return super().forward(image_BCHW)[1 if self.training else 0]

    monkeypatch.setitem(NETWORKS, "wrong", Wrong)
    assert "wrong must give logits (B, 5)" in refusal("wrong", 1, 5, (8, 8))


def test_f57_what_training_alone_can_not_do_with_so_small_maps_is_refused(monkeypatch):
    monkeypatch.setitem(
        NETWORKS,
        "instance",
        lambda channels, classes: nn.Sequential(
            nn.Conv2d(channels, classes, 8), nn.InstanceNorm2d(classes, track_running_stats=True), nn.Flatten()
        ),
    )
    message = refusal("instance", 1, 5, (8, 8))
    assert "instance can't take images of 1 x 8 x 8: Expected more than 1 spatial element when training" in message
    assert "--data.image_size" in message


def test_f57_a_network_that_looks_at_its_values_is_not_refused_for_it(monkeypatch):
    class Looks(Several):
        def forward(self, image_BCHW):
            shifted_BCHW = image_BCHW + torch.ones(1, 1, 8, 8)  # on the CPU, wherever the images are
            return self.head(shifted_BCHW.flatten(1)) * (2 if image_BCHW.mean().item() > 0.5 else 1)

    monkeypatch.setitem(NETWORKS, "looks", Looks)
    network = build_network("looks", 1, 5, (8, 8))
    assert network(torch.rand(3, 1, 8, 8)).shape == (3, 5)


@pytest.mark.parametrize("gives", ["tuple", "dict"])
def test_f57_such_a_network_trains_and_is_exported(run, monkeypatch, gives):
    monkeypatch.setitem(NETWORKS, "several", Several)
    own = ("--model.network", "several", "--model.network_args.gives", gives, "--model.optimizer.lr", "0.01")
    outcome = run("fit", "--config", "configs/digits.yaml", *FAST, *own, "--run_dir", "r")
    assert outcome.code == 0, outcome.err
    results = json.loads(Path("r/results.json").read_text())
    assert results["test"]["accuracy"] > 0.5
    assert [sorted(entry)[0] for entry in results["exports"]] == ["batch_sizes"] * 3
    assert run("test", "--run", "r").code == 0


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_f57_a_batch_of_one_image_that_batch_norm_can_not_take_is_told_with_the_flag(run, name):
    outcome = run("fit", "--config", "configs/digits.yaml", *FAST, "--model.network", name, "--data.batch_size", "1")
    assert outcome.code == 2, outcome.err
    assert outcome.err.count("\n") == 1
    assert "use --data.batch_size 2 or more" in outcome.err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_f57_networks_with_auxiliary_heads_train(run, name):
    few = ("--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1", "--trainer.limit_test_batches", "1")
    small = (*few, "--trainer.max_epochs", "1", "--data.batch_size", "2", "--data.image_size", "75", "--run_dir", "r")
    none = [f"--export.{name}.enabled=false" for name in ("onnx", "torchscript", "pt2")]
    args = ("--model.network_args.aux_logits", "true")
    outcome = run("fit", "--config", "configs/digits.yaml", *FAST, *small, *none, "--model.network", name, *args)
    assert outcome.code == 0, outcome.err
    assert json.loads(Path("r/results.json").read_text())["test"]["loss"] > 0
