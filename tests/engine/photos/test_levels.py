"""Images of more than 8 bits: which value is white is given for the set, or by the format, or the file is refused."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lit_guide import Predictor
from lit_guide.cli import main
from lit_guide.engine.photos.decode import Reading, UnreadableImageError, decode, decode_bytes
from lit_guide.engine.run.checkpoint import read_checkpoint
from lit_guide.parts.cache.known import examine_once, fingerprint
from tests.conftest import Run
from tests.engine.photos.files import tiff

HU = np.array([[-1024, -1, 0, 1], [1000, 2047, 3071, 4096]], dtype=np.int16)  # Hounsfield units: air, water, bone
TWELVE = np.array([[0, 1, 15, 16], [100, 2048, 4000, 4095]], dtype=np.uint16)
REFUSED = r"^values from {} to {}, and nothing says which one is white; give data\.white_level for all images"


def read(content: bytes, white_level: int | None = None, mode: str = "L") -> np.ndarray:
    return decode_bytes(np.frombuffer(bytearray(content), np.uint8), mode, Reading(white_level)).permute(1, 2, 0).numpy()


def by_pillow(pixels: np.ndarray, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def scaled(pixels: np.ndarray, white_level: int) -> np.ndarray:
    """What `white_level` promises, in whole numbers."""
    clipped_HW1 = pixels.astype(np.int64).clip(0, white_level)[:, :, None]
    return (510 * clipped_HW1 + white_level) // (2 * white_level)


WRITTEN: dict[str, Callable[[np.ndarray], bytes]] = {
    "tiff": tiff,
    "tiff, big endian": lambda pixels: tiff(pixels, ">"),
    "tiff, lzw": lambda pixels: by_pillow(pixels, "TIFF", compression="tiff_lzw"),
    "png": lambda pixels: by_pillow(pixels, "PNG"),
    "jpeg 2000": lambda pixels: by_pillow(pixels, "JPEG2000"),
    "pgm": lambda pixels: f"P5\n{pixels.shape[1]} {pixels.shape[0]}\n65535\n".encode() + pixels.astype(">u2").tobytes(),
}


@pytest.mark.parametrize("white_level", [255, 300, 3000, 4095, 65_535, 100_000])
@pytest.mark.parametrize("way", WRITTEN)
def test_f51_values_up_to_the_white_level_become_0_to_255_in_every_format(way: str, white_level: int) -> None:
    pixels = np.concatenate([TWELVE, TWELVE + 20_000, 65_535 - TWELVE]).astype(np.uint16).repeat(6, axis=0)
    for mode in ("L", "RGB"):
        got = read(WRITTEN[way](pixels), white_level, mode)
        assert np.abs(got.astype(int) - scaled(pixels, white_level)).max() == 0


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_f51_negative_values_are_clipped_to_black_and_never_wrap(dtype: type, order: str) -> None:
    content = tiff(HU.astype(dtype), order)
    np.testing.assert_array_equal(read(content, 4095), scaled(HU, 4095))
    assert read(content, 4095)[0, :3].max() == 0  # air was 252 of 255
    with pytest.raises(UnreadableImageError, match=REFUSED.format("-1,024", "4,096")):
        read(content)


def test_f51_unsigned_numbers_of_32_bits_do_not_wrap() -> None:
    pixels = np.array([[0, 4095, 70_000, 2**31, 2**32 - 1]], dtype=np.uint32)
    assert read(tiff(pixels), 2**32 - 1).ravel().tolist() == [0, 0, 0, 128, 255]
    assert read(tiff(pixels), 4095).ravel().tolist() == [0, 255, 255, 255, 255]
    with pytest.raises(UnreadableImageError, match=REFUSED.format("0", "4,294,967,295")):
        read(tiff(pixels))


@pytest.mark.parametrize("bits", [9, 10, 12, 14])
@pytest.mark.parametrize("way", WRITTEN)
def test_f51_few_bits_of_signal_in_16_are_refused_not_made_black(way: str, bits: int) -> None:
    pixels = np.linspace(0, 2**bits - 1, 80).astype(np.uint16).reshape(8, 10)
    with pytest.raises(UnreadableImageError, match=REFUSED.format("0", f"{2**bits - 1:,}")):
        read(WRITTEN[way](pixels))
    assert read(WRITTEN[way](pixels), 2**bits - 1).max() == 255


def test_f51_without_a_white_level_16_bits_are_what_they_were() -> None:
    pixels = np.array([[0, 255, 256, 16_383], [16_384, 40_000, 65_279, 65_535]], dtype=np.uint16)
    for way in ("tiff", "png", "pgm"):
        np.testing.assert_array_equal(read(WRITTEN[way](pixels))[:, :, 0], pixels >> 8)
        assert read(WRITTEN[way](pixels[:1] * 0)).max() == 0  # black is black, whatever is white


def test_f51_what_a_format_says_is_white_needs_no_level_and_is_changed_by_none() -> None:
    pgm = b"P5\n4 2\n4095\n" + TWELVE.astype(">u2").tobytes()
    plain = b"P2\n3 1\n1023\n0 512 1023\n"
    for white_level in (None, 4095, 65_535):
        assert np.abs(read(pgm, white_level).astype(int) - scaled(TWELVE, 4095)).max() <= 1
        assert read(plain, white_level).ravel().tolist() in ([0, 127, 255], [0, 128, 255])
        np.testing.assert_array_equal(read(tiff(TWELVE, bits=12), white_level), scaled(TWELVE, 4095))


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("order", ["<", ">"])
def test_f51_colours_of_16_bits_are_read_where_their_upper_bits_hold_the_signal(channels: int, order: str) -> None:
    bright = np.random.default_rng(0).integers(0, 65_536, (5, 6, channels)).astype(np.uint16)
    for white_level in (None, 65_535):
        np.testing.assert_array_equal(read(tiff(bright, order), white_level, "RGB"), bright[:, :, :3] >> 8)
    dark = bright >> 4
    for white_level in (None, 4095):
        with pytest.raises(UnreadableImageError, match=r"^16 bits a colour.*: save it with 8 bits a channel$"):
            read(tiff(dark, order), white_level, "RGB")
    with pytest.raises(UnreadableImageError, match=r"^16 bits a colour"):
        read(tiff(bright, order), 4095, "RGB")


def test_f51_images_of_8_bits_are_the_same_with_any_white_level(photos: dict[str, tuple[Path, np.ndarray]]) -> None:
    path = photos["china.jpg"][0]
    assert torch.equal(decode(path, reading=Reading(4095)), decode(path))
    grey = np.arange(200, dtype=np.uint8).reshape(10, 20)
    for format in ("PNG", "TIFF", "BMP", "GIF"):
        np.testing.assert_array_equal(read(by_pillow(grey, format), 4095)[:, :, 0], grey)


# --- the set


TINY = ["--model.network", "cnn", "--data.image_size", "32", "--data.batch_size", "8", "--data.num_workers", "0"]
QUICK = ["--accelerator", "cpu", "--trainer.max_epochs", "1", "--export.onnx.enabled=false"]
QUICK += ["--export.torchscript.enabled=false", "--export.pt2.enabled=false"]
SET = ["--config", "configs/folder.yaml", "--data.root", "scans"]


def scans(root: Path) -> Path:
    """20 scans of 12 bits and 20 of CT values, in two classes."""
    for at in range(40):
        value_HW = np.random.default_rng(at).integers(0, 4096, (8, 8)).repeat(8, axis=0).repeat(8, axis=1)
        path = root / "scans" / ("bone", "air")[at % 2] / f"{at:02}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiff((value_HW - 1000).astype(np.int16) if at % 2 else value_HW.astype(np.uint16)))
    return root / "scans"


@pytest.fixture(scope="module")
def scan_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("scan_run")
    scans(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(["fit", *SET, "--data.white_level", "3000", *TINY, *QUICK, "--run_dir", "run"]) == 0
    return home / "run"


def test_f51_fit_stops_before_training_and_says_what_to_give(run: Run, tmp_path: Path) -> None:
    scans(tmp_path)
    outcome = run("fit", *SET, *TINY, *QUICK, "--run_dir", "run")
    assert outcome.code == 1
    assert "None of the 40 files is an image that can be used:" in outcome.err
    assert "give data.white_level for all images: 4095 for 12 bits, 65535 for 16" in outcome.err


def test_f51_data_check_says_the_range_with_and_without_a_level(run: Run, tmp_path: Path) -> None:
    scans(tmp_path)
    assert run("data", "check", *SET).code == 1
    ranges = {}
    for level in (None, 4095):
        run("data", "check", *SET, *(() if level is None else ("--data.white_level", level)))
        found = {one["kind"]: one for one in json.loads(Path("data_check.json").read_text())["findings"]}
        assert ("unreadable" in found) == (level is None)
        ranges[level] = found["range"]
    assert ranges[None]["items"] == ranges[4095]["items"]
    assert len(ranges[None]["items"]) == 40
    low, high = (f"{value:,}" for value in (scan_values(tmp_path).min(), scan_values(tmp_path).max()))
    assert ranges[4095]["what"] == f"more than 8 bits: values from {low} to {high} in all; 4,095 is white (data.white_level)"
    assert ranges[None]["what"] == f"more than 8 bits: values from {low} to {high} in all; 65,535 is white (data.white_level)"


def scan_values(root: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)).astype(int) for path in sorted((root / "scans").rglob("*.tif"))])


def test_f51_predict_reads_as_training_did(run: Run, scan_run: Path) -> None:
    """From the checkpoint, from the .safetensors, and by hand with the pixels clipped to 8 bits by numpy."""
    path = scan_run.parent / "scans/air/01.tif"
    assert read_checkpoint(scan_run / "checkpoints/best.ckpt")["white_level"] == 3000
    predictor = Predictor(scan_run)
    assert predictor.reading["white_level"] == 3000
    found = predictor(path)
    assert Predictor(scan_run / "checkpoints/best.safetensors")(path) == pytest.approx(found, abs=1e-6)
    plain = Path("plain.png").absolute()
    Image.fromarray(scaled(np.asarray(Image.open(path)), 3000)[:, :, 0].astype(np.uint8)).save(plain)
    assert predictor(plain) == pytest.approx(found, abs=1e-6)
    assert run("predict", "--run", scan_run, "--run_dir", "out", "--images", path).code == 0
    (row,) = json.loads(Path("out/predictions.json").read_text())
    assert row["probability"] == pytest.approx(max(found.values()), abs=1e-5)


def test_f51_the_test_split_is_read_with_the_runs_level(run: Run, scan_run: Path) -> None:
    before = json.loads((scan_run / "results.json").read_text())["test"]
    outcome = run("test", "--run", scan_run, "--run_dir", "again")
    assert outcome.code == 0, outcome.err
    assert json.loads(Path("again/results.json").read_text())["test"] == before


def test_f51_another_white_level_is_another_set(tmp_path: Path) -> None:
    """What was found with one level is not remembered for another: neither good files nor bad ones."""
    root, store = scans(tmp_path), tmp_path / "store"
    names = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*.tif"))]
    assert fingerprint(root, names) != fingerprint(root, names, 4095) != fingerprint(root, names, 65_535)
    for level, bad in ((4095, 0), (None, 40), (4095, 0), (None, 40)):
        assert len(examine_once(root, names, store, level).bad) == bad


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_f51_a_cache_keeps_what_was_scaled(run: Run, tmp_path: Path, cache: str) -> None:
    from lit_guide import FolderData

    root = scans(tmp_path)
    for level in (4095, 2000, 4095):
        data = FolderData(str(root), image_size=64, crop=1.0, cache=cache, cache_dir=str(tmp_path / "store"), white_level=level)
        source = data.source
        for row in (0, 25):
            expected = decode(root / data.listing.paths[row], reading=Reading(level))
            assert torch.equal(source.dataset[row][0], expected)
    shutil.rmtree(tmp_path / "store", ignore_errors=True)


def test_f51_deep_colours_one_after_the_other_are_refused(tmp_path: Path) -> None:
    pixels_HWC = np.full((4, 6, 3), 40_000, np.uint16)
    content = tiff(pixels_HWC, tags={284: (3, [2])})
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(UnreadableImageError, match="16 bits a colour"):
        decode(tmp_path / "a.tif")
