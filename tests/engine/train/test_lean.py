import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import LambdaCallback
from torch import nn
from torch.utils.data import DataLoader

from lit_guide.engine.train.progress import STEP, leave_out_empty_hooks

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),  # Lightning 2.6 on torch 2.11 and up
]


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.called = nn.Linear(2, 2), 0

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_after_backward(self):
        self.called += 1


class Counts(Callback):
    def __init__(self):
        self.called = 0

    def on_train_batch_end(self, *args):
        self.called += 1


def train(tmp_path, lean):
    """Three steps; returns the model, a callback that counts in a method, and calls of one made of a function."""
    seed_everything(0, verbose=False)
    model, counts, calls = Model(), Counts(), []
    given = LambdaCallback(on_train_batch_start=lambda *args: calls.append(args[-1]))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        log_every_n_steps=1,
        default_root_dir=tmp_path,
        callbacks=[counts, given, Callback()],
        **quiet,
    )
    if lean:
        leave_out_empty_hooks(trainer, model)
    trainer.fit(model, DataLoader(torch.rand(12, 2), batch_size=4))
    return trainer, model, counts, calls


def test_what_overrides_a_hook_is_called_as_before_and_the_weights_are_the_same(tmp_path):
    (_, usual, *_), (_, model, counts, calls) = train(tmp_path, False), train(tmp_path, True)
    assert (model.called, counts.called, calls) == (3, 3, [0, 1, 2])
    assert torch.equal(usual.layer.weight, model.layer.weight)


def test_only_what_overrides_a_hook_is_left_to_be_called(tmp_path):
    trainer, model, counts, _ = train(tmp_path, True)
    left = {owner: [name for name in STEP if callable(getattr(owner, name))] for owner in (model, *trainer.callbacks)}
    counts_, given, empty = trainer.callbacks[:3]
    assert left[model] == ["on_after_backward"]
    assert counts_ is counts
    assert left[counts] == ["on_train_batch_end"]
    assert left[given] == ["on_train_batch_start"]
    assert left[empty] == []
