"""predict and Predictor: the model's own probabilities, for files of any size; what can't be read is told."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from lit_guide.data import DigitsData
from lit_guide.model import load_classifier
from lit_guide.predict import Predictor

from .conftest import read_csv, results_of


def test_files_get_the_models_probabilities_and_the_others_are_listed(run, trained):
    Path("album").mkdir()
    Path("album/notes.png").write_text("no image")
    Image.new("RGB", (40, 56), (128, 128, 128)).save("album/grey.bmp")  # in colour, and of another size
    digit_CHW = DigitsData().source.dataset.images[0]
    Image.fromarray(digit_CHW[0]).save("album/digit.png")
    image_BCHW = torch.stack([torch.from_numpy(digit_CHW) / 255, torch.full((1, 8, 8), 128 / 255)])
    expected_BK = load_classifier(trained / "checkpoints/best.ckpt")(image_BCHW).softmax(dim=1).tolist()
    code, _, err = run("predict", "--run", trained, "--images", "album", "gone.png", "--run_dir", "out")
    assert (code, "notes.png: not an image" in err, "gone.png: no such file" in err) == (1, True, True)
    rows, classify = json.loads(Path("out/predictions.json").read_text(encoding="utf-8")), Predictor(trained)
    assert [Path(row["file"]).name for row in rows] == ["digit.png", "grey.bmp"]
    for row, expected_K in zip(rows, expected_BK, strict=True):
        found = classify(row["file"])
        assert found == pytest.approx({str(k): p for k, p in enumerate(expected_K)}, abs=1e-5)
        assert list(found.values()) == sorted(found.values(), reverse=True)
        top = {entry["class"]: entry["probability"] for entry in row["top"]}
        assert top == pytest.approx(dict(list(found.items())[:3]), abs=1e-5)


def test_without_images_the_test_split_is_predicted(run, trained):
    assert run("predict", "--run", trained, "--run_dir", "out")[0] == 0
    rows, data = read_csv(Path("out/predictions.csv")), DigitsData()
    assert [int(row["label"]) for row in rows] == data.source.labels_N[data.rows["test"]].tolist()
    right = sum(row["class"] == row["label"] for row in rows)
    assert right / len(rows) == pytest.approx(results_of(trained)["test"]["accuracy"], abs=1e-6)
