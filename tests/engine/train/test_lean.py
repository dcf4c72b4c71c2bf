import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import LambdaCallback
from torch import nn
from torch.utils.data import DataLoader

from lit_guide.engine.train.module import ClassifierModule
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


def train(tmp_path, lean, cls=Model, clip=None):
    """Three steps; returns the model, a callback that counts in a method, and calls of one made of a function."""
    seed_everything(0, verbose=False)
    model, counts, calls = cls(), Counts(), []
    given = LambdaCallback(on_train_batch_start=lambda *args: calls.append(args[-1]))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        log_every_n_steps=1,
        gradient_clip_val=clip,
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


class Clips(Model):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.clip_gradients(optimizer, 0.01, "norm")


@pytest.mark.parametrize(("cls", "clip"), [(Model, 0.01), (Clips, None)])
def test_clipping_by_flag_or_by_a_method_of_ones_own_is_done_as_before(tmp_path, cls, clip):
    (_, usual, *_), (_, model, *_) = train(tmp_path, False, cls, clip), train(tmp_path, True, cls, clip)
    (_, unclipped, *_) = train(tmp_path, True)
    assert torch.equal(usual.layer.weight, model.layer.weight)
    assert not torch.allclose(unclipped.layer.weight, model.layer.weight, atol=1e-3)


@pytest.mark.parametrize(("cls", "left"), [(Model, False), (ClassifierModule, False), (Clips, True)])
def test_clipping_is_left_out_where_it_would_do_nothing(cls, left):
    model = cls() if cls is not ClassifierModule else cls(classes=2)
    leave_out_empty_hooks(Trainer(accelerator="cpu", logger=False), model)
    assert callable(model.configure_gradient_clipping) is left
