import math
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn

from lit_guide.data import DigitsData
from lit_guide.engine.errors import UserError
from lit_guide.model import LitClassifier
from lit_guide.networks import NETWORKS
from lit_guide.parts.guards.callback import BATCHES, Guards, broken

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),  # Lightning 2.6 on torch 2.11 and up
]
DIGITS = ["--config", "configs/digits.yaml", "--accelerator", "cpu", "--trainer.max_epochs", "2"]


class Fragile(nn.Module):
    """A linear network of which one training step goes wrong: in its logits, its gradients, or its running mean."""

    def __init__(self, channels: int, classes: int, at: int = 1000, how: str = "forward") -> None:
        super().__init__()
        self.norm, self.layer = nn.BatchNorm2d(channels), nn.Linear(64 * channels, classes)
        self.at, self.how, self.calls = at, how, 0

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        logits_BK = self.layer(self.norm(image_BCHW).flatten(1))
        if self.training and not image_BCHW.is_meta:  # a step, not the look at its shapes
            self.calls += 1
            if self.calls == self.at + 1:
                if self.how == "forward":
                    return logits_BK * math.inf
                if self.how == "running":
                    self.norm.running_mean.data.fill_(math.inf)
                else:  # sqrt has an infinite slope at 0, which 0 times is nan
                    return logits_BK + ((logits_BK * 0).sqrt() * 0).sum()
        return logits_BK


class Unused(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.layer, self.spare = nn.Linear(64 * channels, classes), nn.Linear(3, 3)

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        return self.layer(image_BCHW.flatten(1))


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    monkeypatch.setitem(NETWORKS, "fragile", Fragile)


def train(tmp_path, callback, data=None, accumulate=1, epochs=2, log_every=50, **network_args):
    """Fit for some epochs of 5 batches with a learning rate of 0.01; returns the trainer."""
    seed_everything(0, verbose=False)
    data = data or DigitsData(batch_size=234, augment=False)
    model = LitClassifier(data.class_names, data.input_shape, [0.5], [0.5], "fragile", network_args, optimizer=sgd())
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[callback],
        default_root_dir=tmp_path,
        accumulate_grad_batches=accumulate,
        log_every_n_steps=log_every,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        logger=False,
    )
    callback.trainer = trainer
    trainer.fit(model, datamodule=data)
    return trainer


def sgd():
    return lambda parameters: torch.optim.SGD(parameters, lr=0.01)


def names(data, epoch, batch):
    found = data.batch_names(epoch, batch)
    return f"{', '.join(found[:10])}, {len(found) - 10} more"


def test_f18_a_bad_batch_is_named_before_it_is_learnt_from(tmp_path):
    data, guards = DigitsData(batch_size=234, augment=False), Guards()
    with pytest.raises(UserError) as caught:
        train(tmp_path, guards, data, at=7)
    assert caught.value.exit_code == 1
    assert str(caught.value).splitlines() == [
        "The loss became nan in step 8 (epoch 2, batch 3), at a learning rate of 0.01.",
        f"Images of this batch: {names(data, 1, 2)}.",
        "Last finite checkpoint: none was saved.",
        "Try: --model.optimizer.lr 0.001, --trainer.gradient_clip_val 1.0, "
        "lit-guide data check (finds broken images), "
        "--trainer.detect_anomaly true (names the operation).",
    ]
    assert guards.trainer.global_step == 7
    assert broken(guards.trainer.lightning_module.named_parameters()) == []


def test_f18_gradients_that_broke_the_weights_are_blamed_on_the_batch_before(tmp_path):
    data = DigitsData(batch_size=234, augment=False)
    with pytest.raises(UserError) as caught:
        train(tmp_path, Guards(), data, at=2, how="backward")
    first, second, *_ = str(caught.value).splitlines()
    assert first == "The loss became nan in step 4 (epoch 1, batch 4), at a learning rate of 0.01."
    before = "The weights were broken before, by the gradients of step 3 (epoch 1, batch 3)"
    assert second == f"{before}, of: {names(data, 0, 2)}."


def test_f18_with_accumulated_gradients_both_batches_of_the_step_before_are_named(tmp_path):
    data = DigitsData(batch_size=234, augment=False)
    with pytest.raises(UserError) as caught:
        train(tmp_path, Guards(), data, accumulate=2, at=3, how="backward")
    first, second, *_ = str(caught.value).splitlines()
    assert first.startswith("The loss became nan in step 3 (epoch 1, batch 5)")
    both = data.batch_names(0, 2) + data.batch_names(0, 3)
    assert second.endswith(f"by the gradients of step 2 (epoch 1, batch 4), of: {', '.join(both[:10])}, {len(both) - 10} more.")


def test_f18_losses_that_are_read_later_still_name_the_first_bad_step(tmp_path, monkeypatch):
    monkeypatch.setitem(BATCHES, "cpu", 4)
    data, guards = DigitsData(batch_size=234, augment=False), Guards()
    with pytest.raises(UserError) as caught:
        train(tmp_path, guards, data, at=5)
    first, second, third, *_ = str(caught.value).splitlines()
    assert first.startswith("The loss became nan in step 6 (epoch 2, batch 1)")
    assert second == f"Images of this batch: {names(data, 1, 0)}."
    assert third == f"The weights may have been broken one step earlier, by: {names(data, 0, 4)}."
    assert guards.trainer.fit_loop.batch_idx == 3  # after the epoch's end they are read after four batches again


def test_f18_a_logged_loss_that_is_not_finite_has_all_losses_read(tmp_path, monkeypatch):
    monkeypatch.setitem(BATCHES, "cpu", 50)
    data, guards = DigitsData(batch_size=234, augment=False), Guards()
    with pytest.raises(UserError, match=r"nan in step 2 \(epoch 1, batch 2\)"):
        train(tmp_path, guards, data, at=1, log_every=3)
    assert guards.trainer.fit_loop.batch_idx == 2


def test_f18_losses_not_read_yet_are_read_when_the_epoch_ends(tmp_path, monkeypatch):
    monkeypatch.setitem(BATCHES, "cpu", 50)
    guards = Guards()
    with pytest.raises(UserError, match=r"nan in step 2 \(epoch 1, batch 2\)"):
        train(tmp_path, guards, at=1)
    assert guards.trainer.current_epoch == 0


def test_f18_no_checkpoint_is_written_of_weights_that_are_not_finite(tmp_path):
    guards = Guards()
    with pytest.raises(UserError, match=r"not finite any more: network\.body\.norm\.running_mean") as caught:
        train(tmp_path, guards, at=1, how="running")
    assert "step 5 (epoch 1, batch 5): row " in str(caught.value)
    with pytest.raises(UserError, match=r"not finite any more: network\.body\.norm\.running_mean"):
        guards.trainer.save_checkpoint(tmp_path / "bad.ckpt")
    guards.trainer.lightning_module.network.body.norm.running_mean.zero_()
    guards.trainer.save_checkpoint(tmp_path / "good.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["good.ckpt"]


def test_f18_weights_that_were_bad_from_the_start_blame_no_batch(tmp_path, monkeypatch):
    def bad_layer(channels, classes):
        network = Fragile(channels, classes)
        nn.init.constant_(network.layer.bias, math.nan)
        return network

    monkeypatch.setitem(NETWORKS, "fragile", bad_layer)
    with pytest.raises(UserError, match="The weights were broken before training began: start from another checkpoint"):
        train(tmp_path, Guards())


def test_f18_fit_keeps_the_last_good_checkpoint_and_names_it(tmp_path, run):
    args = ["--model.network", "fragile", "--model.network_args", "{at: 25}", "--run_dir", "run", "--model.scheduler", "null"]
    done = run("fit", *DIGITS, *args)
    assert done.code == 1
    assert "The loss became nan in step 26 (epoch 2, batch 7), at a learning rate of 0.0" in done.err
    assert f"Last finite checkpoint: {Path('run/checkpoints/last.ckpt').absolute()}." in done.err
    assert "Traceback" not in done.err
    saved = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 19
    assert broken(saved["state_dict"].items()) == []


def test_f18_anomaly_detection_names_the_operation(tmp_path, run):
    args = ["--model.network", "fragile", "--model.network_args", "{at: 3, how: backward}", "--trainer.detect_anomaly", "true"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Anomaly Detection has been enabled|Error detected in SqrtBackward0")
        done = run("fit", *DIGITS, *args)
    assert done.code == 1
    assert "lit-guide: A gradient became nan in step 4 (epoch 1, batch 4)" in done.err
    assert "The operation is the one that SqrtBackward0 belongs to" in done.err
    assert "detect_anomaly" not in done.err
