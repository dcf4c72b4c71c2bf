"""What is wrong with a set of images, found before it costs a night: the report of `data check`."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from torch import Tensor

from lit_guide.engine.data.augment import to_float
from lit_guide.engine.data.base import ImageDataModule
from lit_guide.engine.errors import ConfigError, UserError
from lit_guide.engine.photos.cache import remember
from lit_guide.engine.photos.examine import Examined, difference_hash, examine, near_duplicates
from lit_guide.engine.photos.module import PhotoData

HUGE = 24_000_000  # pixels: decoding one takes as long as decoding a hundred of 500 x 375
ENLARGED = 4  # a photo smaller than the network's input by more than this factor shows little
FEW = 4  # training images of a class, under which it can hardly be learned
UNEVEN = 10  # times as many images in one class as in another, from which on it is worth a word
CLASSES_SHOWN, ITEMS_SHOWN, LONGEST = 20, 5, 300  # classes, items of a finding, and characters of an item on the screen


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found.

    Attributes:
        kind: its name in data_check.json.
        wrong: whether it makes training or its scores worthless; otherwise it is worth a look.
        what: in words, with what to do.
        items: the files or rows.
    """

    kind: str
    wrong: bool
    what: str
    items: list[str]


@dataclass(frozen=True)
class Report:
    """All that `check` found.

    Attributes:
        images: how many there are, bad ones included.
        class_names: the K classes.
        splits: split name -> images of each class that can be used.
        findings: the worst first.
        bad_files: paths of the files that can't be decoded.
    """

    images: int = 0
    class_names: list[str] = field(default_factory=list)
    splits: dict[str, list[int]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    bad_files: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> list[Finding]:
        """What must be mended."""
        return [finding for finding in self.findings if finding.wrong]

    def as_dict(self) -> dict[str, Any]:
        """What data_check.json holds."""
        splits = {name: dict(zip(self.class_names, counts, strict=True)) for name, counts in self.splits.items()}
        return {"ok": not self.wrong, "images": self.images, "splits": splits, "findings": [asdict(f) for f in self.findings]}


def check(data: ImageDataModule, near_bits: int = 5) -> Report:
    """Decode every image of a source and look for what is wrong with the set.

    Args:
        data: the source.
        near_bits: images are near duplicates if the 64 bits of their difference hashes differ in so many at most.

    Raises:
        ConfigError: there is no such source.
    """
    try:
        if isinstance(data, PhotoData) and data.on_disk:
            return _check_files(data, near_bits)
        source = data.source
        names: Sequence[str] = [f"row {row}" for row in range(len(source.labels_N))]
        examined = _examine_samples(data)
        findings = list(_about_images(names, source.labels_N, data.rows, examined, near_bits, source.rows is not None))
        return _report(names, source.labels_N, source.class_names, data.rows, findings, [])
    except ConfigError:
        raise
    except UserError as error:
        return Report(findings=[Finding("unusable", True, str(error), [])])


def print_report(report: Report) -> None:
    """The table of classes and the table of findings, on the screen."""
    console = Console()
    if report.splits:
        table = Table(title="Images", title_justify="left")
        table.add_column("class", overflow="fold")
        for name in report.splits:
            table.add_column(name, justify="right")
        for k, name in enumerate(report.class_names[:CLASSES_SHOWN]):
            table.add_row(_printable(name), *(f"{counts[k]:,}" for counts in report.splits.values()))
        if len(report.class_names) > CLASSES_SHOWN:
            table.add_row(f"... {len(report.class_names) - CLASSES_SHOWN} more classes")
        table.add_section()
        table.add_row("all", *(f"{sum(counts):,}" for counts in report.splits.values()))
        console.print(table)
    if report.findings:
        table = Table(title="Findings", title_justify="left", show_lines=True)
        for heading in ("", "what", "count", "such as"):
            table.add_column(heading, overflow="fold", justify="right" if heading == "count" else "left")
        for finding in report.findings:
            mark = "[red]wrong[/red]" if finding.wrong else "[yellow]look[/yellow]"
            shown = "\n".join(item if len(item) <= LONGEST else f"{item[:LONGEST]} ..." for item in finding.items[:ITEMS_SHOWN])
            table.add_row(mark, escape(finding.what), f"{len(finding.items):,}" if finding.items else "", _printable(shown))
        console.print(table)


def _printable(text: str) -> str:
    """A file's name need not be UTF-8, and may have brackets in it."""
    return escape(text.encode(errors="surrogateescape").decode(errors="replace"))


def _check_files(data: PhotoData, near_bits: int) -> Report:
    listing = data.listing
    paths, labels_N = listing.paths, listing.labels_N
    examined = examine(listing.root, paths)
    remember(listing.root, paths, data.cache_dir, examined)
    good_N = np.ones(len(paths), dtype=bool)
    good_N[list(examined.bad)] = False
    rows = data.divide(good_N, examined.duplicates)
    findings = [
        *_about_images(paths, labels_N, rows, examined, near_bits, given=listing.rows is not None),
        *(
            Finding("empty_split", name != "val", f"the {name} split got no image: add some, or change its fraction", [])
            for name, share in data.fractions.items()
            if share > 0 and not len(rows[name])
        ),
        *_about_sizes(paths, examined, data.size),
        *(Finding("listing", False, note, []) for note in listing.notes),
    ]
    bad = [str(listing.root / paths[index]) for index in examined.bad]
    return _report(paths, labels_N, listing.class_names, rows, findings, bad)


def _report(
    names: Sequence[str],
    labels_N: NDArray[np.int64],
    class_names: list[str],
    rows: Mapping[str, NDArray[np.int64]],
    findings: list[Finding],
    bad_files: list[str],
) -> Report:
    K = len(class_names)
    in_range_N = (labels_N >= 0) & (labels_N < K)
    splits = {name: np.bincount(labels_N[r][in_range_N[r]], minlength=K).tolist() for name, r in rows.items()}
    findings = sorted([*findings, *_about_classes(splits, class_names)], key=lambda finding: not finding.wrong)
    return Report(len(names), class_names, splits, findings, bad_files)


def _about_images(
    names: Sequence[str],
    labels_N: NDArray[np.int64],
    rows: Mapping[str, NDArray[np.int64]],
    examined: Examined,
    near_bits: int,
    given: bool,
) -> Iterator[Finding]:
    """Bad images, and images that are there more than once; `given`: whether the set came with its splits."""
    split_N = np.full(len(names), "", dtype="U5")
    for name, indices in rows.items():
        split_N[indices] = name
    if examined.bad:
        yield Finding(
            "unreadable", True, "can't be used", [f"{names[index]}: {reason}" for index, reason in examined.bad.items()]
        )
    equal = {index: number for number, group in enumerate(examined.duplicates) for index in group}
    near = [g for g in near_duplicates(examined.dhash_N, near_bits) if len({equal.get(index, -1 - index) for index in g}) > 1]
    for groups, kind, sign, words in (
        (examined.duplicates, "equal", " = ", "the same image"),
        (near, "near", " ~ ", "nearly the same image"),
    ):
        across = [group for group in groups if len({split_N[index] for index in group}) > 1]
        unsure = [group for group in groups if len({labels_N[index] for index in group}) > 1]
        within = [group for group in groups if group not in unsure and len({split_N[index] for index in group}) == 1]
        mend = "" if given else "; data.group_pattern keeps such images together"
        for found, what, wrong, where in (
            (
                across,
                "across_splits",
                kind == "equal" or given,
                f"in more than one split (a leak): scores on it mean nothing{mend}",
            ),
            (unsure, "classes", kind == "equal", "in more than one class"),
            (within, "within_split", False, "more than once in a split"),
        ):
            if found:
                items = [sign.join(f"{split_N[index]} {names[index]}".strip() for index in group) for group in found]
                yield Finding(f"{kind}_{what}", wrong, f"{words} {where}", items)


def _about_sizes(names: Sequence[str], examined: Examined, size: int) -> Iterator[Finding]:
    width_N, height_N = examined.width_N.astype(np.int64), examined.height_N.astype(np.int64)
    good_N = width_N > 0
    for kind, chosen_N, what in (
        ("tiny", good_N & (np.minimum(width_N, height_N) * ENLARGED < size), f"enlarged more than {ENLARGED} times to {size} px"),
        ("huge", width_N * height_N > HUGE, "slow to decode: scale them down, or use data.cache disk"),
    ):
        items = [f"{names[index]}: {width_N[index]} x {height_N[index]}" for index in np.flatnonzero(chosen_N).tolist()]
        if items:
            yield Finding(kind, False, what, items)
    others = np.flatnonzero(good_N & (examined.mode_N != "RGB")).tolist()
    if others:
        yield Finding(
            "mode", False, "not plain RGB; converted", [f"{names[index]}: {examined.mode_N[index]}" for index in others]
        )


def _about_classes(splits: Mapping[str, Sequence[int]], class_names: Sequence[str]) -> Iterator[Finding]:
    if len(class_names) < 2:
        yield Finding("one_class", True, "a classifier needs at least two classes; there is", list(class_names))
    for split, count_K in splits.items():
        lacking = [name for name, count in zip(class_names, count_K, strict=True) if not count]
        if lacking and (sum(count_K) or split == "train"):
            yield Finding("absent", split == "train", f"classes without an image in {split}", lacking)
    few = [f"{name}: {count}" for name, count in zip(class_names, splits.get("train", []), strict=False) if 0 < count < FEW]
    if few:
        yield Finding("few", False, f"classes with fewer than {FEW} training images", few)
    train_K = [count for count in splits.get("train", []) if count]
    if train_K and max(train_K) >= UNEVEN * min(train_K):
        what = f"{max(train_K)} training images in one class, {min(train_K)} in another: see data.sampler and model.class_weights"
        yield Finding("uneven", False, what, [])


def _examine_samples(data: ImageDataModule) -> Examined:
    """As `examine` does for files, for the samples of any source."""
    source = data.source
    N = len(source.labels_N)
    found = Examined.of(N)
    equal: dict[bytes, list[int]] = {}
    for index in track(range(N), "Checking images", console=Console(stderr=True), transient=True, disable=N < 10_000):
        try:
            image_CHW, label = source.dataset[index]
        except Exception as error:  # a user's own dataset raises what it likes
            found.bad[index] = f"{type(error).__name__}: {error}"
            continue
        problem = _sample_problem(image_CHW, int(label), int(source.labels_N[index]), len(source.class_names))
        if problem is not None:
            found.bad[index] = problem
            continue
        content = image_CHW.contiguous().numpy()
        equal.setdefault(hashlib.sha256(f"{content.shape}".encode() + content.tobytes()).digest(), []).append(index)
        if min(image_CHW.shape[1:]) >= 32:  # on less, many different drawings hash alike
            found.dhash_N[index] = difference_hash((to_float(image_CHW) * 255).to(torch.uint8))
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
