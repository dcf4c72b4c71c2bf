"""Pictures of a set: a training batch as the network gets it, the same images as they are, and images of each class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import default_collate

from lit_guide.engine.data.base import ImageDataModule
from lit_guide.engine.data.source import to_float
from lit_guide.engine.errors import printable
from lit_guide.engine.photos.crops import resize_shorter

COLUMNS = 6
DRAWN = 256  # pixels of the shorter side, of which the sheet shows some 180
LONGEST = 24  # characters of a file's name that fit under each other
MOST_CLASSES = 40  # bars that can still be read


def show(data: ImageDataModule, folder: Path, images: int = 24) -> list[Path]:
    """Write `batch.png`, `raw.png` and `classes.png` of so many images of a training batch; returns their paths."""
    order = data.train_dataloader().batch_sampler
    assert order is not None  # it has a batch size
    places = next(iter(order))[:images]
    rows, names = data.rows["train"][places].tolist(), data.sample_names("train")
    raw, raw_titles = [], []
    for row, place in zip(rows, places, strict=True):  # photos as a camera makes them: one at a time
        image_CHW, label = data.source.dataset[row]
        file = Path(names[place]).name[-LONGEST:]
        raw_titles.append(f"{file}\n{data.class_names[int(label)]}, {image_CHW.shape[2]} x {image_CHW.shape[1]}")
        raw.append(resize_shorter(image_CHW, DRAWN, enlarge=False) if image_CHW.dtype == torch.uint8 else image_CHW)
    samples = data.samples(training=True)
    image_BCHW, label_B = default_collate([samples[row] for row in rows])
    image_BCHW, label_B = data.to_model(image_BCHW, label_B, training=True)
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        folder / "batch.png": contact_sheet(list(image_BCHW), [_label(label, data.class_names) for label in label_B]),
        folder / "raw.png": contact_sheet(raw, raw_titles),
        folder / "classes.png": class_chart(data.class_names, {split: data.class_counts(split) for split in data.rows}),
    }
    for path, figure in figures.items():
        figure.savefig(path, dpi=100)
    return list(figures)


def contact_sheet(images: Sequence[Tensor], titles: Sequence[str]) -> Figure:
    """Images (C, H, W) in rows of six under their titles, uint8 or from 0 to 1; 1 channel is drawn grey, the first 3 as RGB."""
    down = -(-len(images) // COLUMNS)
    figure = Figure(figsize=(1.9 * COLUMNS, 2.2 * down), layout="constrained")
    for at, axes in enumerate(figure.subplots(down, COLUMNS, squeeze=False).flat):
        axes.set_axis_off()
        axes.set_anchor("N")  # titles of a row at one height
        if at < len(images):
            pixels_HWC = to_float(images[at]).permute(1, 2, 0).clamp(0, 1).cpu().numpy()
            axes.imshow(pixels_HWC[..., : 3 if len(images[at]) >= 3 else 1], cmap="gray", vmin=0, vmax=1)
            axes.set_title(printable(titles[at], keep="\n"), fontsize=8, parse_math=False)
    return figure


def class_chart(class_names: Sequence[str], counts: dict[str, Sequence[int]]) -> Figure:
    """Bars of images a class, the splits side by side; of many classes the largest and the smallest."""
    train_K = np.asarray(counts["train"])
    order = np.argsort(-train_K, kind="stable")
    if left_out := max(0, len(order) - MOST_CLASSES):
        order = np.concatenate([order[: MOST_CLASSES // 2], order[-MOST_CLASSES // 2 :]])
    height = 0.8 / len(counts)
    figure = Figure(figsize=(9, 1.5 + 0.32 * len(order)), layout="constrained")
    axes = figure.subplots()
    for number, (split, count_K) in enumerate(counts.items()):
        bars = axes.barh(np.arange(len(order)) + number * height, np.asarray(count_K)[order], height, label=split)
        axes.bar_label(bars, fontsize=6, padding=2)
    axes.set_yticks(np.arange(len(order)) + 0.4 - height / 2, [printable(class_names[k]) for k in order], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("images")
    axes.set_title(f"Images of each class ({left_out} in the middle left out)" if left_out else "Images of each class")
    figure.legend(loc="outside right upper")
    return figure


def _label(label: Tensor, names: Sequence[str]) -> str:
    """A class name; of a mixed image the two classes with their shares."""
    if label.ndim == 0:
        return names[int(label)]
    top = zip(*label.topk(min(2, len(label))), strict=True)
    return " + ".join(f"{names[int(k)]} {100 * share:.0f} %" for share, k in top if share > 0)
