from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer, seed_everything
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, top_k_accuracy_score
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset

from lit_guide.data import DigitsData
from lit_guide.engine.errors import ConfigError
from lit_guide.engine.train.optim import WarmupCosine, from_plain
from lit_guide.model import LitClassifier, load_classifier
from lit_guide.networks import NETWORKS

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),  # Lightning 2.6 on torch 2.11 and up
]


class Pixels(nn.Module):
    """Its logits are the pixels of a (K, 1, 1) image, plus a bias that starts at zero: every loss is known."""

    def __init__(self, channels, classes):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, image_BK11):
        return image_BK11.flatten(1) + self.bias


@pytest.fixture(autouse=True)
def pixels(monkeypatch):
    monkeypatch.setitem(NETWORKS, "pixels", Pixels)


def pixel_model(K=4, **kwargs):
    names = [f"class {k}" for k in range(K)]
    return LitClassifier(names, [K, 1, 1], [0.0] * K, [1.0] * K, network="pixels", **kwargs)


def known_logits(N, K, seed=0, scale=3.0):
    """Logits (N, K) that are right for some of the labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    label_N = torch.randint(0, K, (N,), generator=generator)
    noise_NK = torch.randn(N, K, generator=generator)
    return noise_NK * scale / 2 + F.one_hot(label_N, K) * scale * torch.rand(N, 1, generator=generator), label_N


def loader(logits_NK, label_N, batch_size=16):
    return DataLoader(TensorDataset(logits_NK[:, :, None, None], label_N), batch_size=batch_size)


class Watch(Callback):
    """What every training step used and gave."""

    def __init__(self, stop_after=None):
        self.rates, self.losses, self.first_state, self.stop_after = [], [], None, stop_after

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        optimizer = trainer.optimizers[0]
        if self.first_state is None:
            self.first_state = deepcopy(optimizer.state_dict()["state"])
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))

    def on_train_epoch_end(self, trainer, pl_module):
        if self.stop_after == trainer.current_epoch + 1:
            trainer.should_stop = True


def trainer(max_epochs=1, callbacks=(), **kwargs):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", max_epochs=max_epochs, log_every_n_steps=1, callbacks=list(callbacks), **quiet, **kwargs)


def fitted(model, train=None, val=None, max_epochs=1, ckpt_path=None, stop_after=None, **kwargs):
    watch = Watch(stop_after)
    used = trainer(max_epochs, [watch], **kwargs)
    used.fit(model, train or loader(*known_logits(32, 4)), val, ckpt_path=ckpt_path)
    return used, watch


# --- Arguments and hyperparameters


def assert_plain(value):
    if type(value) is dict:
        assert {type(key) for key in value} <= {str}
        value = list(value.values())
    if type(value) is list:
        for item in value:
            assert_plain(item)
    else:
        assert type(value) in (str, int, float, bool, type(None)), value


SETTINGS = [
    {},
    {"optimizer": partial(AdamW, lr=0.01, betas=(0.8, 0.9), weight_decay=0.1)},
    {"optimizer": SGD},
    {"scheduler": partial(StepLR, step_size=3, gamma=0.5)},
    {"scheduler": partial(WarmupCosine, warmup=0.1)},
    {"scheduler": WarmupCosine},
    {"scheduler": partial(ReduceLROnPlateau, patience=2)},
    {"label_smoothing": 0.1, "class_weights": [1.0, 2.0, 3.0, 4.0], "network_args": {}},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_hyperparameters_are_plain_values_that_build_the_same_model(settings):
    model = pixel_model(**settings)
    assert_plain({**model.hparams})
    again = LitClassifier(**model.hparams)
    assert {**again.hparams} == {**model.hparams}
    first, second = (from_plain(m.optimizer, torch.optim.Optimizer)(m.parameters()) for m in (model, again))
    assert type(first) is type(second)
    for key, value in first.defaults.items():
        assert np.array_equal(second.defaults[key], value), key


def test_hyperparameters_hold_what_was_given():
    model = LitClassifier(
        ("a", "b"),
        (3, 8, 9),
        (0.1, 0.2, 0.3),
        (1.0, 2.0, 3.0),
        network_args={"widths": [4]},
        optimizer=partial(AdamW, lr=0.01, betas=(0.8, 0.9)),
        scheduler=partial(WarmupCosine, warmup=0.1),
        class_weights=[1.0, 3.0],
    )
    assert {**model.hparams} == {
        "class_names": ["a", "b"],
        "input_shape": [3, 8, 9],
        "mean": [0.1, 0.2, 0.3],
        "std": [1.0, 2.0, 3.0],
        "network": "cnn",
        "network_args": {"widths": [4]},
        "optimizer": {"name": "AdamW", "lr": 0.01, "betas": [0.8, 0.9]},
        "scheduler": {"name": "WarmupCosine", "warmup": 0.1},
        "label_smoothing": 0.0,
        "class_weights": [1.0, 3.0],
        "scale_lr": False,
        "freeze": "none",
        "freeze_epochs": None,
        "backbone_lr": 1.0,
        "layer_decay": 1.0,
        "decay_norms": True,
        "loss": None,
    }


def test_numpy_values_become_plain_ones():
    model = LitClassifier(
        np.array(["a", "b"]),
        np.array([1, 8, 8]),
        np.array([0.5], np.float32),
        np.array([0.25]),
        network_args={"widths": [4]},
        class_weights=list(np.array([1.0, 2.0])),
    )
    assert_plain({**model.hparams})
    assert model.hparams["class_names"] == ["a", "b"]
    assert model.hparams["mean"] == [0.5]


@pytest.mark.parametrize("given", [partial(SGD, lr=0.25, momentum=0.5), {"name": "SGD", "lr": 0.25, "momentum": 0.5}])
def test_optimizer_is_the_given_one_as_partial_and_as_plain_mapping(given):
    used, _ = fitted(pixel_model(optimizer=given))
    optimizer = used.optimizers[0]
    assert type(optimizer) is SGD
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]) == (0.25, 0.5)


def test_one_sgd_step_is_the_one_by_hand():
    logits_NK, label_N = known_logits(8, 4)
    model = pixel_model(optimizer=partial(SGD, lr=0.5))
    fitted(model, loader(logits_NK, label_N))
    gradient_K = (logits_NK.softmax(1) - F.one_hot(label_N, 4)).mean(0)
    torch.testing.assert_close(model.network.body.bias.detach(), -0.5 * gradient_K)


def test_adam_with_its_usual_rate_is_the_default():
    used, _ = fitted(pixel_model())
    assert type(used.optimizers[0]) is Adam
    assert used.optimizers[0].param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize("value", [-0.1, 1.0, 2.0, float("nan")])
def test_label_smoothing_outside_its_range_is_refused(value):
    with pytest.raises(ConfigError, match=r"model\.label_smoothing is .* from 0 to less than 1"):
        pixel_model(label_smoothing=value)


def test_class_weights_of_any_sequence_count_and_another_word_than_auto_is_refused():
    for weights in ((1, 2, 3, 4), np.array([1.0, 2.0, 3.0, 4.0])):
        model = pixel_model(class_weights=weights)
        assert model.criterion.weight.tolist() == [1, 2, 3, 4]
        assert model.hparams["class_weights"] == [1.0, 2.0, 3.0, 4.0]
    with pytest.raises(ConfigError, match=r"model\.class_weights is 'balanced'; it must be auto, a list of 4 numbers, or null"):
        pixel_model(class_weights="balanced")


def test_class_weights_must_be_one_for_each_class():
    with pytest.raises(ConfigError, match=r"model\.class_weights has 2 values for 4 classes: .*class 3"):
        pixel_model(class_weights=[1.0, 2.0])


@pytest.mark.parametrize("optimizer", [partial(SGD, lr=-1.0), partial(SGD, learning_rate=0.1)])
def test_an_optimizer_that_can_not_be_built_is_refused(optimizer):
    with pytest.raises(ConfigError, match=r"model\.optimizer"):
        pixel_model(optimizer=optimizer)


@pytest.mark.parametrize("key", ["optimizer", "scheduler"])
def test_a_plain_mapping_that_names_no_class_is_refused_not_imported(key):
    model = pixel_model(**{key: {"name": "os.system"}})
    with pytest.raises(ConfigError, match=r"There is no \w+ called 'os.system'"):
        model.configure_optimizers()


# --- Loss


@pytest.mark.parametrize(("smoothing", "weights"), [(0.0, None), (0.2, None), (0.0, [1.0, 5.0, 0.5, 2.0]), (0.1, [3.0, 1, 1, 1])])
def test_class_weights_and_smoothing_reach_the_training_loss_and_only_that(smoothing, weights):
    logits_NK, label_N = known_logits(40, 4)
    model = pixel_model(optimizer=partial(SGD, lr=0.0), label_smoothing=smoothing, class_weights=weights)
    data = loader(logits_NK, label_N)
    used, watch = fitted(model, data, data)
    weight_K = None if weights is None else torch.tensor(weights)
    expected = [
        F.cross_entropy(logits_BK, label_B, weight_K, label_smoothing=smoothing).item()
        for logits_BK, label_B in zip(logits_NK.split(16), label_N.split(16), strict=True)
    ]
    assert watch.losses == pytest.approx(expected, rel=1e-5)
    assert used.callback_metrics["val/loss"] == pytest.approx(F.cross_entropy(logits_NK, label_N).item(), rel=1e-5)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_train_loss_and_accuracy_are_means_over_all_images_of_the_epoch(precision):
    logits_NK, label_N = known_logits(1001, 4)
    logits_NK = logits_NK.bfloat16().float()  # exact in both precisions
    model = pixel_model(optimizer=partial(SGD, lr=0.0))
    used, _ = fitted(model, loader(logits_NK, label_N, batch_size=100), max_epochs=2, precision=precision)
    loss = F.cross_entropy(logits_NK, label_N).item()
    accuracy = accuracy_score(label_N, logits_NK.argmax(1))
    assert used.callback_metrics["train/accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert used.callback_metrics["train/loss"] == pytest.approx(loss, rel=1e-5 if precision == "32-true" else 1e-2)


def test_f20_the_loss_is_the_same_however_the_images_are_divided():
    logits_NK, label_N = known_logits(269, 4)
    losses = []
    for size in (3, 7, 64, 269):
        used, _ = fitted(pixel_model(optimizer=partial(SGD, lr=0.0)), val=loader(logits_NK, label_N, size))
        losses.append(float(used.callback_metrics["val/loss"]))
    assert losses == losses[:1] * 4


def test_loss_of_a_step_is_logged_as_often_as_asked():
    model = pixel_model(optimizer=partial(SGD, lr=0.0))
    used, watch = fitted(model, loader(*known_logits(40, 4)))
    assert used.callback_metrics["train/loss_step"] == pytest.approx(watch.losses[-1])


# --- Metrics


def expected_calibration_error(probability_NK, label_N, bins=15):
    confidence_N = probability_NK.max(1)
    correct_N = probability_NK.argmax(1) == label_N
    bin_N = np.minimum((confidence_N * bins).astype(int), bins - 1)
    gaps = [abs(correct_N[bin_N == b].mean() - confidence_N[bin_N == b].mean()) * (bin_N == b).mean() for b in set(bin_N)]
    return sum(gaps)


def expected_metrics(logits_NK, label_N, prefix):
    K = logits_NK.shape[1]
    probability_NK, label_N = logits_NK.double().softmax(1).numpy(), label_N.numpy()
    predicted_N = probability_NK.argmax(1)
    expected = {
        "loss": -np.log(probability_NK[np.arange(len(label_N)), label_N]).mean(),
        "accuracy": accuracy_score(label_N, predicted_N),
        "f1": f1_score(label_N, predicted_N, average="macro"),
        "ece": expected_calibration_error(probability_NK, label_N),
    }
    if K > 5:
        expected["top5"] = top_k_accuracy_score(label_N, probability_NK, k=5, labels=range(K))
    return {f"{prefix}/{name}": pytest.approx(value, abs=1e-5) for name, value in expected.items()}


@pytest.mark.parametrize(("N", "K"), [(301, 10), (157, 6), (90, 3), (64, 2)])
def test_test_metrics_and_confusion_equal_scikit_learns(N, K):
    logits_NK, label_N = known_logits(N, K)
    model = pixel_model(K)
    measured = trainer().test(model, loader(logits_NK, label_N, 32), verbose=False)[0]
    assert measured == expected_metrics(logits_NK, label_N, "test")
    expected_KK = confusion_matrix(label_N, logits_NK.argmax(1), labels=range(K))
    np.testing.assert_array_equal(model.confusion_KK.compute().numpy(), expected_KK)


def test_macro_f1_leaves_out_a_class_that_is_not_there():
    logits_NK, label_N = known_logits(80, 4)
    logits_NK, label_N = F.pad(logits_NK, (0, 3), value=-9.0), label_N
    measured = trainer().test(pixel_model(7), loader(logits_NK, label_N), verbose=False)[0]
    assert measured == expected_metrics(logits_NK, label_N, "test")


def test_calibration_error_is_right_for_logits_that_look_like_probabilities():
    generator = torch.Generator().manual_seed(0)
    logits_NK, label_N = torch.rand(200, 4, generator=generator), torch.randint(0, 4, (200,), generator=generator)
    measured = trainer().test(pixel_model(4), loader(logits_NK, label_N), verbose=False)[0]
    assert measured == expected_metrics(logits_NK, label_N, "test")


def test_validation_metrics_of_an_epoch_count_nothing_but_that_epoch():
    train, (logits_NK, label_N) = known_logits(32, 6), known_logits(70, 6, seed=1)
    model = pixel_model(6, optimizer=partial(SGD, lr=0.0))
    used, _ = fitted(model, loader(*train), loader(logits_NK, label_N), max_epochs=3)
    measured = {key: float(value) for key, value in used.callback_metrics.items() if key.startswith("val/")}
    assert measured == expected_metrics(logits_NK, label_N, "val")
    expected_KK = confusion_matrix(label_N, logits_NK.argmax(1), labels=range(6))
    np.testing.assert_array_equal(model.confusion_KK.compute().numpy(), expected_KK)


def test_a_second_test_gives_the_same_and_counts_nothing_twice():
    data, model = loader(*known_logits(50, 4)), pixel_model()
    first = trainer().test(model, data, verbose=False)
    assert trainer().test(model, data, verbose=False) == first
    assert model.confusion_KK.compute().sum() == 50


def test_top5_is_left_out_where_every_answer_would_be_right():
    assert "test/top5" not in trainer().test(pixel_model(5), loader(*known_logits(20, 5)), verbose=False)[0]


def test_predict_gives_probabilities_and_the_labels_as_they_came():
    logits_NK, label_N = known_logits(20, 4)
    batches = trainer().predict(pixel_model(), loader(logits_NK, label_N))
    torch.testing.assert_close(torch.cat([probability_BK for probability_BK, _ in batches]), logits_NK.softmax(1))
    assert torch.equal(torch.cat([label_B for _, label_B in batches]), label_N)


# --- A run as a whole

# The losses of ten steps on the shipped digits, measured on an x86 CPU with torch 2.15. When a change of the model, the data or
# the augmentation is meant to move them, run `pytest -vv tests/test_model.py -k golden` and copy the obtained values here.
GOLDEN_LOSSES = [2.590495, 2.38437, 2.000375, 2.144802, 1.681159, 1.555305, 1.303985, 1.269194, 1.154408, 0.926215]


def test_ten_seeded_steps_on_the_digits_give_the_golden_losses():
    seed_everything(7, verbose=False)
    data = DigitsData(batch_size=64)
    model = LitClassifier(data.class_names, data.input_shape, data.mean, data.std, optimizer=partial(Adam, lr=3e-3))
    watch = Watch()
    used = trainer(max_epochs=1, callbacks=[watch], limit_train_batches=10, limit_val_batches=0)
    used.fit(model, data)
    assert watch.losses[:4] == pytest.approx(GOLDEN_LOSSES[:4], rel=1e-4)
    # Adam's first steps go by the signs of gradients: a change of the mean by 5e-7 moves the later losses by up to 1e-2.
    assert watch.losses == pytest.approx(GOLDEN_LOSSES, rel=2e-2)


def test_checkpoint_of_a_run_gives_the_same_answers_again(tmp_path):
    model = pixel_model(optimizer=partial(SGD, lr=0.5))
    used, _ = fitted(model)
    used.save_checkpoint(tmp_path / "a.ckpt")
    logits_NK, _ = known_logits(9, 4, seed=2)
    image_NK11 = logits_NK[:, :, None, None]
    assert model.network.body.bias.abs().max() > 0.01
    assert torch.equal(load_classifier(tmp_path / "a.ckpt")(image_NK11), model(image_NK11))


# --- Schedules: 32 images in batches of 16 are two steps an epoch


def warmup_cosine_rates(peak, total_steps, warmup):
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    schedule = WarmupCosine(optimizer, warmup=warmup, total_steps=total_steps)
    rates = []
    for _ in range(total_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("scheduler", [partial(WarmupCosine, warmup=0.25), {"name": "WarmupCosine", "warmup": 0.25}])
def test_warmup_cosine_gets_the_runs_steps_and_steps_every_batch(scheduler):
    _, watch = fitted(pixel_model(optimizer=partial(SGD, lr=0.4), scheduler=scheduler), max_epochs=4)
    assert watch.rates == pytest.approx(warmup_cosine_rates(0.4, 8, 0.25))


def test_warmup_cosine_counts_optimizer_steps_not_batches():
    model = pixel_model(optimizer=partial(SGD, lr=0.4), scheduler=partial(WarmupCosine, warmup=0.25))
    _, watch = fitted(model, max_epochs=4, accumulate_grad_batches=2)
    assert watch.rates[::2] == watch.rates[1::2] == pytest.approx(warmup_cosine_rates(0.4, 4, 0.25))


def test_total_steps_that_are_given_are_kept():
    model = pixel_model(optimizer=partial(SGD, lr=0.4), scheduler=partial(WarmupCosine, warmup=0.0, total_steps=100))
    fitted_rates = fitted(model, max_epochs=2)[1].rates
    assert fitted_rates[0] == fitted_rates[1] == pytest.approx(0.4)
    assert model.lr_schedulers().lr_lambdas[0](100) == pytest.approx(0.0)
    assert model.lr_schedulers().lr_lambdas[0](50) > 0.19


def test_step_lr_steps_every_epoch():
    model = pixel_model(optimizer=partial(SGD, lr=0.8), scheduler=partial(StepLR, step_size=1, gamma=0.5))
    assert fitted(model, max_epochs=4)[1].rates == pytest.approx([0.8, 0.8, 0.4, 0.4, 0.2, 0.2, 0.1, 0.1])


@pytest.mark.parametrize(("val_label", "rates"), [(1, [0.1, 0.1, 0.01, 0.001]), (0, [0.1, 0.1, 0.1, 0.1])])
def test_reduce_on_plateau_watches_the_validation_loss(val_label, rates):
    logits_NK = torch.zeros(16, 4)
    train, val = (loader(logits_NK, torch.full((16,), label)) for label in (0, val_label))
    model = pixel_model(optimizer=partial(SGD, lr=0.1), scheduler=partial(ReduceLROnPlateau, patience=0))
    assert fitted(model, train, val, max_epochs=4)[1].rates == pytest.approx(rates)


# --- Resuming


@pytest.fixture
def saved(tmp_path):
    """Train for two epochs of a run of four, and give the checkpoint."""

    def save(**settings):
        used, watch = fitted(pixel_model(**settings), max_epochs=4, stop_after=2)
        assert len(watch.rates) == 4
        used.save_checkpoint(tmp_path / "a.ckpt")
        return str(tmp_path / "a.ckpt")

    return save


def resumed(path, max_epochs=4, **settings):
    used, watch = fitted(pixel_model(**settings), max_epochs=max_epochs, ckpt_path=path)
    return used.optimizers[0], watch


SCHEDULES = {
    "none": (None, [0.8] * 8),
    "steps": (partial(StepLR, step_size=1, gamma=0.5), [0.8, 0.8, 0.4, 0.4, 0.2, 0.2, 0.1, 0.1]),
    "warmup_cosine": (partial(WarmupCosine, warmup=0.25), warmup_cosine_rates(0.8, 8, 0.25)),
    "cosine": (partial(CosineAnnealingLR, T_max=4), [0.8 * f for f in (1, 1, 0.853553, 0.853553, 0.5, 0.5, 0.146447, 0.146447)]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_resumed_run_goes_on_with_the_rates_of_an_unbroken_one(saved, name):
    scheduler, rates = SCHEDULES[name]
    settings = {"optimizer": partial(SGD, lr=0.8, momentum=0.9), "scheduler": scheduler}
    assert fitted(pixel_model(**settings), max_epochs=4)[1].rates == pytest.approx(rates, rel=1e-5)
    assert resumed(saved(**settings), **settings)[1].rates == pytest.approx(rates[4:], rel=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_changed_learning_rate_wins_and_the_schedule_goes_on_from_it(saved, name):
    scheduler, rates = SCHEDULES[name]
    path = saved(optimizer=partial(SGD, lr=0.8), scheduler=scheduler)
    _, watch = resumed(path, optimizer=partial(SGD, lr=2.4), scheduler=scheduler)
    assert watch.rates == pytest.approx([3 * rate for rate in rates[4:]], rel=1e-5)


def test_a_changed_learning_rate_wins_over_one_that_was_left_to_torch(saved):
    scheduler = partial(StepLR, step_size=1, gamma=0.5)
    path = saved(optimizer=SGD, scheduler=scheduler)  # 0.001
    _, watch = resumed(path, optimizer=partial(SGD, lr=0.8), scheduler=scheduler)
    assert watch.rates == pytest.approx([0.2, 0.2, 0.1, 0.1])


def test_changed_settings_win_and_the_optimizers_state_stays(saved):
    path = saved(optimizer=partial(Adam, lr=0.1))
    before = torch.load(path, weights_only=True)["optimizer_states"][0]["state"][0]
    optimizer, watch = resumed(path, optimizer=partial(Adam, lr=0.01, betas=(0.5, 0.6), weight_decay=0.25))
    group = optimizer.param_groups[0]
    assert (group["lr"], list(group["betas"]), group["weight_decay"]) == (0.01, [0.5, 0.6], 0.25)
    assert watch.first_state[0]["step"] == before["step"] == 4


def test_unchanged_settings_leave_the_optimizers_state_to_the_checkpoint(saved):
    settings = {"optimizer": partial(SGD, lr=0.1, momentum=0.9)}
    path = saved(**settings)
    before = torch.load(path, weights_only=True)["optimizer_states"][0]
    optimizer, watch = resumed(path, max_epochs=2, **settings)
    assert watch.rates == []  # its two epochs were done
    assert torch.equal(optimizer.state_dict()["state"][0]["momentum_buffer"], before["state"][0]["momentum_buffer"])
    assert optimizer.param_groups[0]["momentum"] == 0.9


def test_another_optimizer_starts_with_a_fresh_state(saved):
    path = saved(optimizer=partial(Adam, lr=0.1))
    optimizer, watch = resumed(path, optimizer=partial(SGD, lr=0.3, momentum=0.9))
    assert type(optimizer) is SGD
    assert watch.first_state == {}
    assert watch.rates == [0.3] * 4


def test_weights_and_epoch_go_on_even_with_another_optimizer(saved):
    path = saved(optimizer=partial(Adam, lr=0.1))
    before_K = torch.load(path, weights_only=True)["state_dict"]["network.body.bias"]
    model = pixel_model(optimizer=partial(SGD, lr=0.0))
    used, watch = fitted(model, max_epochs=4, ckpt_path=path)
    assert before_K.abs().max() > 0.1
    assert torch.equal(model.network.body.bias.detach(), before_K)
    assert used.current_epoch == 4
    assert len(watch.rates) == 4


@pytest.mark.parametrize("name", ["steps", "warmup_cosine"])
def test_without_its_scheduler_a_resumed_run_has_the_given_learning_rate(saved, name):
    path = saved(optimizer=partial(SGD, lr=0.8), scheduler=SCHEDULES[name][0])
    assert resumed(path, optimizer=partial(SGD, lr=0.8))[1].rates == pytest.approx([0.8] * 4)


def test_a_new_scheduler_starts_from_the_given_learning_rate(saved):
    path = saved(optimizer=partial(SGD, lr=0.8), scheduler=SCHEDULES["steps"][0])
    new = partial(StepLR, step_size=1, gamma=0.1)
    assert resumed(path, optimizer=partial(SGD, lr=0.8), scheduler=new)[1].rates == pytest.approx([0.8, 0.8, 0.08, 0.08])


def test_a_loss_that_can_not_be_named_is_refused():
    for loss in (lambda: nn.MultiMarginLoss(margin=0.2), partial(nn.MultiMarginLoss, 2)):
        with pytest.raises(ConfigError, match=r"give a class, or functools\.partial\(CLASS, name=value\)"):
            pixel_model(loss=loss)
