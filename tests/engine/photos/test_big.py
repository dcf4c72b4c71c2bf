"""A JPEG that is far larger than needed is decoded smaller, and every path of the package sees the same pixels of it."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from lit_guide import FolderData, Predictor
from lit_guide.cli import main
from lit_guide.engine.photos.crops import EvalTransform, least_side
from lit_guide.engine.photos.decode import Reading, UnreadableImageError, decode, decode_bytes, scale_of
from lit_guide.engine.photos.examine import examine
from lit_guide.engine.run.checkpoint import read_checkpoint
from lit_guide.export.images import ImageFiles
from lit_guide.parts.cache.copies import in_memory, on_disk
from lit_guide.parts.inspect.check import check
from tests.conftest import Run

SHAPE = (3, 32, 32)
LEAST = 114  # of 32 pixels, an eighth of the area and a crop of 0.875
SMALL = ["--data.image_size", "32", "--data.batch_size", "8", "--data.num_workers", "0", "--model.network", "cnn"]
QUICK = ["--accelerator", "cpu", "--trainer.max_epochs", "1", "--export.onnx.enabled=false"]
QUICK += ["--export.torchscript.enabled=false", "--export.pt2.enabled=false"]
SET = ["--config", "configs/folder.yaml", "--data.root", "photos"]


@pytest.mark.parametrize(
    ("width", "height", "least", "scale"),
    [
        (4000, 3000, 792, 2),
        (4000, 3000, 750, 4),
        (3000, 4000, 751, 2),
        (4000, 3000, 375, 8),
        (4000, 3000, 376, 4),
        (1584, 1600, 792, 2),
        (1583, 1600, 792, 1),
        (99_999, 500, 792, 1),
        (64, 64, 2, 8),
        (4000, 3000, None, 1),
        (0, 0, 792, 1),
    ],
)
def test_the_shorter_side_is_never_below_what_is_needed(width: int, height: int, least: int | None, scale: int) -> None:
    assert scale_of(width, height, least) == scale


@pytest.mark.parametrize(
    ("size", "crop", "min_area", "least"),
    [(224, 0.875, 0.08, 792), (224, 0.875, 1.0, 448), (224, 0.1, 1.0, 2240), (32, 0.875, 0.08, 114), (1, 1.0, 0.001, 32)],
)
def test_what_is_needed_is_the_largest_of_three(size: int, crop: float, min_area: float, least: int) -> None:
    data = FolderData("nowhere", image_size=size, crop=crop, min_area=min_area)
    assert least_side(size, crop, min_area) == data.least_side == least


@pytest.fixture(name="jpegs")
def kinds_of_jpeg(photos) -> dict[str, bytes]:
    photo = Image.fromarray(photos["china.jpg"][1])
    exif = Image.Exif()
    made = {}
    for name, image, options in [
        ("plain", photo, {}),
        ("444", photo, {"subsampling": 0}),
        ("progressive", photo, {"progressive": True}),
        ("grey", photo.convert("L"), {}),
        ("cmyk", photo.convert("CMYK"), {}),
        ("restarts", photo, {"restart_marker_rows": 1}),
        ("odd sides", photo.crop((0, 0, 639, 425)), {}),
        *((f"turned {turn}", photo.crop((0, 0, 640, 424)), {"exif": turn}) for turn in range(2, 9)),
    ]:
        if "exif" in options:
            exif[0x0112] = options["exif"]
            options = {"exif": exif.tobytes()}
        file = io.BytesIO()
        image.save(file, "JPEG", quality=95, **options)
        made[name] = file.getvalue()
    return made


def as_bytes(content: bytes) -> np.ndarray:
    return np.frombuffer(bytearray(content), np.uint8)


def test_a_scaled_photo_is_the_mean_of_its_pixels_upright(jpegs) -> None:
    for name, content in jpegs.items():
        whole_CHW = decode_bytes(as_bytes(content))
        _, H, W = whole_CHW.shape
        for scale in (2, 4, 8):
            scaled_CHW = decode_bytes(as_bytes(content), reading=Reading(least_side=min(H, W) // scale))
            assert scaled_CHW.shape == (3, -(-H // scale), -(-W // scale)), name
            h, w = H // scale, W // scale
            blocks = whole_CHW[:, : h * scale, : w * scale].reshape(3, h, scale, w, scale).float().mean((2, 4))
            # Where colours are stored at half the size, libjpeg scales those less: edges differ, areas do not.
            assert (scaled_CHW[:, :h, :w].float() - blocks).abs().mean() < 3, (name, scale)
        assert torch.equal(decode_bytes(as_bytes(content), reading=Reading(least_side=min(H, W) // 2 + 1)), whole_CHW), name


def test_other_formats_keep_all_their_pixels(photos, tmp_path) -> None:
    for name in ("a.png", "a.webp", "a.tif", "a.gif", "a.bmp"):
        Image.fromarray(photos["china.jpg"][1]).save(tmp_path / name)
        assert torch.equal(decode(tmp_path / name, reading=Reading(least_side=2)), decode(tmp_path / name))


def test_f13_a_damaged_photo_is_refused_however_small_it_is_wanted(jpegs) -> None:
    for name in ("plain", "progressive", "grey", "turned 6", "restarts"):
        whole = jpegs[name]
        for end in (len(whole) // 3, len(whole) // 2, len(whole) - 2000, len(whole) - 300):
            reasons = set()
            for least in (None, 200, 100, 50):
                for brightness in (False, True):
                    with pytest.raises(UnreadableImageError) as caught:
                        decode_bytes(as_bytes(whole[:end]), reading=Reading(least_side=least), brightness=brightness)
                    reasons.add(re.sub(r"\d+", "N", str(caught.value)))
            assert reasons == {"broken: image file is truncated (N bytes not processed)"}, name


def test_what_check_tells_of_a_scaled_file_is_of_the_file(jpegs, tmp_path) -> None:
    names = []
    for name, content in jpegs.items():
        names.append(f"{name}.jpg")
        (tmp_path / names[-1]).write_bytes(content)
    every, some = (examine(tmp_path, names, reading=Reading(least_side=least)) for least in (None, 50))
    assert not every.bad | some.bad
    for field in ("width", "height", "mode", "length"):
        assert every.seen_N[field].tolist() == some.seen_N[field].tolist()
    apart = np.bitwise_count(every.seen_N["dhash"] ^ some.seen_N["dhash"])
    assert apart.max() <= 5  # what counts as nearly the same


@pytest.fixture(scope="module")
def big(photos, tmp_path_factory) -> Path:
    """24 real photos, many times larger than 32 pixels, and a PNG, in two classes; a run on them beside."""
    home = tmp_path_factory.mktemp("big")
    for at in range(24):
        pixels = photos[("china.jpg", "flower.jpg")[at % 2]][1]
        image = Image.fromarray(np.clip(pixels * (0.7 + at / 48), 0, 255).astype(np.uint8))
        path = home / "photos" / ("roof", "bloom")[at % 2] / f"{at:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 1 + at % 8
        image.save(path, quality=90, exif=exif.tobytes(), progressive=at % 3 == 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(["fit", *SET, *SMALL, *QUICK, "--run_dir", "run"]) == 0
    return home


def test_training_evaluation_caches_and_predict_see_the_same_pixels(big, tmp_path) -> None:
    data = FolderData(str(big / "photos"), image_size=32)
    listing = data.listing
    expected = [decode(listing.root / name, reading=Reading(least_side=LEAST)) for name in listing.paths]
    assert {tuple(sorted(image.shape[1:])) for image in expected} == {(214, 320)}
    dataset = data.source.dataset
    assert all(torch.equal(dataset[at][0], image) for at, image in enumerate(expected))
    cut = [EvalTransform(32, 0.875)(image) for image in expected]
    files = ImageFiles([listing.root / name for name in listing.paths], SHAPE, 0.875, None, LEAST)
    assert all(torch.equal((files[at][0] * 255).round().byte(), image) for at, image in enumerate(cut))
    evaluated = data.samples(training=False)
    assert all(torch.equal(evaluated[at][0], image) for at, image in enumerate(cut))
    drawn = data.samples(training=True)
    assert (drawn.reading.least_side, drawn.transform.min_area) == (LEAST, 0.08)
    for build in (in_memory, on_disk):
        _, copies = build(listing.root, listing.paths, 37, tmp_path, Reading(least_side=LEAST))
        # What evaluation makes of the copy is what it makes of the file: it scales to the size that the copy has.
        assert all(torch.equal(EvalTransform(32, 0.875)(copies[at]), image) for at, image in enumerate(cut))


def test_a_cache_of_all_pixels_is_not_one_of_scaled_photos(big, tmp_path) -> None:
    data = FolderData(str(big / "photos"), image_size=32)
    listing = data.listing
    _, whole = on_disk(listing.root, listing.paths, 37, tmp_path)
    _, scaled = on_disk(listing.root, listing.paths, 37, tmp_path, Reading(least_side=LEAST))
    assert whole[0].shape == scaled[0].shape
    assert not torch.equal(whole[0], scaled[0])
    assert torch.equal(on_disk(listing.root, listing.paths, 37, tmp_path)[1][0], whole[0])


def probabilities(path: Path) -> dict[str, list[float]]:
    rows = json.loads(path.read_text())
    return {Path(row["file"]).name: sorted(one["probability"] for one in row["top"]) for row in rows}


def test_predict_gives_a_file_what_the_test_split_gives_it(run: Run, big, monkeypatch) -> None:
    monkeypatch.chdir(big)
    assert run("predict", "--run", "run", "--run_dir", "split").code == 0
    split = probabilities(big / "split/predictions.json")
    assert len(split) == 4
    assert run("predict", "--run", "run", "--run_dir", "files", "--images", "photos").code == 0
    files = probabilities(big / "files/predictions.json")
    assert {name: files[name] for name in split} == split


def test_predict_reads_from_a_file_to_share_as_from_a_checkpoint(big) -> None:
    photo = big / "photos/roof/02.jpg"
    one, other = (Predictor(big / "run/checkpoints" / name) for name in ("best.ckpt", "best.safetensors"))
    assert one.reading == other.reading == {"crop": 0.875, "white_level": None, "least_side": 64}  # of the recipe
    assert one(photo) == pytest.approx(other(photo), abs=1e-6)


def test_a_run_from_before_is_tested_and_predicts_on_all_pixels(run: Run, big, monkeypatch) -> None:
    """As it was trained: its checkpoint does not have the key."""
    monkeypatch.chdir(big)
    checkpoint = torch.load("run/checkpoints/best.ckpt", weights_only=True)
    del checkpoint["least_side"]
    Path("old.ckpt").unlink(missing_ok=True)
    torch.save(checkpoint, "old.ckpt")
    assert read_checkpoint("old.ckpt")["least_side"] is None
    words = ["--ckpt_path", "old.ckpt", *SET, *SMALL]
    assert run("predict", *words, "--run_dir", "old_split").code == 0
    split = probabilities(big / "old_split/predictions.json")
    assert run("predict", "--ckpt_path", "old.ckpt", "--run_dir", "old_files", "--images", "photos").code == 0
    files = probabilities(big / "old_files/predictions.json")
    assert {name: files[name] for name in split} == split
    old = Predictor(big / "old.ckpt")
    for name in split:
        (path,) = big.glob(f"photos/*/{name}")
        whole_CHW = EvalTransform(32, 0.875)(decode(path)) / 255
        with torch.inference_mode():
            expected = old.model(whole_CHW[None]).softmax(dim=1)[0]
        assert sorted(expected.tolist()) == pytest.approx(split[name], abs=2e-6)


def test_a_photo_of_a_camera_is_not_called_small_or_cut(photos, tmp_path) -> None:
    """`data check` tells the file's own size."""
    huge = ImageOps.exif_transpose(Image.fromarray(photos["flower.jpg"][1])).resize((6200, 4000))
    for at, name in enumerate(("train/a", "train/b")):
        (tmp_path / name).mkdir(parents=True)
        huge.rotate(at).save(tmp_path / name / "1.jpg")
    report = check(FolderData(str(tmp_path), val_fraction=0, test_fraction=0))
    (found,) = [finding for finding in report.findings if finding.kind == "huge"]
    assert found.items == ["train/a/1.jpg: 6200 x 4000", "train/b/1.jpg: 6200 x 4000"]
