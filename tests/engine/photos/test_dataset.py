import os
import pickle
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from lit_guide.engine.data.loaders import Split
from lit_guide.engine.photos.crops import EvalTransform
from lit_guide.engine.photos.dataset import ImageDataset, Paths
from lit_guide.engine.photos.decode import UnreadableImageError, decode

SMAPS = Path("/proc/self/smaps_rollup")
NAMES = ["a.jpg", "", "folder/b c.png", "фото/照片 🖼.webp", os.fsdecode(b"odd \xff\xfe\x80.gif"), "z" * 300, "a.jpg"]
# Python 3.12 and later warn of fork in a process with threads; worker processes of torch do without them.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
METHODS = [pytest.param("fork", marks=forks), pytest.param("spawn", marks=pytest.mark.slow)]


def memory_of(paths):
    return sum(tensor.nbytes for tensor in vars(paths).values())


def as_it_is(batch):
    """In the worker: the batch, and whether its images already lie in memory that all processes see."""
    image_BCHW, label_B = batch
    return image_BCHW, label_B, image_BCHW.is_shared()


def bytes_of(names):
    return sum(len(name.encode("utf-8", "surrogatepass")) for name in names)


# --- Paths


def test_names_come_out_as_they_went_in():
    paths = Paths(NAMES)
    assert len(paths) == len(NAMES)
    assert list(paths) == NAMES
    assert [paths[i] for i in range(-len(NAMES), 0)] == NAMES
    assert [paths[np.int64(1)], paths[torch.tensor(2)]] == NAMES[1:3]


@pytest.mark.parametrize("part", [slice(None), slice(1, 4), slice(-3, None), slice(None, None, -2), slice(5, 2), slice(2, 100)])
def test_slices_are_those_of_a_list(part):
    assert Paths(NAMES)[part] == NAMES[part]


def test_it_is_a_sequence_with_all_that_belongs_to_one():
    paths = Paths(NAMES)
    assert "folder/b c.png" in paths
    assert "b c.png" not in paths
    assert paths.index("a.jpg") == 0
    assert paths.count("a.jpg") == 2
    assert list(reversed(paths)) == NAMES[::-1]


@pytest.mark.parametrize("index", [7, -8, 10**12])
def test_an_index_that_is_not_there_is_an_error(index):
    with pytest.raises(IndexError, match=str(index)):
        Paths(NAMES)[index]


@pytest.mark.parametrize("paths", [Paths(), Paths([]), Paths(iter(())), pickle.loads(pickle.dumps(Paths()))])
def test_no_names_are_possible(paths):
    assert len(paths) == 0
    assert list(paths) == paths[:] == []
    assert memory_of(paths) == 8
    with pytest.raises(IndexError):
        paths[0]
    with pytest.raises(IndexError):
        paths[-1]


def test_names_may_come_from_anything_that_yields_them():
    assert list(Paths(f"{i}.png" for i in range(1000))) == [f"{i}.png" for i in range(1000)]
    assert list(Paths(Paths(NAMES))) == NAMES


def test_an_index_takes_its_bytes_and_eight_more_a_name():
    assert memory_of(Paths(NAMES)) == bytes_of(NAMES) + 8 * (len(NAMES) + 1)
    many = [f"class_{i % 1000:04}/some_longer_name_of_an_image_{i:07}.jpeg" for i in range(20_000)]
    assert memory_of(Paths(many)) <= 120 * len(many)
    assert memory_of(Paths(many)) == bytes_of(many) + 8 * (len(many) + 1)


def test_pickling_keeps_the_names_and_costs_no_more_than_they_do():
    many = [f"{i}.jpeg" for i in range(5000)]
    pickled = pickle.dumps(Paths(many))
    assert list(pickle.loads(pickled)) == many
    assert list(pickle.loads(pickle.dumps(Paths(NAMES)))) == NAMES
    assert len(pickled) < memory_of(Paths(many)) + 2000


# --- What loader processes own


def private_bytes():
    """Memory that this process shares with no other."""
    return 1024 * sum(map(int, re.findall(r"^Private_\w+:\s+(\d+) kB", SMAPS.read_text(), re.MULTILINE)))


class Reader(Dataset):
    """In a worker: reads every name, and says how much memory it came to own by that."""

    def __init__(self, names, rows):
        self.names, self.rows = names, rows

    def __len__(self):
        return 2

    def __getitem__(self, index):
        list(self.names[:100]), self.rows[:100].tolist()  # what is imported or set up on first use
        before = private_bytes()
        letters = sum(len(self.names[i]) for i in range(len(self.names)))
        total = sum(self.rows[i].item() for i in range(len(self.rows)))
        shared = [t.is_shared() for t in (*vars(self.names).values(), self.rows)] if isinstance(self.names, Paths) else []
        return os.getpid(), letters, total, private_bytes() - before, shared


def read_in_workers(names, rows, method):
    loader = DataLoader(Reader(names, rows), batch_size=None, num_workers=2, multiprocessing_context=method)
    return list(loader)


@pytest.mark.skipif(not SMAPS.exists(), reason="asks Linux how much memory a process shares")
@pytest.mark.parametrize("method", METHODS)
def test_workers_read_the_whole_index_without_copying_it(method):
    count = 60_000
    names = [f"class_{i % 1000:04}/{'long' * 20}_name_of_an_image_{i:07}.jpeg" for i in range(count)]
    paths, rows = Paths(names), torch.arange(count)
    assert memory_of(paths) > 7e6
    results = read_in_workers(paths, rows, method)
    assert len({pid for pid, *_ in results}) == 2
    for _, letters, total, grown, shared in results:
        assert letters == sum(map(len, names))
        assert total == count * (count - 1) // 2
        assert grown < 2e6
        assert all(shared) == (method == "spawn")  # a forked process has the parent's memory without asking for it
    if method == "fork":  # the same measure finds the copy of a list
        assert min(grown for _, _, _, grown, _ in read_in_workers(names, rows, method)) > 6e6


# --- ImageDataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photos):
    """Six images of different formats and sizes."""
    root = tmp_path_factory.mktemp("images")
    (root / "фото").mkdir()
    for number, name in enumerate(["a.jpg", "b.png", "фото/c d.webp", "e.gif", "f.bmp", "g.tif"]):
        photo = Image.fromarray(photos["china.jpg" if number % 2 else "flower.jpg"][1])
        photo.resize((40 + 7 * number, 60 - 5 * number)).save(root / name)
    return root


def dataset_of(root, **kwargs):
    paths = sorted(str(path.relative_to(root)) for path in root.rglob("*.*"))
    return ImageDataset(root, Paths(paths), torch.tensor([3, 1, 4, 1, 5, 9]), **kwargs)


def test_a_sample_is_the_files_pixels_and_its_label(folder):
    dataset = dataset_of(folder)
    assert len(dataset) == 6
    assert dataset.paths[5] == "фото/c d.webp"
    for index, label in enumerate([3, 1, 4, 1, 5, 9]):
        image_CHW, found = dataset[index]
        assert torch.equal(image_CHW, decode(folder / dataset.paths[index]))
        assert found == label
        assert found.dtype == torch.int64
        assert found.shape == ()


def test_the_transform_gets_the_image_and_makes_the_sample(folder):
    dataset = dataset_of(folder, transform=lambda image_CHW: image_CHW.float().mean())
    assert dataset[2][0] == decode(folder / dataset.paths[2]).float().mean()


def test_what_read_gives_stands_for_the_file(folder):
    asked = []

    def read(index):
        asked.append(index)
        return torch.full((3, 4, 4), index, dtype=torch.uint8)

    dataset = dataset_of(folder, read=read, transform=lambda image_CHW: image_CHW + 100)
    assert (dataset[4][0] == 104).all()
    image_BCHW, label_B = dataset.batch([5, 0, 5])
    assert image_BCHW[:, 0, 0, 0].tolist() == [105, 100, 105]
    assert label_B.tolist() == [9, 3, 9]
    assert asked == [4, 5, 0, 5]


@pytest.mark.parametrize("indices", [[0], [4, 1, 4, 0], [5, 4, 3, 2, 1, 0]])
def test_a_batch_holds_its_samples_with_the_pixels_side_by_side(folder, indices):
    dataset = dataset_of(folder, transform=EvalTransform(20, 0.875))
    image_BCHW, label_B = dataset.batch(indices)
    assert image_BCHW.shape == (len(indices), 3, 20, 20)
    assert image_BCHW.dtype == torch.uint8
    assert image_BCHW.is_contiguous(memory_format=torch.channels_last)
    assert not image_BCHW.is_shared()
    for at, index in enumerate(indices):
        image_CHW, label = dataset[index]
        assert torch.equal(image_BCHW[at], image_CHW)
        assert label_B[at] == label


def test_a_batch_of_floats_stays_one(folder):
    dataset = dataset_of(folder, transform=lambda image_CHW: EvalTransform(8, 1.0)(image_CHW) / 255)
    image_BCHW, _ = dataset.batch([1, 2])
    assert image_BCHW.dtype == torch.float32
    assert torch.equal(image_BCHW[1], dataset[2][0])


@pytest.mark.parametrize("method", METHODS)
def test_batches_from_workers_are_those_of_one_process(folder, method):
    dataset = dataset_of(folder, transform=EvalTransform(20, 0.875))
    load = partial(DataLoader, Split(dataset, torch.arange(len(dataset))), batch_size=4, collate_fn=as_it_is)
    batches = list(load(num_workers=2, multiprocessing_context=method))
    assert len(batches) == 2
    for (image_BCHW, label_B, shared), (expected_BCHW, expected_B, _) in zip(batches, load(), strict=True):
        assert torch.equal(image_BCHW, expected_BCHW)
        assert torch.equal(label_B, expected_B)
        assert image_BCHW.is_contiguous(memory_format=torch.channels_last)
        assert shared  # from the start: else the whole batch is copied once more to be sent


@pytest.mark.parametrize("workers", [0, 2])
@forks
def test_it_works_in_a_plain_dataloader_and_with_torchs_own_subsets(folder, workers):
    dataset = dataset_of(folder, transform=EvalTransform(20, 0.875))
    one, other = torch.utils.data.random_split(dataset, [3, len(dataset) - 3], torch.Generator().manual_seed(0))
    for part in (dataset, one, other):
        batches = list(DataLoader(part, batch_size=2, num_workers=workers))
        image_NCHW, label_N = torch.cat([batch[0] for batch in batches]), torch.cat([batch[1] for batch in batches])
        assert len(image_NCHW) == len(part)
        for image_CHW, label, sample in zip(image_NCHW, label_N, part, strict=True):
            assert torch.equal(image_CHW, sample[0])
            assert label == sample[1]


def test_torchs_own_collation_of_single_samples_gives_the_same_batch(folder):
    dataset = dataset_of(folder, transform=EvalTransform(20, 0.875))
    image_BCHW, label_B = torch.utils.data.default_collate([dataset[i] for i in (3, 1, 2)])
    batch_BCHW, labels_B = dataset.batch([3, 1, 2])
    assert torch.equal(batch_BCHW, image_BCHW)
    assert torch.equal(labels_B, label_B)


@pytest.mark.parametrize(("content", "reason"), [(b"", "empty file"), (b"text", "not an image"), (None, "no such file")])
def test_f13_a_file_that_broke_since_it_was_checked_is_named(tmp_path, folder, content, reason):
    path = tmp_path / "bad.png"
    if content is not None:
        path.write_bytes(content)
    dataset = ImageDataset(tmp_path, [str(folder / "a.jpg"), "bad.png"], torch.tensor([0, 1]), EvalTransform(8, 1.0))
    assert dataset[0][1] == 0
    for get in (lambda: dataset[1], lambda: dataset.batch([0, 1])):
        with pytest.raises(UnreadableImageError, match=f"^{re.escape(str(path))}: {reason}"):
            get()


@pytest.mark.slow  # torch takes 5 s to end a worker that raised
@forks
def test_f13_a_broken_file_is_named_by_a_worker_too(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"")
    loader = DataLoader(ImageDataset(tmp_path, ["bad.png"], torch.tensor([0])), num_workers=1, multiprocessing_context="fork")
    with pytest.raises(UnreadableImageError, match=re.escape(f"{tmp_path / 'bad.png'}: empty file")):
        list(loader)
