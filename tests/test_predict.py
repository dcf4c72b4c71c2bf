import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as TF

from lit_guide import FolderData
from lit_guide.engine.data.source import to_float
from lit_guide.engine.errors import ConfigError, UserError
from lit_guide.engine.photos import decode as decode_module
from lit_guide.engine.photos.crops import EvalTransform
from lit_guide.engine.photos.decode import decode
from lit_guide.engine.photos.listing import find_images
from lit_guide.export.images import UNKNOWN, UNREADABLE, ImageFiles
from lit_guide.export.predictions import gathered
from lit_guide.predict import Predictor


@pytest.fixture(name="rgb_HWC")
def small_picture():
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def saved(tmp_path, image, name="image.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def as_array(image_CHW):
    assert image_CHW.dtype == torch.float32
    return (image_CHW * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


# --- ImageFiles


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_images_are_squeezed_to_the_models_shape(photos, channels, mode):
    path, _ = photos["flower.jpg"]
    image_CHW, label = ImageFiles([path], (channels, 24, 40))[0]
    assert image_CHW.shape == (channels, 24, 40)
    assert label == UNKNOWN
    assert torch.equal(image_CHW, to_float(TF.resize(decode(path, mode), [24, 40], antialias=True)))
    # The whole picture is there: each quarter has the mean of the same quarter of the photo.
    for small, large in zip((image_CHW * 255).chunk(2, 1), decode(path, mode).float().chunk(2, 1), strict=True):
        for part, whole in zip(small.chunk(2, 2), large.chunk(2, 2), strict=True):
            torch.testing.assert_close(part.mean((1, 2)), whole.mean((1, 2)), atol=2.0, rtol=0)


def test_an_image_of_the_models_size_is_not_changed(tmp_path, rgb_HWC):
    path = saved(tmp_path, Image.fromarray(rgb_HWC))
    np.testing.assert_array_equal(as_array(ImageFiles([path], (3, 5, 7))[0][0]), rgb_HWC)


def test_for_a_model_of_photos_the_centre_is_cut_out_as_in_its_evaluation(photos):
    path, _ = photos["china.jpg"]
    image_CHW, label = ImageFiles([path], (3, 64, 64), crop=0.8)[0]
    assert label == UNKNOWN
    assert torch.equal(image_CHW, to_float(EvalTransform(64, 0.8)(decode(path))))


@pytest.mark.parametrize("damage", ["text", "empty", "truncated", "folder", "gone"])
def test_an_unreadable_file_is_marked_and_the_others_stay_right(tmp_path, photos, damage):
    good = [photos[name][0] for name in ("china.jpg", "flower.jpg")]
    bad = tmp_path / "bad.jpg"
    if damage == "folder":
        bad.mkdir()
    elif damage != "gone":
        content = {"text": b"no image", "empty": b"", "truncated": good[0].read_bytes()[:40000]}
        bad.write_bytes(content[damage])
    dataset = ImageFiles([good[0], bad, good[1]], (3, 8, 8))
    image_BCHW, label_B = next(iter(DataLoader(dataset, batch_size=3)))
    assert label_B.tolist() == [UNKNOWN, UNREADABLE, UNKNOWN]
    assert (image_BCHW[1] == 0).all()
    alone = ImageFiles(good, (3, 8, 8))
    assert torch.equal(image_BCHW[0], alone[0][0])
    assert torch.equal(image_BCHW[2], alone[1][0])


def test_an_image_too_large_to_be_honest_is_unreadable(tmp_path, monkeypatch, rgb_HWC):
    path = saved(tmp_path, Image.fromarray(rgb_HWC))  # 35 pixels
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 35)
    assert ImageFiles([path], (3, 8, 8))[0][1] == UNKNOWN
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 34)
    assert ImageFiles([path], (3, 8, 8))[0][1] == UNREADABLE


def test_channels_that_no_image_file_has_are_refused():
    with pytest.raises(ConfigError, match=r"takes 2 channels; image files can give 1, 3 or 4"):
        ImageFiles([], (2, 8, 8))


# --- the command


def album_of(tmp_path, rgb_HWC):
    folder = tmp_path / "album"
    (folder / "none").mkdir(parents=True)
    return saved(folder, Image.fromarray(rgb_HWC), "z.png").parent


def test_nothing_to_predict_is_an_error_of_the_command_with_every_reason(run, trained, tmp_path, rgb_HWC):
    album = album_of(tmp_path, rgb_HWC)
    outcome = run("predict", "--run", trained, "--run_dir", "out", "--images", album / "gone.png", album / "none")
    assert outcome.code == 2
    assert f"--images: {album / 'gone.png'}: no such file or folder; {album / 'none'}: no image" in outcome.err


@pytest.fixture
def mixed(tmp_path, rgb_HWC):
    """A folder as phones, network drives and people leave them."""
    folder = tmp_path / "mixed"
    good = Image.fromarray(rgb_HWC)
    for name in ("b.png", "deep/c.JPG", "deep/@eaDir/c.JPG/SYNOPHOTO_THUMB_M.jpg", ".hidden/x.png", "__MACOSX/y.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        saved(folder, good, name)
    saved(folder, good, "a", format="PNG")  # without an ending
    saved(folder, good, "wrong.txt", format="BMP")
    saved(folder, good, "._b.png")
    saved(tmp_path, good, "elsewhere.png")
    (folder / "Thumbs.db").write_bytes(b"system")
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(90))
    (folder / "deep/notes.md").write_text("taken in the garden, before noon")
    (folder / "cut.png").write_bytes((folder / "b.png").read_bytes()[:60])
    (folder / "link.png").symlink_to(tmp_path / "elsewhere.png")
    (folder / "broken link.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "other").mkdir()
    saved(tmp_path / "other", good, "d.png")
    (folder / "linked folder").symlink_to(tmp_path / "other")
    (folder / "deep/round").symlink_to(folder)
    return folder


GOOD = ["a", "b.png", "link.png", "wrong.txt", "deep/c.JPG", "linked folder/d.png"]
BAD = {
    "phone.heic": "HEIC, which needs pi-heif, or broken: pip install pi-heif, or save it as JPEG",
    "deep/notes.md": "not an image, but text",
    "cut.png": "broken: ",
    "broken link.png": "no such file or directory",
}


def test_f47_a_folder_gives_what_fit_would_take_and_names_the_rest_with_the_reason(run, trained, mixed):
    outcome = run("predict", "--run", trained, "--run_dir", "out", "--images", mixed)
    assert outcome.code == 1
    rows = json.loads(Path("out/predictions.json").read_text())
    assert [row["file"] for row in rows] == [str(mixed / name) for name in GOOD]
    assert f"{len(GOOD)} images were predicted, {len(BAD)} were not:\n" in outcome.err
    for name, reason in BAD.items():
        assert f"  {mixed / name}: {reason}" in outcome.err
    for name in ("eaDir", ".hidden", "MACOSX", "._b", "Thumbs", "round"):
        assert name not in outcome.err


def test_f47_fit_takes_the_same_files(tmp_path, mixed):
    data = FolderData(str(tmp_path / "set"))
    (tmp_path / "set").mkdir()
    for name in ("cat", "dog"):
        shutil.copytree(mixed, tmp_path / "set" / name, symlinks=True)
    files, missing = find_images([str(tmp_path / "set" / name) for name in ("cat", "dog")])
    assert [str(tmp_path / "set" / name) for name in data.listing.paths] == [str(path) for path in files]
    assert not missing


def test_f47_loader_processes_give_the_same_reasons(run, trained, mixed, monkeypatch):
    alone = run("predict", "--run", trained, "--run_dir", "alone", "--images", mixed)
    monkeypatch.setattr("lit_guide.predict.WORTH_WORKERS", 1)
    assert run("predict", "--run", trained, "--run_dir", "workers", "--images", mixed).err == alone.err
    assert Path("alone/predictions.csv").read_text() == Path("workers/predictions.csv").read_text()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
def test_f47_a_pipe_is_named_and_not_waited_for(run, trained, mixed):
    os.mkfifo(mixed / "pipe")
    for given in (mixed, mixed / "pipe"):
        outcome = run("predict", "--run", trained, "--run_dir", "out", "--images", given)
        assert (outcome.code, f"{mixed / 'pipe'}: not a file" in outcome.err) == (1, True)


def test_f47_a_hidden_file_or_folder_that_is_named_is_read(run, trained, mixed):
    outcome = run("predict", "--run", trained, "--run_dir", "out", "--images", mixed / "._b.png", mixed / ".hidden")
    assert outcome.code == 0, outcome.err
    rows = json.loads(Path("out/predictions.json").read_text())
    assert [row["file"] for row in rows] == [str(mixed / "._b.png"), str(mixed / ".hidden/x.png")]


def test_what_is_missing_is_told_beside_what_is_there(run, trained, tmp_path, rgb_HWC):
    album = album_of(tmp_path, rgb_HWC)
    outcome = run("predict", "--run", trained, "--run_dir", "out", "--images", album / "gone.png", album / "z.png")
    assert outcome.code == 1
    assert f"1 images were predicted, 1 were not:\n  {album / 'gone.png'}: no such file or folder" in outcome.err
    assert Path("out/predictions.csv").read_text().splitlines()[1].startswith(str(album / "z.png"))


def test_loader_processes_give_the_same_predictions(run, trained, photos, monkeypatch):
    files = [path for path, _ in photos.values()]
    assert run("predict", "--run", trained, "--run_dir", "alone", "--images", *files).code == 0
    monkeypatch.setattr("lit_guide.predict.WORTH_WORKERS", 1)
    assert run("predict", "--run", trained, "--run_dir", "workers", "--images", *files).code == 0
    assert Path("alone/predictions.csv").read_text() == Path("workers/predictions.csv").read_text()


def test_shares_of_two_processes_are_put_in_order(monkeypatch):
    """Also where one of them has one image less, or none."""
    for N in (5, 1, 0):
        probability_NK, label_N = torch.rand(N, 3), torch.arange(N)
        shares = [(probability_NK[rank::2], label_N[rank::2]) for rank in range(2)]
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
        monkeypatch.setattr(torch.distributed, "all_gather_object", lambda target, own, s=shares: target.__setitem__(slice(2), s))
        found_NK, found_N = gathered([shares[0]], 3)
        assert torch.equal(found_NK, probability_NK)
        assert torch.equal(found_N, label_N)


# --- from Python


def test_predictor_gives_what_the_command_gives(run, trained, photos):
    path = photos["china.jpg"][0]
    assert run("predict", "--run", trained, "--run_dir", "out", "--images", path).code == 0
    (row,) = json.loads(Path("out/predictions.json").read_text())
    found = Predictor(trained)(path)
    assert len(found) == 10
    assert sum(found.values()) == pytest.approx(1, abs=1e-5)
    assert list(found)[:3] == [top["class"] for top in row["top"]]
    assert [round(p, 5) for p in list(found.values())[:3]] == pytest.approx([top["probability"] for top in row["top"]], abs=2e-5)
    assert Predictor(trained / "checkpoints" / "best.safetensors")(path) == found


def test_predictor_says_why_a_file_can_not_be_read(trained, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match=r"notes\.txt: not an image"):
        Predictor(trained)(tmp_path / "notes.txt")
