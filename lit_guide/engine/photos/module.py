"""The DataModule under every source of photos: files of any size, decoded in loader processes, cut to one size as uint8.

Shapes: B images a batch, C = 3 channels, H x W pixels, K classes, N files.
"""

import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jsonargparse.typing import ClosedUnitInterval, PositiveInt
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from lit_guide.engine.data.base import ImageDataModule
from lit_guide.engine.data.source import Source, check_classes, grouped_split, stratified_split
from lit_guide.engine.errors import ConfigError, UserError, warn
from lit_guide.engine.machine import expanded, most_workers
from lit_guide.engine.photos.crops import EvalTransform, TrainTransform, least_side
from lit_guide.engine.photos.dataset import ImageDataset, Listing, joined, shown
from lit_guide.engine.photos.decode import Reading
from lit_guide.engine.photos.examine import AS_HASHED, Examined, Look, examine
from lit_guide.engine.tables import gone, load

AUTO_AUGMENT = {"none": [], "randaugment": [v2.RandAugment], "trivialaugment": [v2.TrivialAugmentWide]}


class PhotoData(ImageDataModule):
    r"""Splits, loaders and transforms for image files.

    Training images: a random part of the image, scaled to `image_size`, mirrored by chance (the recipe of Inception and ResNet;
    Szegedy et al., arXiv:1409.4842). Evaluation and prediction: scaled, and the centre cut out.

    Args:
        image_size: pixels of the square that the network gets.
        crop: in evaluation, `image_size` divided by the shorter side that the image is scaled to before the centre is cut out.
        min_area: in training, the smallest part of an image's area that is cut out; 1 for nearly all of it.
        flip: whether training images are mirrored at random; never where left and right differ.
        auto_augment: none, randaugment or trivialaugment: further random changes of colour and shape.
        erasing: the chance that a rectangle of a training image is blacked out.
        statistics: imagenet: its mean and standard deviation, which pretrained networks expect; compute: the training split's.
        group_pattern: a regular expression with one group in brackets, found in the file's path; files for which it gives the
            same text are never on two sides of a split. `(patient\d+)_` keeps the images of a patient together.
        on_bad_image: error: stop before training when files can't be decoded; skip: leave them out and say how many.
        white_level: the value that is white in images of more than 8 bits, such as 4095; null: 65535, and none may be far darker.
        cache: none; ram or disk: decode each file once and keep a copy as small as evaluation needs; training crops are cut from
            that copy too. A later run finds the one on disk again.
        cache_dir: where a disk cache and what was checked are kept; ~/.cache/lit-guide if null.
    """

    caches: ClassVar[Mapping[str, str]] = {}  # kind -> module:function of the part: the story's table
    checked: ClassVar[Mapping[str, str]] = {}  # likewise, of what remembers the files that were checked
    on_disk = True  # whether the paths of the listing are files
    folder: Path | None = None  # where the files are; None where moving one away would leave a gap in a list of them

    def __init__(
        self,
        image_size: PositiveInt = 224,
        crop: float = 0.875,
        min_area: float = 0.08,
        flip: bool = True,
        auto_augment: Literal["none", "randaugment", "trivialaugment"] = "none",
        erasing: ClosedUnitInterval = 0.0,
        statistics: Literal["compute", "imagenet"] = "imagenet",
        group_pattern: str | None = None,
        on_bad_image: Literal["error", "skip"] = "error",
        white_level: PositiveInt | None = None,
        cache: Literal["none", "ram", "disk"] = "none",
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_size=image_size, statistics=statistics, **kwargs)
        for name, value, low in (("crop", crop, 0.1), ("min_area", min_area, 0.001)):
            if not low <= value <= 1:
                raise ConfigError(f"data.{name} is {value}; it must be from {low} to 1.")
        try:
            self.group_pattern = re.compile(group_pattern) if group_pattern else None
        except re.error as error:
            raise ConfigError(f"data.group_pattern is no regular expression: {error}.") from None
        if self.group_pattern is not None and self.group_pattern.groups != 1:
            raise ConfigError(f"data.group_pattern {group_pattern} must have one group in brackets, such as (patient\\d+)_.")
        if part := gone(self.caches).get(cache):
            raise ConfigError(f"data.cache {cache} needs the part {part}, which this project does not have: --data.cache none.")
        self.size, self.white_level = int(image_size), None if white_level is None else int(white_level)
        self.crop: float | None = crop
        self.min_area, self.flip, self.auto_augment, self.erasing = min_area, flip, auto_augment, erasing
        self.least_side: int | None = least_side(self.size, crop, min_area)
        self.on_bad_image, self.cache, self.cache_dir = on_bad_image, cache, Path(expanded(cache_dir)) if cache_dir else None

    @abstractmethod
    def scan(self) -> Listing:
        """List the files, without opening them."""

    @cached_property
    def listing(self) -> Listing:
        """The files, listed on first use.

        Raises:
            UserError: the set comes split, and a split has a class that train lacks.
        """
        listing = self.scan()
        for name, rows in (given := listing.rows or {}).items():
            strange = np.setdiff1d(listing.labels_N[rows], listing.labels_N[given["train"]])
            if len(strange):
                classes = shown([listing.class_names[k] for k in strange])
                raise UserError(f"The {name} split of {listing.root} has {len(strange)} classes that train lacks:\n{classes}")
        return listing

    def load(self) -> Source:
        """Decode every file once, unless that is remembered from an earlier run, and divide the good ones into the splits.

        Raises:
            UserError: files are bad and `on_bad_image` is error, or all are; or a split got no images.
        """
        listing, reading = self.listing, Reading(self.white_level, self.least_side)
        for note in listing.notes:
            warn(note)
        if self.cache == "none":
            examined, read = self.examined(), None
        else:
            side = round(self.size / (self.crop or 1.0))  # the shorter one, as evaluation scales an image
            examined, read = load(self.caches)[self.cache](listing.root, listing.paths, side, self.cache_dir, reading)
        if examined.bad:
            names = shown([f"{listing.root / listing.paths[index]}: {reason}" for index, reason in examined.bad.items()])
            if len(examined.bad) == len(listing.paths):
                raise UserError(f"None of the {len(listing.paths)} files is an image that can be used:\n{names}")
            if self.on_bad_image == "error":
                quarantine = "move them away with `lit-guide data check --fix quarantine`"
                away = quarantine if self.folder else "take out their rows"
                how = f"Mend them, {away}, or train on the rest with --data.on_bad_image skip."
                raise UserError(f"{len(examined.bad)} of {len(listing.paths)} files can't be used:\n{names}\n{how}")
            warn(f"left out {len(examined.bad)} of {len(listing.paths)} files that can't be used:\n{names}")
        rows = self.divide(examined.bad, examined.duplicates)
        self._check(rows, examined.duplicates)
        dataset = ImageDataset(listing.root, listing.paths, torch.from_numpy(listing.labels_N), None, read, reading)
        return Source(dataset, listing.labels_N, listing.class_names, rows)

    def examined(self, anew: bool = False, look: Look | None = None) -> Examined:
        """What each file is: decoded now, or, unless `anew`, remembered from an earlier run where the part for that is there."""
        files = (self.listing.root, self.listing.paths)
        for once in load(self.checked).values():
            found: Examined = once(*files, self.cache_dir, self.white_level, anew, look)
            return found
        return examine(*files, reading=AS_HASHED._replace(white_level=self.white_level), look=look)

    def divide(self, bad: Iterable[int] = (), duplicates: Sequence[Sequence[int]] = ()) -> dict[str, NDArray[np.int64]]:
        """The rows of each split, without the bad ones; what the set does not come with is cut from train.

        Args:
            bad: files that can't be used.
            duplicates: groups of equal files. Where train is divided here, and not by `group_pattern`, a group stays together.
        """
        good_N = np.ones(len(self.listing.paths), dtype=bool)
        good_N[list(bad)] = False
        given = {name: rows[good_N[rows]] for name, rows in (self.listing.rows or {}).items()}
        row_T = given.pop("train") if "train" in given else np.flatnonzero(good_N)
        shares = {name: share for name, share in self.fractions.items() if name not in given}
        # What train is to be divided into adds up to 1: val_fraction and test_fraction are shares of it.
        shares["train"] = 1 - sum(share for name, share in shares.items() if name != "train")
        labels_T = self.listing.labels_N[row_T]
        if self.group_pattern is None:
            at_N = np.full(len(good_N), -1)
            at_N[row_T] = np.arange(len(row_T))
            copies = [at_N[group][at_N[group] >= 0] for group in duplicates]
            names = list(self.listing.paths)
            parts = stratified_split(labels_T, shares, self.split_seed, copies, (names[row] for row in row_T.tolist()))
        else:
            parts = grouped_split(labels_T, self._groups(row_T), shares, self.split_seed)
        return {name: given[name] if name in given else row_T[parts[name]] for name in self.fractions}

    def _groups(self, rows: NDArray[np.int64]) -> list[str]:
        """What `group_pattern` finds in the path of each of these rows."""
        assert self.group_pattern is not None
        names, groups = list(self.listing.paths), []
        for row in rows.tolist():
            match = self.group_pattern.search(names[row])
            if match is None or not match[1]:
                raise ConfigError(f"data.group_pattern {self.group_pattern.pattern} finds nothing in {names[row]}.")
            groups.append(match[1])
        return groups

    def _check(self, rows: Mapping[str, NDArray[np.int64]], duplicates: Sequence[Sequence[int]]) -> None:
        """Refuse splits without images; warn of what is in two splits or two classes, and of classes that a split lacks."""

        def equal(groups: Sequence[Sequence[int]]) -> str:
            return shown([joined([self.listing.paths[index] for index in group], " = ") for group in groups])

        for name, share in self.fractions.items():
            if not len(rows[name]) and share > 0:
                message = f"the {name} split got none of the {sum(map(len, rows.values()))} images"
                if name != "val":
                    raise UserError(f"{message.capitalize()}: add images, or change data.val_fraction and data.test_fraction.")
                warn(f"{message}: there is no validation. Add images, or raise data.val_fraction.")
        split_N = np.full(len(self.listing.paths), -1)
        for number, name in enumerate(rows):
            split_N[rows[name]] = number
        if leaks := [group for group in duplicates if len(set(split_N[group]) - {-1}) > 1]:
            warn(f"{len(leaks)} images are in more than one split, so scores on them mean nothing:\n{equal(leaks)}")
        if torn := [group for group in duplicates if len(set(self.listing.labels_N[group])) > 1]:
            warn(f"{len(torn)} images are in more than one class:\n{equal(torn)}")
        if self.group_pattern is not None:
            counted = Counter(group for indices in rows.values() for group in dict.fromkeys(self._groups(indices)))
            if split_up := [group for group, count in counted.items() if count > 1]:
                warn(f"{len(split_up)} groups of data.group_pattern are in more than one split:\n{shown(split_up)}")
        for name, indices in rows.items():
            lacking = np.setdiff1d(np.arange(len(self.listing.class_names)), self.listing.labels_N[indices])
            if len(indices) and len(lacking):
                classes = shown([self.listing.class_names[k] for k in lacking])
                warn(f"the {name} split has no image of {len(lacking)} classes:\n{classes}")

    def samples(self, training: bool) -> Dataset[tuple[Tensor, Tensor]]:
        """The images as training or evaluation cuts them: (3, image_size, image_size) uint8."""
        source = self.source.dataset
        assert isinstance(source, ImageDataset)
        transform: Callable[[Tensor], Tensor] = EvalTransform(self.size, self.crop or 1.0)
        if training and self.augment:
            extra = [kind() for kind in AUTO_AUGMENT[self.auto_augment]]
            extra += [v2.RandomErasing(float(self.erasing))] if self.erasing else []
            transform = TrainTransform(self.size, self.min_area, self.flip, extra)
        return ImageDataset(**(vars(source) | {"transform": transform}))

    # A model is built from these two before any file is opened: arguments are parsed in no time.
    @property
    def class_names(self) -> list[str]:
        """The K class names, as the files are listed; index i of the logits is class_names[i]."""
        check_classes(self.listing.class_names)
        return self.listing.class_names

    @cached_property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that the network gets."""
        return (3, self.size, self.size)

    def auto_workers(self) -> int:
        """Decoding takes all cores that this process may use; more workers than batches would have nothing to do."""
        on_this_node = self.trainer.num_devices if self.trainer is not None else 1
        batches = -(-len(self.listing.paths) // self.batch_size)
        return min(most_workers(on_this_node), batches)

    def sample_names(self, split: str) -> list[str]:
        """The path of each sample of a split, in order."""
        return [str(self.listing.root / self.listing.paths[row]) for row in self.rows[split]]
