"""Folders of JPEGs for the benchmarks, cut from the two photos that scikit-learn carries; nothing is downloaded."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

WIDTH, HEIGHT = 500, 375
BIG = 4000, 3000


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


def make_big_folder(root: Path, count: int, classes: int = 4, quality: int = 92) -> Path:
    """Write `count` different JPEGs of 4000 x 3000 pixels, as a phone makes them: the photos enlarged, with a sensor's noise.

    The noise is that of a sensor whose colours were filled in: neighbours share it. With quality 92 a file has 2.9 to 3.7 MB,
    with 80 it has 1.8 to 2.3.
    """
    rng = np.random.default_rng(0)
    width, height = BIG
    large = [Image.fromarray(photo).resize(BIG, Image.Resampling.BICUBIC) for photo in load_sample_images().images]
    photos = [np.asarray(photo, dtype=np.float32) for photo in large]
    for number in range(count):
        folder = root / f"class{number % classes}"
        folder.mkdir(parents=True, exist_ok=True)
        noise = rng.normal(0, rng.uniform(8, 12), (height // 2, width // 2)).astype(np.float32)
        noise_HW = np.asarray(Image.fromarray(noise).resize(BIG, Image.Resampling.BICUBIC))
        pixels = np.clip(photos[number % 2][:, :: rng.choice([-1, 1])] + noise_HW[:, :, None], 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:06}.jpg", quality=quality)
    return root
