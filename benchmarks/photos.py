"""Folders of JPEGs for the benchmarks, cut from the two photos that scikit-learn carries; nothing is downloaded."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

WIDTH, HEIGHT = 500, 375


def make_folder(root: Path, count: int, classes: int = 10) -> Path:
    """Write `count` different JPEGs of 500 x 375 pixels, quality 85, into class folders.

    Args:
        root: the folder, made here.
        count: how many files.
        classes: how many folders they are dealt out to.
    """
    rng = np.random.default_rng(0)
    photos: list[NDArray[np.uint8]] = load_sample_images().images
    for number in range(count):
        folder = root / f"class{number % classes}"
        folder.mkdir(parents=True, exist_ok=True)
        photo = photos[number % 2]
        top, left = rng.integers(0, photo.shape[0] - HEIGHT), rng.integers(0, photo.shape[1] - WIDTH)
        part = photo[top : top + HEIGHT, left : left + WIDTH][:, :: rng.choice([-1, 1])]
        # Another brightness for every file: no two are equal, and all take as long to decode as the photo does.
        part = np.clip(part * rng.uniform(0.7, 1.2, (1, 1, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(part).save(folder / f"{number:06}.jpg", quality=85)
    return root
