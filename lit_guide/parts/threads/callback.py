"""The callback that chooses the number of threads on a CPU, and watches how long they wait for cores that others use."""

import time
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import PositiveInt
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lit_guide.engine.errors import warn
from lit_guide.engine.run import runs
from lit_guide.parts.threads import cores, waiting

SECONDS = 1.0  # of training after which it is looked at how long threads waited
SHARED, QUIET = 0.1, 0.05  # shares of the time that they wait: from the first on others use the cores, below the second none
PATIENCE, MOST_PATIENCE = 5, 320  # looks in a row that nobody does before threads spin again; twice as many after each time
MOST_SAVED = 1024  # threads that a checkpoint may ask for: more could end the process
CROWDED = 3  # looks in a row that others do, before a run goes on with fewer threads


class Threads(Callback):
    """Trains on a CPU with the threads that fit the cores, and lets them sleep while they wait where others use the cores too.

    A run that goes on has the threads that it had before: with another number, sums are made in another order, and weights differ
    in their last bits. How threads wait alters no result, so it may change at any time. Only where that can't be changed, and
    others use the cores, a run of one process goes on with fewer threads; this is told, and results.json says when.

    Args:
        count: threads of each process, `--threads N` for short; null: as many as cores it may use, by affinity and quota.
    """

    def __init__(self, count: PositiveInt | None = None) -> None:
        by_user = torch.get_num_threads() if cores.set_by_user() else None
        self.asked = by_user if count is None else int(count)  # a checkpoint holds plain values
        self.count: int | None = None  # in use
        self.saved: int | None = None  # in the checkpoint that the run goes on from
        self.changes: list[dict[str, int]] = []  # step, counted from 0, and the threads from there on
        self.shared = 0.0  # seconds of training in which others used the cores too
        self._watches = False
        self._since = 0.0  # when it was looked last, and what the threads had run and waited then
        self._before: cores.Times = {}
        self._looks, self._patience, self._crowded = 0, PATIENCE, 0

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on must know."""
        return {"count": self.count, "changes": list(self.changes)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it over; a ValueError where that is no number of threads."""
        if (count := state_dict["count"]) is not None and not (isinstance(count, int) and 0 < count <= MOST_SAVED):
            raise ValueError(f"{str(count)[:20]} threads")
        self.saved, self.changes = state_dict["count"], list(state_dict["changes"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the number of threads: of all processes the same."""
        self._watches = trainer.strategy.root_device.type == "cpu"
        usual = min(torch.get_num_threads(), cores.most_threads(trainer.num_devices))
        asked, count = trainer.strategy.broadcast((self.asked, self.asked or self.saved or usual))
        if not self._watches and asked is None:
            return
        self.count = count
        torch.set_num_threads(self.count)
        waiting.spin()  # of an earlier run in this process
        self._before = {}  # since the process began: its imports have shown whether others use the cores
        if self._watches:
            self._look(trainer, first=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell that a run goes on with other threads; here the step is known."""
        if self.count is not None and self.saved not in (None, self.count):
            told = f"training goes on with {self.count} threads as given, in place of {self.saved}"
            self._change(trainer, f"{told}: weights may differ in their last bits. For the same bits: --threads {self.saved}.")
        self.saved = None

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Look whether others use the cores, if it is time to."""
        if self._watches and time.perf_counter() - self._since >= SECONDS:
            self._look(trainer)

    on_validation_batch_end = on_train_batch_end

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what was used."""
        self._write(trainer)

    def _look(self, trainer: Trainer, first: bool = False) -> None:
        before, since = self._before, self._since
        self._before, self._since = cores.times(), time.perf_counter()
        share = cores.waited(before, self._before)
        if share is None or self.count is None:
            return
        if share < SHARED:
            self._crowded, self._looks = 0, self._looks + 1 if share < QUIET else 0
            if waiting.asleep() and self._looks >= self._patience:
                self._looks, self._patience = 0, min(2 * self._patience, MOST_PATIENCE)
                waiting.spin()
            return
        self._looks = 0
        self.shared += 0.0 if first else self._since - since
        if self.count > 1 and not waiting.sleep(self.count) and not first and self.asked is None:
            self._reduce(trainer, share)

    def _reduce(self, trainer: Trainer, share: float) -> None:
        """Go on with as many threads as got a core, where they spin and can't be made to sleep."""
        self._crowded += 1
        fewer = max(1, round(int(self.count or 1) * (1 - share)))
        if self._crowded >= CROWDED and fewer != self.count and waiting.is_usual() and trainer.world_size == 1:
            before, self.count, self._crowded = self.count, fewer, 0
            torch.set_num_threads(fewer)
            told = f"others use the cores too: training goes on with {fewer} threads in place of {before}"
            self._change(trainer, f"{told}, so weights may differ in their last bits. --threads N keeps to a number.")

    def _change(self, trainer: Trainer, told: str) -> None:
        self.changes.append({"step": trainer.global_step, "threads": int(self.count or 0)})
        warn(told)
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if self.count is not None and trainer.is_global_zero:
            figures = {"count": self.count, "changes": self.changes, "seconds_shared": round(self.shared, 1)}
            runs.update_results(Path(trainer.default_root_dir), {"threads": figures})
