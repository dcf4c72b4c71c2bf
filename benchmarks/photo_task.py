"""`lit-guide fit --config configs/folder.yaml` learns to tell parts of real photos apart, whatever the seed, in three minutes.

The task: patches of 48 pixels from scikit-learn's two photos, in five classes (sky, pavilion, trees, petals, leaves). Each
class is a rectangle of a photo; its training, validation and test patches come from three parts of that rectangle which share
no pixel. 500 JPEGs to train on, 100 to choose the epoch by, 100 to test on; patches of one part overlap, but no two are equal.

Claim: test accuracy >= 0.95 for each of three seeds (n = 3), each in < 180 s on 2 cores with the exports. Only the size of the
images is given by a flag, since the patches are small: `--data.image_size 64`. The network starts from random weights.

    python benchmarks/photo_task.py [--quick]
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import record
from digits_accuracy import CORES, train
from PIL import Image
from sklearn.datasets import load_sample_images

PATCH = 48
# class -> photo (0 is china.jpg, 1 is flower.jpg), and the rectangle's left, top, right, bottom in pixels.
REGIONS = {
    "sky": (0, (330, 0, 640, 120)),
    "pavilion": (0, (100, 70, 310, 330)),
    "trees": (0, (330, 330, 570, 427)),
    "petals": (1, (190, 130, 430, 320)),
    "leaves": (1, (0, 60, 170, 330)),
}
# split -> its share of the longer side, and patches of each class.
SPLITS = {"train": (0.0, 0.5, 100), "val": (0.5, 0.75, 20), "test": (0.75, 1.0, 20)}
SEEDS = 3
ACCURACY, SECONDS = 0.95, 180.0


def make_patches(root: Path) -> Path:
    """Write `root/{train,val,test}/<class>/*.jpg`."""
    rng = np.random.default_rng(0)
    photos = load_sample_images().images
    for name, (photo, (left, top, right, bottom)) in REGIONS.items():
        wide = right - left >= bottom - top
        for split, (start, end, count) in SPLITS.items():
            box = [left, top, right, bottom]
            first, length = (left, right - left) if wide else (top, bottom - top)
            box[0 if wide else 1], box[2 if wide else 3] = round(first + start * length), round(first + end * length)
            folder = root / split / name
            folder.mkdir(parents=True)
            columns, rows = box[2] - box[0] - PATCH + 1, box[3] - box[1] - PATCH + 1
            for number, place in enumerate(rng.choice(columns * rows, count, replace=False)):
                x, y = box[0] + place % columns, box[1] + place // columns
                Image.fromarray(photos[photo][y : y + PATCH, x : x + PATCH]).save(folder / f"{number:02}.jpg", quality=92)
    return root


def main() -> int:
    given = record.arguments(__doc__).parse_args()
    quick = given.quick
    record.keep_to(CORES)
    with tempfile.TemporaryDirectory() as folder:
        root = make_patches(Path(folder) / "patches")
        options = ["--data.root", str(root), "--data.image_size", "64", *(["--trainer.max_epochs", "2"] if quick else [])]
        repetitions, wait = (1, None) if quick else (SEEDS, given.wait)
        runs = record.repeat(repetitions, lambda seed: train("folder.yaml", seed, options), wait)
    counted = record.undisturbed(runs)
    middle = record.medians(runs)
    print(f"medians: {middle}")
    lowest, longest = min(run["test_accuracy"] for run in counted), max(run["seconds"] for run in counted)
    claims = [
        record.claim(
            f"lowest test accuracy of {SEEDS} seeds on patches of photos", lowest, ACCURACY, len(counted), at_most=False
        ),
        record.claim(f"longest of {SEEDS} runs on patches of photos, in seconds", longest, SECONDS, len(counted)),
    ]
    return record.finish("photo_task", claims, runs, middle, {"config": "configs/folder.yaml", "image_size": 64}, quick)


if __name__ == "__main__":
    sys.exit(main())
