"""libjpeg's warnings never reach the error stream, where they name no file; `data check` names the file."""

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from lit_guide import FolderData
from lit_guide.engine.photos.dataset import ImageDataset
from lit_guide.engine.photos.decode import decode, decode_bytes, quiet_libjpeg, read_bytes
from lit_guide.engine.photos.examine import DAMAGED, examine
from lit_guide.parts.inspect.check import check


def broken_inside(content: bytes) -> bytes:
    """A JPEG with other bytes in the middle of its pixels: libjpeg warns, and goes on."""
    half = len(content) // 2
    noise = np.random.default_rng(0).bytes(400).replace(b"\xff", b"\xfe")
    return content[:half] + noise + content[half + 400 :]


@pytest.fixture(name="root")
def folder_with_damaged_photos(photos: dict[str, tuple[Path, np.ndarray]], tmp_path: Path) -> Path:
    """Two classes of good photos; two of them have a damaged copy."""
    for number in range(8):
        folder = tmp_path / "set" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels_HWC = photos[("china.jpg", "flower.jpg")[number % 2]][1][number * 10 :][:200, :300]
        Image.fromarray(pixels_HWC).save(file := io.BytesIO(), "JPEG", quality=90)
        content = file.getvalue()
        (folder / f"{number}.jpg").write_bytes(content)
        if number > 5:
            (folder / f"{number} damaged.jpg").write_bytes(broken_inside(content))
    return tmp_path / "set"


def names_of(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*.jpg"))


def test_f52_torchvision_alone_would_print_the_warning(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Without this, the tests below would not fail where nothing is kept quiet."""
    decode_bytes(read_bytes(root / "a/6 damaged.jpg"))
    assert "Corrupt JPEG data" in capfd.readouterr().err


def test_f52_a_warning_of_libjpeg_is_not_printed_and_all_else_is(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    decode(root / "a/6 damaged.jpg")
    assert capfd.readouterr().err == ""
    with quiet_libjpeg() as printed:
        assert printed() == 0
        os.write(2, b"before\n")
        decode(root / "a/6 damaged.jpg")
        os.write(2, b"after\ntool: Corrupt JPEG data in a.jpg\nWarning: unknown option\n")
        assert printed() > len("before\nafter\n")
        assert capfd.readouterr().err == ""
    assert capfd.readouterr().err == "before\nafter\ntool: Corrupt JPEG data in a.jpg\nWarning: unknown option\n"
    os.write(2, b"free\n")
    assert capfd.readouterr().err == "free\n"


def fail() -> None:
    os.write(2, b"said\n")
    raise OSError("said")


def test_f52_an_error_within_leaves_the_stream_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    descriptors = Path("/proc/self/fd")
    with quiet_libjpeg():
        pass  # what it keeps open for the next time
    before = len([*descriptors.iterdir()]) if descriptors.is_dir() else 0
    with pytest.raises(OSError, match="said"), quiet_libjpeg():
        fail()
    os.write(2, b"free\n")
    assert capfd.readouterr().err == "said\nfree\n"
    assert not before or len([*descriptors.iterdir()]) == before


def test_f52_threads_that_decode_at_once_leave_the_stream_as_it_was(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        for _ in range(20):
            decode(root / "a/6 damaged.jpg")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    capfd.readouterr()
    os.write(2, b"free\n")
    assert capfd.readouterr().err == "free\n"


def test_f52_without_an_error_stream_photos_are_decoded(root: Path) -> None:
    program = (
        "import os, sys\nos.close(2)\nfrom lit_guide.engine.photos.decode import decode\n"
        "from lit_guide.engine.photos.examine import examine\nfrom pathlib import Path\nroot = Path(sys.argv[1])\n"
        "print(tuple(decode(root / 'a/6 damaged.jpg').shape)[0], examine(root, ['a/0.jpg', 'a/6 damaged.jpg']).bad)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(root)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "3 {}\n")


@pytest.mark.parametrize("workers", [0, 2])
def test_f52_loading_prints_no_warning(root: Path, workers: int, capfd: pytest.CaptureFixture[str]) -> None:
    names = names_of(root)
    dataset = ImageDataset(root, names, torch.zeros(len(names), dtype=torch.int64), lambda image_CHW: image_CHW[:, :16, :16])
    batches = list(DataLoader(dataset, batch_size=5, num_workers=workers))
    assert sum(len(label_B) for _, label_B in batches) == 10
    assert capfd.readouterr().err == ""


def test_f52_exactly_the_damaged_files_are_marked(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    names = names_of(root) * 30  # so that good ones are decoded at the same time as damaged ones
    found = examine(root, names, look=lambda data, image_CHW: 0)
    marked = {name for name, signs in zip(names, found.seen_N["signs"].tolist(), strict=True) if signs & DAMAGED}
    assert marked == {"a/6 damaged.jpg", "b/7 damaged.jpg"}
    assert capfd.readouterr().err == ""


def test_f52_the_check_names_them(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = check(FolderData(root=str(root), image_size=32))
    assert {finding.kind: finding.items for finding in report.findings}["damaged"] == ["a/6 damaged.jpg", "b/7 damaged.jpg"]
    assert capfd.readouterr().err == ""


def test_f52_what_ends_early_is_told_once(root: Path) -> None:
    whole = (root / "a/0.jpg").read_bytes()
    (root / "a/half.jpg").write_bytes(whole[: len(whole) // 2])
    found = {finding.kind: finding.items for finding in check(FolderData(root=str(root), image_size=32)).findings}
    told = [kind for kind, items in found.items() if any("half.jpg" in item for item in items)]
    assert len(told) == 1, told
    assert told != ["damaged"]


def test_f52_an_error_stream_that_takes_nothing_is_no_reason_to_end(root: Path) -> None:
    """Full, or a pipe that nobody reads any more."""
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom lit_guide.engine.photos.decode import decode, quiet_libjpeg\n"
        "with quiet_libjpeg():\n    os.write(2, b'lost')\nprint(tuple(decode(Path(sys.argv[1])).shape)[0])"
    )
    command = [sys.executable, "-c", program, str(root / "a/6 damaged.jpg")]
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=closed, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "3\n")
    if Path("/dev/full").exists():
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "3\n")


def test_f52_other_files_that_something_is_printed_of_are_not_damaged(root: Path) -> None:
    Image.new("RGB", (40, 40), "red").save(root / "a/red.png")

    def look(data: np.ndarray, image_CHW: torch.Tensor) -> int:
        os.write(2, b"a word of another library\n")
        return 0

    found = examine(root, ["a/red.png"] * 3, look=look)
    assert found.seen_N["signs"].tolist() == [0, 0, 0]
