"""Signals where nothing is trained, or nothing saved."""

import signal
from pathlib import Path
from typing import Any

import pytest

from lit_guide.model import LitClassifier
from lit_guide.predict import Probabilities
from tests import test_faults
from tests.conftest import Run
from tests.test_faults import Fit, Watch, posix

fit, watch = test_faults.fit, test_faults.watch  # fixtures


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), pytest.param("SIGUSR1", 143, marks=posix)])
def test_f04_a_signal_ends_a_run_that_saves_nothing(fit: Fit, watch: Watch, name: str, code: int) -> None:
    watch.before[2] = lambda: signal.raise_signal(getattr(signal, name))
    outcome = fit("--run_dir=part", "--trainer.enable_checkpointing=false")
    assert outcome.code == code
    assert len(watch.batches) == 3
    assert not [*Path("part").glob("**/*.ckpt")]
    assert "Saved" not in outcome.out


@posix
@pytest.mark.parametrize("command", ["validate", "test", "predict"])
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 143)])
def test_f04_a_signal_ends_an_evaluation_at_once(
    own_run: Path, run: Run, monkeypatch: pytest.MonkeyPatch, command: str, name: str, code: int
) -> None:
    number, calls = getattr(signal, name), 0
    handler = signal.signal(number, signal.SIG_IGN)  # what is there before must not end the tests
    before = (own_run / "results.json").read_text()

    def step(self: LitClassifier, batch: Any, batch_idx: int) -> None:
        nonlocal calls
        calls += 1
        signal.raise_signal(number)

    owner = Probabilities if command == "predict" else LitClassifier
    monkeypatch.setattr(owner, f"{command.replace('validate', 'validation')}_step", step)
    try:
        outcome = run(command, "--run", own_run)
        after = signal.getsignal(number)
    finally:
        signal.signal(number, handler)
    assert outcome.code == code
    assert calls == 1
    assert outcome.err == f"lit-guide: Stopped by {name}.\n"
    assert after == signal.SIG_IGN
    assert (own_run / "results.json").read_text() == before
    assert not (own_run / "predictions.csv").exists()
