import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lit_guide.parts.threads import waiting

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="libgomp is Linux's")


@pytest.fixture(autouse=True)
def spinning() -> Iterator[None]:
    """As in a new process, before and after."""
    waiting.spin()
    yield
    waiting.spin()


def python(code: str, **variables: str) -> str:
    """What a process with the environment's usual way of waiting prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_f55_threads_stop_spinning_and_spin_again() -> None:
    # After an operation its threads wait for the next one. Of the seconds in which they spin, the process has used the CPU.
    told = python("""
        import os, threading, time, torch
        from lit_guide.parts.threads import waiting
        torch.set_num_threads(2)
        x = torch.randn(1_000_000)

        def used():
            seconds = 0.0
            for _ in range(40):
                torch.relu(x)
                before = time.process_time()
                time.sleep(0.005)
                seconds += time.process_time() - before
            return seconds

        spinning = used()
        assert waiting.sleep(2) and waiting.sleep(2) and waiting.asleep()
        asleep = used()
        waiting.spin()
        waiting.spin()
        assert not waiting.asleep() and torch.get_num_threads() == 2 and threading.active_count() == 1
        again = used()
        print(asleep < 0.3 * spinning, asleep < 0.3 * again, spinning, asleep, again)
    """)
    assert told.startswith("True True"), told


@pytest.mark.slow
def test_f55_how_threads_wait_alters_no_bit() -> None:
    told = python("""
        import torch
        from lit_guide.networks import CNN
        from lit_guide.parts.threads import waiting
        torch.set_num_threads(2)

        def train(turns):
            torch.manual_seed(0)
            network, image_BCHW = CNN(1, 10, dropout=0.0), torch.rand(64, 1, 16, 16)
            optimizer = torch.optim.Adam(network.parameters())
            for step in range(24):
                if turns and step % 6 == 3:
                    waiting.spin() if waiting.asleep() else waiting.sleep(2)
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(network(image_BCHW), torch.arange(64) % 10).backward()
                optimizer.step()
            return network.state_dict().values()

        one, other = train(False), train(True)
        print(all(map(torch.equal, one, other)))
    """)
    assert told == "True\n"


@pytest.mark.slow
@pytest.mark.parametrize("variable", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}])
def test_f55_what_the_user_says_of_waiting_stays(variable: dict[str, str]) -> None:
    code = "import torch; from lit_guide.parts.threads.waiting import *; print(can_sleep(), sleep(2), asleep())"
    assert python(code, **variable) == "False False False\n"
    assert python(code) == "True True True\n"


@pytest.mark.parametrize(
    ("libraries", "can"),
    [
        (("/x/torch/lib/libgomp.so.1",), True),
        (("/x/torch.libs/libgomp-a34b3233.so.1", "/x/scikit_learn.libs/libgomp-e985bcbb.so.1.0.0"), True),
        (("/x/lib/libgomp.so.1", "/x/lib/libiomp5.so"), False),
        (("/x/lib/libomp.so",), False),
        (("/x/lib/libc.so.6",), False),
        (("/x/lib/libgomp.so.1", "/x/lib/libcompat.so"), True),
    ],
)
def test_f55_only_libgomp_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, libraries: tuple[str, ...], can: bool
) -> None:
    for name in waiting.SET_BY_USER:
        monkeypatch.delenv(name, raising=False)
    maps = tmp_path / "maps"
    maps.write_text("".join(f"7f8a80dcd000-7f8a80e11000 r-xp 00001000 fe:00 54139 {library}\n" for library in libraries))
    assert waiting.can_sleep(maps) is can
    assert not waiting.can_sleep(tmp_path / "none")


def test_f55_a_limit_on_threads_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    started = threading.Thread.start
    left = 2

    def start(thread: threading.Thread) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise RuntimeError("can't start new thread")
        started(thread)

    before = threading.active_count()
    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(waiting, "can_sleep", lambda: True)
    assert not waiting.sleep(1)
    assert not waiting.asleep()
    assert threading.active_count() == before
