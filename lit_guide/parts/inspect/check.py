"""What is wrong with a set of images, found before it costs a night: the report of `data check`."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table
from rich.text import Text
from torch import Tensor

from lit_guide.data import LOOKS
from lit_guide.engine.data.base import ImageDataModule
from lit_guide.engine.data.source import Source, to_float
from lit_guide.engine.errors import ConfigError, UserError, printable
from lit_guide.engine.machine import usable_cores
from lit_guide.engine.photos.dataset import Listing
from lit_guide.engine.photos.decode import deep, opened, read_bytes
from lit_guide.engine.photos.examine import SEEN, Examined, difference_hash
from lit_guide.engine.photos.module import PhotoData
from lit_guide.engine.tables import gone, load
from lit_guide.parts.inspect.near import near_duplicates

HUGE = 24_000_000  # pixels: decoding one takes as long as decoding a hundred of 500 x 375
ENLARGED = 4  # a photo smaller than the network's input by more than this factor shows little
FEW = 4  # training images of a class, under which it can hardly be learned
UNEVEN = 10  # times as many images in one class as in another, from which on it is worth a word
CLASSES_SHOWN, ITEMS_SHOWN, LONGEST = 20, 5, 300  # classes, items of a finding, and characters of an item on the screen
Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found. What is `wrong` makes training or its scores worthless, the rest is worth a look."""

    kind: str
    wrong: bool
    what: str
    items: list[str] = field(default_factory=list)  # the files or rows


@dataclass(frozen=True)
class Report:
    """All that `check` found, the worst first."""

    images: int = 0  # bad ones included
    class_names: list[str] = field(default_factory=list)
    splits: dict[str, list[int]] = field(default_factory=dict)  # split name -> images of each of the K classes that can be used
    findings: list[Finding] = field(default_factory=list)
    bad_files: list[str] = field(default_factory=list)  # paths of the files that can't be decoded

    @property
    def wrong(self) -> list[Finding]:
        """What must be mended."""
        return [finding for finding in self.findings if finding.wrong]

    def as_dict(self) -> dict[str, Any]:
        """What data_check.json holds."""
        splits = {name: dict(zip(self.class_names, counts, strict=True)) for name, counts in self.splits.items()}
        return {"ok": not self.wrong, "images": self.images, "splits": splits, "findings": [asdict(f) for f in self.findings]}


def check(data: ImageDataModule, near_bits: int = 5) -> Report:
    """Decode every image and look for what is wrong; the 64-bit hashes of near duplicates differ in `near_bits` at most.

    Raises:
        ConfigError: there is no such source.
    """
    try:
        return _check(data, near_bits)
    except ConfigError:
        raise
    except UserError as error:
        return Report(findings=[Finding("unusable", True, str(error))])


def print_report(report: Report) -> None:
    """The table of classes and the table of findings, on the screen."""
    console = Console(markup=False, emoji=False)
    if report.splits:
        totals = [Column(name, f"{sum(counts):,}", justify="right") for name, counts in report.splits.items()]
        table = Table(Column("class", "all", overflow="fold"), *totals, title="Images", title_justify="left", show_footer=True)
        for k, name in enumerate(report.class_names[:CLASSES_SHOWN]):
            table.add_row(printable(name, encoding=console.encoding), *(f"{counts[k]:,}" for counts in report.splits.values()))
        if len(report.class_names) > CLASSES_SHOWN:
            table.add_row(f"... {len(report.class_names) - CLASSES_SHOWN} more classes")
        console.print(table)
    if report.findings:
        columns = [Column(heading, overflow="fold") for heading in ("", "what", "count", "such as")]
        columns[2].justify = "right"
        table = Table(*columns, title="Findings", title_justify="left", show_lines=True)
        for finding in report.findings:
            mark = Text("wrong", "red") if finding.wrong else Text("look", "yellow")
            items = [printable(item, encoding=console.encoding) for item in finding.items[:ITEMS_SHOWN]]
            such_as = "\n".join(item if len(item) <= LONGEST else f"{item[:LONGEST]} ..." for item in items)
            what = printable(finding.what, keep="\n", encoding=console.encoding)
            table.add_row(mark, what, f"{len(finding.items):,}" if finding.items else "", such_as)
        console.print(table)


def _check(data: ImageDataModule, near_bits: int) -> Report:
    others, bad_files = list[Finding](), list[str]()
    if isinstance(data, PhotoData) and data.on_disk:
        listing = data.listing
        source: Listing | Source = listing
        names = listing.paths
        examined = data.examined(anew=True, look=(looks := load(LOOKS)).get("signs"))
        rows: Mapping[str, Int64] = data.divide(examined.bad, examined.duplicates)
        empty = [name for name, share in data.fractions.items() if share > 0 and not len(rows[name])]
        advice = "got no image: add some, or change its fraction"
        others = [Finding("empty_split", name != "val", f"the {name} split {advice}") for name in empty]
        others += [Finding(*one) for one in looks["told"](names, examined.seen_N["signs"])] if looks else []
        others += _about_range(listing, examined, data.white_level)
        others += [*_about_sizes(names, examined.seen_N, data), *(Finding("listing", False, note) for note in listing.notes)]
        bad_files = [str(listing.root / names[index]) for index in examined.bad]
    else:
        source, rows = data.source, data.rows
        names, examined = [f"row {row}" for row in range(len(source.labels_N))], _examine_samples(source)
    labels_N, K = source.labels_N, len(source.class_names)
    in_range_N = (labels_N >= 0) & (labels_N < K)
    splits = {name: np.bincount(labels_N[r][in_range_N[r]], minlength=K).tolist() for name, r in rows.items()}
    images = _about_images(names, labels_N, rows, examined, near_bits, given=source.rows is not None)
    findings = sorted([*images, *others, *_about_classes(splits, source.class_names)], key=lambda finding: not finding.wrong)
    return Report(len(names), source.class_names, splits, findings, bad_files)


def _found(kind: str, wrong: bool, what: str, items: list[str]) -> list[Finding]:
    return [Finding(kind, wrong, what, items)] if items else []


def _about_images(
    names: Sequence[str], labels_N: Int64, rows: Mapping[str, Int64], examined: Examined, near_bits: int, given: bool
) -> Iterator[Finding]:
    """Bad images, and images that are there more than once; `given`: whether the set came with its splits."""
    yield from _found("unreadable", True, "can't be used", [f"{names[at]}: {reason}" for at, reason in examined.bad.items()])
    split_N = np.full(len(names), "", dtype="U5")
    for name, indices in rows.items():
        split_N[indices] = name
    equal = {index: number for number, group in enumerate(examined.duplicates) for index in group}
    near = [g for g in near_duplicates(examined.seen_N["dhash"], near_bits) if len({equal.get(at, -1 - at) for at in g}) > 1]
    mend = "" if given else "; data.group_pattern keeps such images together"
    for groups, kind, sign, words in (
        (examined.duplicates, "equal", " = ", "the same image"),
        (near, "near", " ~ ", "nearly the same image"),
    ):
        told = [(sign.join(f"{split_N[index]} {names[index]}".strip() for index in group), group) for group in groups]
        across = [item for item, group in told if len(set(split_N[group])) > 1]
        unsure = [item for item, group in told if len(set(labels_N[group])) > 1]
        within = [item for item, group in told if len(set(split_N[group])) == len(set(labels_N[group])) == 1]
        leak = f"{words} in more than one split (a leak): scores on it mean nothing{mend}"
        yield from _found(f"{kind}_across_splits", kind == "equal" or given, leak, across)
        yield from _found(f"{kind}_classes", kind == "equal", f"{words} in more than one class", unsure)
        yield from _found(f"{kind}_within_split", False, f"{words} more than once in a split", within)


def _about_sizes(names: Sequence[str], seen_N: NDArray[Any], data: PhotoData) -> Iterator[Finding]:
    width_N, height_N = (seen_N[side].astype(np.int64) for side in ("width", "height"))
    good_N = width_N > 0
    tiny_N, huge_N = good_N & (np.minimum(width_N, height_N) * ENLARGED < data.size), width_N * height_N > HUGE
    for kind, chosen_N, what in (
        ("tiny", tiny_N, f"enlarged more than {ENLARGED} times to {data.size} px"),
        ("huge", huge_N, "slow to decode: scale them down" + ("" if gone(data.caches) else ", or use data.cache disk")),
    ):
        sizes = [f"{names[index]}: {width_N[index]} x {height_N[index]}" for index in np.flatnonzero(chosen_N).tolist()]
        yield from _found(kind, False, what, sizes)
    modes = [f"{names[at]}: {seen_N['mode'][at]}" for at in np.flatnonzero(good_N & (seen_N["mode"] != "RGB")).tolist()]
    yield from _found("mode", False, "not plain RGB; converted", modes)


def _about_range(listing: Listing, examined: Examined, white_level: int | None) -> list[Finding]:
    """What `white_level` should be: the values of all images that it is for, those that were refused without it included."""
    deep = {*np.flatnonzero(np.char.startswith(examined.seen_N["mode"], "I")).tolist(), *examined.bad}
    with ThreadPoolExecutor(usable_cores()) as pool:
        ranges = pool.map(lambda at: _range(listing.root / listing.paths[at]), sorted(deep))
        found = [(at, *low_high) for at, low_high in zip(sorted(deep), ranges, strict=True) if low_high]
    if not found:
        return []
    low, high = min(low for _, low, _ in found), max(high for _, _, high in found)
    told = f"more than 8 bits: values from {low:,} to {high:,} in all; {white_level or 65_535:,} is white (data.white_level)"
    return _found("range", False, told, [f"{listing.paths[at]}: {low:,} to {high:,}" for at, low, high in found])


def _range(path: Path) -> tuple[int, int] | None:
    with suppress(Exception):  # what can't be read is among the bad files
        image, stored = opened(read_bytes(path))
        value_HW, stated = deep(image, stored)
        return (int(value_HW.min()), int(value_HW.max())) if image.mode.startswith("I") and not stated else None
    return None


def _about_classes(splits: Mapping[str, Sequence[int]], class_names: Sequence[str]) -> Iterator[Finding]:
    if len(class_names) < 2:
        yield Finding("one_class", True, "a classifier needs at least two classes; there is", list(class_names))
    for split, count_K in splits.items():
        lacking = [name for name, count in zip(class_names, count_K, strict=True) if not count]
        if lacking and (sum(count_K) or split == "train"):
            yield Finding("absent", split == "train", f"classes without an image in {split}", lacking)
    few = [f"{name}: {count}" for name, count in zip(class_names, splits.get("train", []), strict=False) if 0 < count < FEW]
    yield from _found("few", False, f"classes with fewer than {FEW} training images", few)
    train_K = [count for count in splits.get("train", []) if count]
    if train_K and max(train_K) >= UNEVEN * min(train_K):
        what = f"{max(train_K)} training images in one class, {min(train_K)} in another: see data.sampler and model.class_weights"
        yield Finding("uneven", False, what)


def _examine_samples(source: Source) -> Examined:
    """As `examine` does for files, for the samples of any source."""
    N = len(source.labels_N)
    found = Examined({}, [], np.zeros(N, SEEN))
    equal: dict[bytes, list[int]] = {}
    for index in track(range(N), "Checking images", console=Console(stderr=True), transient=True, disable=N < 10_000):
        try:
            image_CHW, label = source.dataset[index]
            problem = _sample_problem(image_CHW, int(label), int(source.labels_N[index]), len(source.class_names))
        except Exception as error:  # a user's own dataset raises what it likes
            problem = f"{type(error).__name__}: {error}"
        if problem is not None:
            found.bad[index] = problem
            continue
        content = image_CHW.contiguous().numpy()
        equal.setdefault(hashlib.sha256(f"{content.shape}".encode() + content.tobytes()).digest(), []).append(index)
        if min(image_CHW.shape[1:]) >= 32:  # on less, many different drawings hash alike
            found.seen_N["dhash"][index] = difference_hash((to_float(image_CHW) * 255).to(torch.uint8))
    found.duplicates.extend(group for group in equal.values() if len(group) > 1)
    return found


def _sample_problem(image_CHW: Tensor, label: int, listed: int, classes: int) -> str | None:
    if image_CHW.ndim != 3:
        return f"its shape is {tuple(image_CHW.shape)}, not (C, H, W)"
    if not 0 <= label < classes:
        return f"its label is {label}; there are {classes} classes"
    if label != listed:
        return f"its label is {label}, but load() says {listed}"
    if image_CHW.dtype != torch.uint8 and not (image_CHW.is_floating_point() and image_CHW.min() >= 0 and image_CHW.max() <= 1):
        return f"it is {str(image_CHW.dtype).removeprefix('torch.')} and not from 0 to 1, nor uint8"
    return None
