"""F42: a run that goes on with other batches, processes or epochs trains on each sample once, to the end of its schedule."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from lit_guide.engine.data.loaders import TrainBatches
from lit_guide.engine.run.checkpoint import read_checkpoint
from lit_guide.model import LitClassifier
from tests import test_faults
from tests.engine.train.test_checkpoints import terminate
from tests.test_faults import BATCH, COSINE, EPOCHS, STEPS, TRAIN, Fit, Watch

fit, watch = test_faults.fit, test_faults.watch  # fixtures

ONE_CYCLE = ["--model.scheduler=OneCycleLR", "--model.scheduler.max_lr=0.05"]


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rate of each training step."""
    noted: list[float] = []
    training_step = LitClassifier.training_step

    def step(self: LitClassifier, batch: Any, batch_idx: int) -> Tensor:
        noted.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(LitClassifier, "training_step", step)
    return noted


def rows_of(watch: Watch, start: int = 0) -> list[int]:
    return [round(255 * float(image_CHW.max())) for _, image_BCHW, _ in watch.batches[start:] for image_CHW in image_BCHW]


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [[], COSINE, ONE_CYCLE], ids=["none", "WarmupCosine", "OneCycleLR"])
@pytest.mark.parametrize(("batch_size", "accumulate"), [(5, 1), (20, 1), (4, 1), (8, 1), (5, 2), (10, 2)])
@pytest.mark.parametrize("place", [STEPS + 2, 2 * STEPS])
def test_f42_each_sample_once_with_other_batches(
    fit: Fit, watch: Watch, rates: list[float], place: int, batch_size: int, accumulate: int, schedule: list[str]
) -> None:
    watch.before[place] = terminate
    assert fit("--run_dir=run", *schedule).code == 143
    trained = int(read_checkpoint("run/checkpoints/last.ckpt")["global_step"])
    outcome = fit("--run=run", f"--data.batch_size={batch_size}", f"--trainer.accumulate_grad_batches={accumulate}")
    assert outcome.code == 0
    assert Counter(rows_of(watch)) == Counter(dict.fromkeys(range(TRAIN), EPOCHS))
    done = trained * BATCH
    assert Counter(rows_of(watch)[: 2 * TRAIN]) == Counter(dict.fromkeys(range(TRAIN), 2))
    if done % TRAIN and batch_size != BATCH:
        assert (
            f"Epoch {done // TRAIN + 1} goes on after {done % TRAIN} of {TRAIN} images: {batch_size} a batch, {BATCH} before."
            in outcome.out
        )
    if schedule:  # nearly zero in the last step, and not before
        assert rates[-1] < 0.15 * max(rates)
        assert np.argmin(rates[trained:]) >= len(rates) - trained - accumulate


@pytest.mark.parametrize("schedule", [COSINE, ONE_CYCLE], ids=["WarmupCosine", "OneCycleLR"])
@pytest.mark.parametrize("broken_off", [0, STEPS + 1])
def test_f42_with_more_epochs_a_schedule_ends_when_they_do(
    fit: Fit, watch: Watch, rates: list[float], schedule: list[str], broken_off: int
) -> None:
    assert fit("--run_dir=long", *schedule).code == 0
    whole = rates.copy()
    rates.clear()
    if broken_off:
        watch.before[broken_off] = terminate
    assert fit("--run_dir=run", *schedule, "--trainer.max_epochs=2").code == (143 if broken_off else 0)
    trained = int(read_checkpoint("run/checkpoints/last.ckpt")["global_step"])
    assert fit("--run=run", f"--trainer.max_epochs={EPOCHS}").code == 0
    assert len(rates) == len(whole)
    # The first step's rate is that at which the shorter schedule stood.
    np.testing.assert_allclose(rates[trained + 1 :], whole[trained + 1 :], rtol=1e-6)


def test_f42_with_nothing_changed_it_goes_on_to_the_bit(fit: Fit, watch: Watch, rates: list[float]) -> None:
    assert fit("--run_dir=whole", *ONE_CYCLE).code == 0
    whole = rates.copy()
    rates.clear()
    watch.before[STEPS + 2] = terminate
    assert fit("--run_dir=run", *ONE_CYCLE).code == 143
    assert fit("--run=run").code == 0
    assert rates == whole


@pytest.mark.parametrize("seed", range(30))
def test_f42_the_rest_of_an_epoch_is_divided_among_any_processes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
    draw = random.Random(seed)
    count, world, size = draw.randint(20, 300), draw.choice([1, 2, 3, 8]), draw.randint(1, 16)
    before = TrainBatches(count, draw.randint(1, 16), 0, draw.choice([1, 2, 3]), None, 3, 0, False)
    done = before.begin(3, draw.randint(1, max(1, len(before) - 1)))
    after = [TrainBatches(count, size, rank, world, None, 3, 0, False) for rank in range(world)]
    at = len(after[0]) - max(1, after[0].batches_of(count - done))
    for one in after:
        one.start, one.shifted = at, (3, done - at * one.step)
    seen = [place for one in after for places in one for place in places.places]
    assert len(seen) == len(set(seen))
    assert set(seen) <= set(before.order(3)[done:].tolist())
    assert count - done - len(seen) < 2 * world + size * world * (count - done < 2 * world)  # too few for a batch
    for one in after:
        one.set_epoch(4)
    assert [places.places for places in after[0]] == [
        places.places for places in TrainBatches(count, size, 0, world, None, 4, 0, False)
    ]


def test_what_was_saved_before_there_were_places_goes_on(fit: Fit, watch: Watch) -> None:
    import torch

    assert fit("--run_dir=run", *COSINE, "--trainer.max_epochs=2").code == 0
    content = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    del content["place"]
    torch.save(content, Path("run/checkpoints/last.ckpt"))
    assert fit("--run=run", "--trainer.max_epochs=3").code == 0
    assert Counter(rows_of(watch)) == Counter(dict.fromkeys(range(TRAIN), 3))


def test_f42_a_run_in_mid_epoch_goes_on_with_smaller_batches(fit: Fit, watch: Watch, rates: list[float]) -> None:
    watch.before[STEPS + 2] = terminate
    assert fit("--run_dir=run", *COSINE).code == 143
    assert fit("--run=run", "--data.batch_size=5").code == 0
    assert Counter(rows_of(watch)) == Counter(dict.fromkeys(range(TRAIN), EPOCHS))
    assert rates[-1] < 0.15 * max(rates)
