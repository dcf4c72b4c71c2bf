"""Runs that break off and go on, in this process where the fault allows it. test_resume.py kills real ones at random moments.

The images are of one value each, the number of their row, which no shift changes: a batch shows which samples are in it.
"""

import csv
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_guide.engine.run.checkpoint import read_checkpoint
from lit_guide.model import LitClassifier
from tests.conftest import Outcome, Run

TRAIN, VAL, BATCH, EPOCHS = 40, 12, 10, 4
STEPS = TRAIN // BATCH  # of an epoch
LAST = Path("checkpoints/last.ckpt")
NO_EXPORT = [f"--export.{name}.enabled=false" for name in ("onnx", "torchscript", "pt2")]
NUMBERED = [
    "--accelerator=cpu",
    "--data=ArraysData",
    "--data.path=numbered.npz",
    f"--data.batch_size={BATCH}",
    "--model.network_args={widths: [4, 8], dropout: 0.3}",
    "--model.optimizer.lr=0.01",
    f"--trainer.max_epochs={EPOCHS}",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_progress_bar=false",
    *NO_EXPORT,
]
STEP_LR = ["--model.scheduler=StepLR", "--model.scheduler.step_size=1", "--model.scheduler.gamma=0.5"]
PLATEAU = [
    "--model.scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau",
    "--model.scheduler.patience=0",
    "--model.scheduler.threshold=0.5",
]
COSINE = ["--model.scheduler=WarmupCosine"]
Fit = Callable[..., Outcome]

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limits and signals")


class Watch:
    """What `training_step` got, and what is to happen before which step.

    Attributes:
        batches: (optimizer steps before it, images, labels) of each call.
        before: what to do before step N of training, N = 0, 1, ...; before validation after step N: -N.
    """

    def __init__(self) -> None:
        self.batches: list[tuple[int, Tensor, Tensor]] = []
        self.before: dict[int, Callable[[], object]] = {}

    def samples(self, epoch: int) -> list[int]:
        """The rows that were trained on in an epoch, in their order."""
        inside = [image_BCHW for step, image_BCHW, _ in self.batches if step // STEPS == epoch]
        return [round(255 * float(image_CHW.max())) for image_BCHW in inside for image_CHW in image_BCHW]


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch, training_step, validation_step = Watch(), LitClassifier.training_step, LitClassifier.validation_step

    def train(self: LitClassifier, batch: Any, batch_idx: int) -> Tensor:
        watch.before.pop(self.global_step, lambda: None)()
        watch.batches.append((self.global_step, batch[0].clone(), batch[1].clone()))
        return training_step(self, batch, batch_idx)

    def validate(self: LitClassifier, batch: Any, batch_idx: int) -> None:
        watch.before.pop(-self.global_step if self.global_step else -1000, lambda: None)()
        validation_step(self, batch, batch_idx)

    monkeypatch.setattr(LitClassifier, "training_step", train)
    monkeypatch.setattr(LitClassifier, "validation_step", validate)
    return watch


def break_off() -> None:
    raise RuntimeError("the power went")


@pytest.fixture
def fit(run: Run) -> Fit:
    """fit("--key=value", ...), on the numbered images, for 4 epochs of 4 steps if not told otherwise."""
    rows = np.arange(TRAIN + VAL)
    images = np.broadcast_to(rows[:, None, None], (len(rows), 8, 8)).astype(np.uint8)
    split = ["train"] * TRAIN + ["val"] * VAL
    np.savez("numbered.npz", images=images, labels=rows // 2 % 2, split=split, class_names=["even", "odd"])

    def call(*args: str) -> Outcome:
        outcome = run("fit", *([] if args[0].startswith("--run=") else NUMBERED), *args)
        print(outcome.out, outcome.err)  # shown where a test fails
        return outcome

    return call


def rows(run_dir: str) -> list[dict[str, str]]:
    with Path(run_dir, "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def equal(one: Any, other: Any) -> bool:
    """Whether two parts of a checkpoint are the same, bit for bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def assert_same_end(whole: str, part: str) -> None:
    for name in ("best.ckpt", "last.ckpt"):
        first, second = (read_checkpoint(Path(run_dir, "checkpoints", name)) for run_dir in (whole, part))
        for key in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers", "train_sums_W3"):
            assert equal(first[key], second[key]), (name, key)


# F01: stopped at an epoch's end


@pytest.mark.parametrize("scheduler", [[], STEP_LR, PLATEAU], ids=["no-scheduler", "StepLR", "ReduceLROnPlateau"])
def test_f01_a_run_of_2_epochs_trained_on_to_4_is_a_run_of_4(fit: Fit, watch: Watch, scheduler: list[str]) -> None:
    assert fit("--run_dir=whole", *scheduler).code == 0
    whole, watch.batches = watch.batches, []
    assert fit("--run_dir=part", "--trainer.max_epochs=2", *scheduler).code == 0
    assert len(watch.batches) == 2 * STEPS
    assert fit("--run=part", f"--trainer.max_epochs={EPOCHS}").code == 0
    assert equal(watch.batches, whole)
    assert_same_end("whole", "part")
    # The best of the first two epochs was scored when they had ended.
    scored = [row for row in rows("part") if row["step"] == str(2 * STEPS) and "val/loss" in row]
    assert len(scored) == 1
    assert [row for row in rows("part") if row not in scored] == rows("whole")


def test_f01_a_run_that_a_signal_stops_at_an_epochs_end_goes_on_as_if_it_had_not(fit: Fit, watch: Watch) -> None:
    assert fit("--run_dir=whole", *COSINE).code == 0
    whole, watch.batches = watch.batches, []
    watch.before[2 * STEPS - 1] = lambda: signal.raise_signal(signal.SIGTERM)
    assert fit("--run_dir=part", *COSINE).code == 143
    assert read_checkpoint("part" / LAST)["global_step"] == len(watch.batches) == 2 * STEPS
    assert fit("--run=part").code == 0
    assert equal(watch.batches, whole)
    assert_same_end("whole", "part")
    assert rows("part") == rows("whole")


# F02: broken off in the middle of an epoch; tests with a real SIGKILL are below and in test_resume.py


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=[pytest.mark.slow, posix])])
@pytest.mark.parametrize("end", ["error", "signal"])
def test_f02_no_sample_comes_twice_or_is_left_out_in_an_epoch_that_broke_off(
    fit: Fit, watch: Watch, workers: int, end: str
) -> None:
    args = [*COSINE, f"--data.num_workers={workers}", "--checkpoint.every_n_steps=1"]
    assert fit("--run_dir=whole", *args).code == 0
    whole, watch.batches = watch.batches, []
    middle = STEPS + 2
    watch.before[middle] = break_off if end == "error" else lambda: signal.raise_signal(signal.SIGTERM)
    assert fit("--run_dir=part", *args).code == (1 if end == "error" else 143)
    done = middle if end == "error" else middle + 1  # a signal lets the step come to its end
    assert read_checkpoint("part" / LAST)["global_step"] == len(watch.batches) == done
    assert fit("--run=part").code == 0
    for epoch in range(EPOCHS):
        assert sorted(watch.samples(epoch)) == list(range(TRAIN))
    assert equal(watch.batches, whole)
    assert_same_end("whole", "part")
    assert rows("part") == rows("whole")


def test_f02_what_was_trained_since_the_last_save_is_trained_again_with_the_same_samples(fit: Fit, watch: Watch) -> None:
    args = [*COSINE, "--checkpoint.every_n_steps=2"]
    assert fit("--run_dir=whole", *args).code == 0
    whole, watch.batches = watch.batches, []
    watch.before[STEPS + 3] = break_off
    assert fit("--run_dir=part", *args).code == 1
    assert read_checkpoint("part" / LAST)["global_step"] == STEPS + 2
    watch.batches = watch.batches[: STEPS + 2]
    assert fit("--run=part").code == 0
    assert equal(watch.batches, whole)
    assert_same_end("whole", "part")
    assert rows("part") == rows("whole")


# F03: a checkpoint is due at an epoch's last batch


@pytest.mark.parametrize("every", [STEPS // 2, STEPS])
@pytest.mark.parametrize(
    ("place", "saved"), [(2 * STEPS, 2 * STEPS), (-2 * STEPS, None)], ids=["in the next epoch", "in the validation after it"]
)
def test_f03_no_epoch_is_lost_or_repeated(fit: Fit, watch: Watch, every: int, place: int, saved: int | None) -> None:
    args = [*STEP_LR, f"--checkpoint.every_n_steps={every}"]
    assert fit("--run_dir=whole", *args).code == 0
    whole, watch.batches = watch.batches, []
    watch.before[place] = break_off
    assert fit("--run_dir=part", *args).code == 1
    # The epoch is saved when it has been validated; until then the save before it counts.
    step = read_checkpoint("part" / LAST)["global_step"]
    assert step == saved or (saved is None and 2 * STEPS - every <= step < 2 * STEPS)
    watch.batches = watch.batches[:step]
    assert fit("--run=part").code == 0
    assert equal(watch.batches, whole)
    assert [row["epoch"] for row in rows("part") if "train/loss" in row] == [str(epoch) for epoch in range(EPOCHS)]
    assert [row["epoch"] for row in rows("part") if "val/loss" in row] == [str(epoch) for epoch in [*range(EPOCHS), EPOCHS]]
    assert_same_end("whole", "part")
    assert rows("part") == rows("whole")


# F05: a checkpoint that does not get written


@posix
@pytest.mark.parametrize("step", [STEPS + 2, 2 * STEPS], ids=["last", "best and last"])
def test_f05_on_a_full_disk_the_checkpoint_before_stays_and_the_run_goes_on_from_it(fit: Fit, watch: Watch, step: int) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    args = [*COSINE, "--checkpoint.every_n_steps=1"]
    assert fit("--run_dir=whole", *args).code == 0
    whole, watch.batches = watch.batches, []
    size = Path("whole", LAST).stat().st_size
    # From this step on no file can grow over half of a checkpoint: how a disk is full without being root.
    watch.before[step - 1] = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1]))
    try:
        outcome = fit("--run_dir=part", *args)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert outcome.code == 1
    told = r"/(best|last)\.ckpt can't be written: File too large\. The \1\.ckpt from before is whole\. Make room\. Go on with"
    assert re.search(told, outcome.err)
    assert "Traceback" not in outcome.err
    assert {path.suffix for path in Path("part/checkpoints").iterdir()} <= {".ckpt", ".safetensors"}  # no half file
    saved = read_checkpoint("part" / LAST)["global_step"]
    assert saved in (step - 2, step - 1)  # the one before was being written when the disk filled up
    assert read_checkpoint("part/checkpoints/best.ckpt")["global_step"] == STEPS
    watch.batches = watch.batches[:saved]
    assert fit("--run=part").code == 0
    assert equal(watch.batches, whole)
    assert_same_end("whole", "part")
    assert rows("part") == rows("whole")


# F44: what was there before is still there


def test_f44_a_run_that_fails_while_it_goes_on_keeps_what_was_there(fit: Fit, watch: Watch) -> None:
    assert fit("--run_dir=run", "--trainer.max_epochs=1").code == 0
    before = {
        path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file() and path.suffix not in (".yaml", ".csv")
    }
    rows_before = rows("run")
    watch.before[STEPS] = break_off
    outcome = fit("--run=run", "--trainer.max_epochs=2")
    assert (outcome.code, "the power went" in outcome.err) == (1, True)
    assert {path: path.read_bytes() for path in before} == before
    assert rows("run")[: len(rows_before)] == rows_before


def test_f44_shared_weights_are_never_of_another_model_than_the_best(fit: Fit, watch: Watch) -> None:
    assert fit("--run_dir=run", "--trainer.max_epochs=1").code == 0
    watch.before[3 * STEPS] = break_off
    assert fit("--run=run", f"--trainer.max_epochs={EPOCHS}").code == 1
    best = read_checkpoint("run/checkpoints/best.ckpt")
    shared = Path("run/checkpoints/best.safetensors")
    assert best["epoch"] == 0 or not shared.exists()
    assert best["epoch"] != 0 or equal(read_checkpoint(shared)["state_dict"], best["state_dict"])


def test_f44_they_are_none_of_it_in_a_run_directory_that_is_a_link_either(fit: Fit, watch: Watch) -> None:
    assert fit("--run_dir=real", "--trainer.max_epochs=1").code == 0
    Path("run").symlink_to("real")
    watch.before[3 * STEPS] = break_off
    assert fit("--run=run", f"--trainer.max_epochs={EPOCHS}", "--model.optimizer.lr=0.0001").code == 1
    best, shared = read_checkpoint("run/checkpoints/best.ckpt"), Path("run/checkpoints/best.safetensors")
    assert best["epoch"] != 0, "then nothing is tried"
    assert not shared.exists()


def test_f44_the_directory_of_a_run_that_never_trained_is_removed(fit: Fit, watch: Watch) -> None:
    watch.before[0] = break_off
    assert fit("--run_dir=run").code == 1
    assert not Path("run").exists()
    watch.before[1] = break_off
    assert fit("--run_dir=run").code == 1
    assert Path("run/config.yaml").is_file()


def test_f44_a_directory_with_files_of_the_users_is_kept(fit: Fit, watch: Watch) -> None:
    watch.before[0] = lambda: (Path("run/notes.txt").write_text("precious"), break_off())
    assert fit("--run_dir=run").code == 1
    assert Path("run/notes.txt").read_text() == "precious"


# F40: after a full disk was partly freed


def test_f40_a_run_that_goes_on_asks_for_what_it_still_needs(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fit("--run_dir=run", "--trainer.max_epochs=1").code == 0
    Path("run").rename("elsewhere")
    Path("run").symlink_to("elsewhere")
    weights = 4 * sum(value.numel() for name, value in read_checkpoint("run/checkpoints/best.ckpt")["state_dict"].items())
    free = 0
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": free}))
    outcome = fit("--run=run", "--trainer.max_epochs=2")
    assert outcome.code == 1
    assert f"{Path('elsewhere').absolute()} has 0 MB free" in outcome.err
    assert "--run_dir" not in outcome.err
    free = 12 * weights  # not enough for a new run, which writes 13 times its weights
    assert fit("--run_dir=new").code == 1
    assert fit("--run=run", "--trainer.max_epochs=2").code == 0
