import os
import pickle
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lit_guide.data import ArrayDataset
from lit_guide.data.arrays import ArraysData, read_npz
from lit_guide.engine.data.loaders import Split
from lit_guide.engine.errors import ConfigError, UserError

N, H, W = 30, 6, 9


def some_bytes(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def some_labels(classes=3):
    return np.arange(N) % classes


@pytest.fixture(params=["npz", "npy"])
def write(request, tmp_path):
    """Writes arrays as one `.npz`, or as `.npy` files in a folder."""

    def write_arrays(**arrays):
        arrays = {"images": some_bytes(N, H, W), "labels": some_labels()} | arrays
        arrays = {name: array for name, array in arrays.items() if array is not None}
        if request.param == "npz":
            np.savez(tmp_path / "mine.npz", **arrays)
            return str(tmp_path / "mine.npz")
        (tmp_path / "mine").mkdir(exist_ok=True)
        for name, array in arrays.items():
            np.save(tmp_path / "mine" / f"{name}.npy", array)
        return str(tmp_path / "mine")

    return write_arrays


class CountingArray(np.ndarray):
    indexed = 0

    def __getitem__(self, index):
        CountingArray.indexed += 1
        return super().__getitem__(index)


# --- ArrayDataset


def test_dataset_keeps_the_callers_memory():
    image_NCHW, labels = some_bytes(N, 1, H, W), some_labels()
    dataset = ArrayDataset(image_NCHW, labels)
    assert np.shares_memory(dataset.images, image_NCHW)
    assert np.shares_memory(dataset.labels, labels)
    image_NCHW[4], labels[4] = 77, 2
    assert (dataset[4][0] == 77).all()
    assert dataset[4][1] == 2
    tensor_NCHW = torch.rand(N, 1, H, W)
    assert ArrayDataset(tensor_NCHW, torch.zeros(N)).images.data_ptr() == tensor_NCHW.data_ptr()


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_batch_and_sample_hold_the_rows_asked_for(kind):
    image_NCHW, labels = some_bytes(N, 3, H, W), some_labels()
    dataset = ArrayDataset(*((image_NCHW, labels) if kind == "numpy" else map(torch.from_numpy, (image_NCHW, labels))))
    image_BCHW, label_B = dataset.batch([7, 0, 7, 29])
    assert len(dataset) == N
    assert image_BCHW.dtype == torch.uint8
    assert label_B.dtype == torch.int64
    np.testing.assert_array_equal(image_BCHW.numpy(), image_NCHW[[7, 0, 7, 29]])
    assert label_B.tolist() == [1, 0, 1, 2]
    image_CHW, label = dataset[29]
    np.testing.assert_array_equal(image_CHW.numpy(), image_NCHW[29])
    assert label.shape == ()
    assert label == 2


def test_a_batch_of_a_dataloader_costs_one_index_operation_per_array():
    images, labels = some_bytes(N, 1, H, W).view(CountingArray), some_labels().view(CountingArray)
    split = Split(ArrayDataset(images, labels), torch.arange(20))
    loader = DataLoader(split, batch_size=10, collate_fn=lambda batch: batch)
    CountingArray.indexed = 0
    batches = list(loader)
    assert CountingArray.indexed == 2 * len(batches) == 4


def test_it_works_in_a_plain_dataloader():
    dataset = ArrayDataset(some_bytes(N, 3, H, W), some_labels())
    image_BCHW, label_B = next(iter(DataLoader(dataset, batch_size=8)))
    assert torch.equal(image_BCHW, torch.from_numpy(some_bytes(N, 3, H, W)[:8]))
    assert label_B.tolist() == some_labels()[:8].tolist()


@pytest.mark.skipif(sys.platform != "linux", reason="a file of nothing but a hole")
def test_arrays_larger_than_memory_are_mapped(tmp_path):
    rows = 3 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
    np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.uint8, (rows, 1024, 1024))[[0, -1], 0, 0] = 7
    np.save(tmp_path / "labels.npy", np.arange(rows) % 2)
    dataset = ArraysData(str(tmp_path)).source.dataset
    image_BCHW, label_B = dataset.batch([0, 1, rows - 1])
    assert image_BCHW[:, 0, 0, 0].tolist() == [7, 0, 7]
    assert label_B.tolist() == [0, 1, (rows - 1) % 2]


def test_read_only_arrays_give_batches_without_a_warning():  # every warning is an error here
    images, labels = some_bytes(N, 1, H, W), some_labels()
    images.flags.writeable = labels.flags.writeable = False
    dataset = ArrayDataset(images, labels)
    image_BCHW, _ = dataset.batch([3, 5])
    image_BCHW += 1
    np.testing.assert_array_equal(dataset[3][0].numpy(), some_bytes(N, 1, H, W)[3])


def test_dataset_refuses_unequal_lengths_and_images_without_four_axes():
    with pytest.raises(ValueError, match="30 images but 29 labels"):
        ArrayDataset(some_bytes(N, 1, H, W), some_labels()[1:])
    with pytest.raises(ValueError, match=r"must be \(N, C, H, W\), got shape \(30, 6, 9\)"):
        ArrayDataset(some_bytes(N, H, W), some_labels())


# --- ArraysData: what is accepted


@pytest.mark.parametrize(
    ("shape", "layout", "axes"),
    [
        ((N, H, W), "auto", None),
        ((N, H, W, 1), "auto", (0, 3, 1, 2)),
        ((N, H, W, 3), "auto", (0, 3, 1, 2)),
        ((N, H, W, 4), "auto", (0, 3, 1, 2)),
        ((N, 1, H, W), "auto", (0, 1, 2, 3)),
        ((N, 3, H, W), "auto", (0, 1, 2, 3)),
        ((N, 4, H, W), "auto", (0, 1, 2, 3)),
        ((N, 3, H, 3), "auto", (0, 3, 1, 2)),  # both could be the channels: the last one is
        ((N, 3, H, 3), "NCHW", (0, 1, 2, 3)),
        ((N, H, W, 2), "NHWC", (0, 3, 1, 2)),
        ((N, 2, H, W), "auto", (0, 1, 2, 3)),
    ],
)
def test_every_layout_comes_out_as_channels_first(write, shape, layout, axes):
    images = some_bytes(*shape)
    data = ArraysData(write(images=images), layout=layout)
    expected_NCHW = images[:, None] if axes is None else images.transpose(axes)
    image_BCHW, label_B = data.source.dataset.batch(list(range(N)))
    np.testing.assert_array_equal(image_BCHW.numpy(), expected_NCHW)
    np.testing.assert_array_equal(label_B.numpy(), some_labels())
    assert data.input_shape == expected_NCHW.shape[1:]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_images_from_0_to_1_arrive_unchanged(write, dtype):
    images = (some_bytes(N, H, W) / 255).astype(dtype)
    images[0, 0, :2] = [0, 1]
    data = ArraysData(write(images=images))
    image_BCHW, label_B = data.on_after_batch_transfer(data.source.dataset.batch([0, 3]), 0)
    assert image_BCHW.dtype == torch.float32
    np.testing.assert_array_equal(image_BCHW[:, 0].numpy(), images[[0, 3]].astype(np.float32))
    assert label_B.tolist() == [0, 0]


def test_big_endian_images_arrive_with_their_values(write):
    images = (some_bytes(N, H, W) / 255).astype(">f4")
    data = ArraysData(write(images=images, labels=some_labels().astype(">i8")))
    np.testing.assert_array_equal(data.source.dataset[5][0][0].numpy(), images[5])
    assert data.source.dataset[5][1] == 2


def test_class_names_are_the_given_ones_or_else_the_indices(write):
    assert ArraysData(write()).class_names == ["0", "1", "2"]
    named = ArraysData(write(class_names=["cat", "dog", "emu", "never seen"])).class_names
    assert named == ["cat", "dog", "emu", "never seen"]
    assert {type(name) for name in named} == {str}


def test_a_folders_images_are_mapped_and_give_the_batches_of_the_npz_in_workers_too(tmp_path):
    images, labels = some_bytes(N, H, W), some_labels()
    np.savez(tmp_path / "mine.npz", images=images, labels=labels)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "labels.npy", labels)
    mapped, read = ArraysData(str(tmp_path), num_workers=2, batch_size=4), ArraysData(str(tmp_path / "mine.npz"), batch_size=4)
    owner = mapped.source.dataset.images
    while owner.base is not None and not isinstance(owner, np.memmap):
        owner = owner.base
    assert isinstance(owner, np.memmap)
    assert Path(owner.filename) == tmp_path / "images.npy"
    for (ours_BCHW, ours_B), (theirs_BCHW, theirs_B) in zip(mapped.test_dataloader(), read.test_dataloader(), strict=True):
        assert torch.equal(ours_BCHW, theirs_BCHW)
        assert torch.equal(ours_B, theirs_B)


def test_split_column_decides_the_split(write):
    split = np.array(["train", "val", "test"])[np.random.default_rng(1).integers(0, 3, N)]
    data = ArraysData(write(split=split), val_fraction=0.5)
    for name in ("train", "val", "test"):
        assert data.rows[name].tolist() == np.flatnonzero(split == name).tolist()


def test_without_a_split_column_the_fractions_decide(write):
    data = ArraysData(write(), val_fraction=0.2, test_fraction=0.3)
    assert {name: np.bincount(some_labels()[rows]).tolist() for name, rows in data.rows.items()} == {
        "train": [5, 5, 5],
        "val": [2, 2, 2],
        "test": [3, 3, 3],
    }


@pytest.mark.parametrize("labels", [some_labels().astype(np.float32), some_labels().astype(np.uint8), some_labels()[:, None]])
def test_whole_labels_of_any_type_are_indices(write, labels):
    source = ArraysData(write(labels=labels)).source
    assert source.labels_N.dtype == np.int64
    assert source.labels_N.tolist() == some_labels().tolist()


# --- ArraysData: every fault is a line that says where


def fault(path, **arguments):
    with pytest.raises(UserError) as caught:
        _ = ArraysData(path, **arguments).source
    assert type(caught.value) is UserError
    assert caught.value.exit_code == 1
    assert path in str(caught.value)
    return str(caught.value)


def with_value(array, rows, value):
    array = np.array(array)
    array[rows] = value
    return array


def test_f17_labels_under_zero_are_named_by_row(write):
    message = fault(write(labels=with_value(some_labels(), [4, 9], -1)))
    assert "labels hold a value under 0, in 2 of 30 rows: 4, 9." in message


def test_f17_labels_that_no_index_can_have_are_named_by_row(write):
    """As int64 they would be under 0."""
    message = fault(write(labels=with_value(some_labels().astype(np.uint64), [4], 1 << 63)))
    assert "labels hold a value under 0, in 1 of 30 rows: 4." in message


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize <= 8, reason="no longer floats here")
def test_f17_images_of_longer_floats_than_torch_has_are_refused(write):
    images = np.zeros((30, 8, 8), dtype=np.longdouble)
    assert "Store them as uint8, or as floats from 0 to 1" in fault(write(images=images))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_f50_labels_that_are_nan_are_named_by_row(write, dtype):
    message = fault(write(labels=with_value(some_labels().astype(dtype), [0, 29], np.nan)))
    assert "labels hold NaN or Inf, in 2 of 30 rows: 0, 29." in message


@pytest.mark.parametrize("nothing", [None, float("nan"), "nan"])
def test_f50_labels_that_are_objects_are_refused_with_what_may_be_wrong(write, nothing):
    message = fault(write(labels=with_value(some_labels().astype(object), [3], nothing)))
    assert "(labels or images are Python objects: None for a label that is missing, or text among numbers; drop" in message


def test_f17_labels_over_the_last_class_are_named_by_row(write):
    message = fault(write(labels=with_value(some_labels(), [7], 3), class_names=["a", "b", "c"]))
    assert "labels hold a value over 2, the last of 3 class_names, in 1 of 30 rows: 7." in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_f17_images_with_nan_or_inf_are_named_by_row(write, value, layout):
    images = (some_bytes(N, 3, 6, 3) / 255).astype(np.float32)
    images[2, 0, 0, 0] = images[29, 2, 5, 2] = value
    assert "images hold NaN or Inf, in 2 of 30 rows: 2, 29." in fault(write(images=images), layout=layout)


def test_f17_only_the_first_ten_rows_are_listed(write):
    message = fault(write(images=np.full((N, H, W), np.nan)))
    assert "in 30 of 30 rows: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and more." in message


def test_f17_unequal_lengths_are_refused_with_both(write):
    assert "images has 30 rows, labels has 29" in fault(write(labels=some_labels()[:-1]))


@pytest.mark.parametrize("rows", [N - 5, N + 5])
def test_f17_a_split_column_of_another_length_is_refused(write, rows):
    message = fault(write(split=["train"] * (N - 10) + ["test"] * (rows - N + 10)))
    assert "split" in message
    assert str(rows) in message


def test_f17_an_unknown_split_name_is_named_by_row(write):
    message = fault(write(split=["train"] * 29 + ["dev"]))
    assert "row 29 names the split 'dev'; use train, val, test" in message


def test_f17_labels_with_fractions_are_named_by_row(write):
    assert "labels hold fractions, in 1 of 30 rows: 3." in fault(write(labels=with_value(some_labels() * 1.0, [3], 0.5)))


def test_f17_labels_with_nan_are_named_by_row(write):
    assert "labels hold NaN or Inf, in 1 of 30 rows: 3." in fault(write(labels=with_value(some_labels() * 1.0, [3], np.nan)))


@pytest.mark.parametrize("value", [-0.01, 1.01, 255.0])
def test_f17_float_images_outside_0_to_1_are_named_by_row(write, value):
    images = with_value((some_bytes(N, H, W) / 255).astype(np.float32), (11, 2, 2), value)
    assert "float images leave the range 0 to 1 (of 0 to 255: divide them), in 1 of 30 rows: 11." in fault(write(images=images))


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, bool, np.complex64])
def test_f17_images_of_another_type_are_refused(write, dtype):
    message = fault(write(images=some_bytes(N, H, W).astype(dtype)))
    assert f"images are {np.dtype(dtype)}. Store them as uint8, or as floats from 0 to 1: images / 4095." in message


@pytest.mark.parametrize("labels", [np.eye(3)[some_labels()], np.array(list("abc"))[some_labels()], some_labels() > 1])
def test_f17_labels_that_are_no_column_of_indices_are_refused(write, labels):
    assert "labels must be one column of class indices" in fault(write(labels=labels))


@pytest.mark.parametrize("shape", [(N,), (N, 5), (N, 2, 3, 4, 5)])
def test_f17_images_with_another_number_of_axes_are_refused(write, shape):
    assert "use (N, H, W), (N, H, W, C) or (N, C, H, W)" in fault(write(images=some_bytes(*shape)))


@pytest.mark.parametrize("name", ["images", "labels", "class_names"])
def test_f17_a_single_value_in_the_place_of_a_column_is_refused(write, name):
    assert name in fault(write(**{name: np.array(5)}))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(0, H, W), (N, 0, W)])
def test_f17_images_without_pixels_are_refused(write, shape, dtype):
    assert "images" in fault(write(images=np.zeros(shape, dtype), labels=some_labels()[: shape[0]]))


@pytest.mark.parametrize("missing", ["images", "labels"])
def test_f17_a_missing_array_is_named_with_those_there(write, missing):
    message = fault(write(**{missing: None, "class_names": ["a", "b", "c"]}))
    assert f"but no {missing}." in message
    assert "'class_names'" in message


def test_f17_one_class_is_not_enough(write):
    with pytest.raises(UserError, match="The data have 1 class: a classifier needs at least two"):
        _ = ArraysData(write(labels=np.zeros(N, dtype=int))).source


@pytest.mark.parametrize("content", [b"", b"plain text", b"PK\x03\x04 no zip after all"])
def test_f17_a_file_that_is_no_npz_is_refused(tmp_path, content):
    path = tmp_path / "mine.npz"
    path.write_bytes(content)
    assert "is not a readable .npz of plain arrays" in fault(str(path))


def test_f17_a_single_array_file_is_refused(tmp_path):
    np.save(tmp_path / "images.npy", some_bytes(N, H, W))
    with pytest.raises(ConfigError, match=r"images\.npy is one array: give the folder that holds images\.npy and labels\.npy"):
        _ = ArraysData(str(tmp_path / "images.npy")).source


def test_f17_a_folder_of_photos_in_the_place_of_arrays_says_which_recipe_reads_them(tmp_path):
    assert "Photos are read with --config configs/folder.yaml" in fault(str(tmp_path))


@pytest.mark.parametrize("damage", ["truncated", "overwritten", "checksum"])
def test_f17_a_damaged_npz_is_refused(tmp_path, damage):
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, images=some_bytes(N, H, W) // 32, labels=some_labels())
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        checksum = file.infolist()[0].CRC.to_bytes(4, "little")
    damaged = {
        "truncated": whole[: len(whole) // 2],
        "overwritten": whole[:150] + bytes(100) + whole[250:],
        "checksum": whole.replace(checksum, bytes(4)),
    }
    path.write_bytes(damaged[damage])
    assert "is not a readable .npz of plain arrays" in fault(str(path))


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("name", ["images", "labels", "class_names", "split"])
def test_f17_a_pickled_array_is_refused_and_its_payload_does_not_run(write, tmp_path, name):
    target = tmp_path / "payload-ran"
    array = np.empty(1, dtype=object)
    array[0] = Payload(target)
    assert re.search(r"is not a readable \.np[yz] of (a )?plain array", fault(write(**{name: array})))
    assert not target.exists()
    pickle.loads(pickle.dumps(Payload(target)))
    assert target.is_dir()  # it would have run


def test_f17_a_pickle_that_is_called_npz_does_not_run(tmp_path):
    target, path = tmp_path / "payload-ran", tmp_path / "mine.npz"
    path.write_bytes(pickle.dumps(Payload(target)))
    assert "is not a readable .npz of plain arrays" in fault(str(path))
    assert not target.exists()


@pytest.mark.parametrize("name", ["nowhere.npz", "."])
def test_f17_a_path_that_is_no_file_is_an_error_of_the_command(tmp_path, name):
    with pytest.raises(ConfigError, match=r"There is no file .*--data\.path") as caught:
        read_npz(str(tmp_path / name))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("shape", [(600, 16, 20, 3), (600, 3, 16, 20), (600, 16, 20)])
def test_a_mapped_set_is_sent_to_a_loader_process_as_the_place_of_its_file(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "labels.npy", np.arange(600) % 2)
    data = ArraysData(str(tmp_path)).source.dataset
    sent = pickle.dumps(data)
    assert len(sent) < 20_000 < images.nbytes / 5
    there = pickle.loads(sent)
    assert vars(there).keys() == vars(data).keys() == {"images", "labels"}
    for one, other in zip(data.batch([0, 7, 599]), there.batch([0, 7, 599]), strict=True):
        assert torch.equal(one, other)


def test_only_an_unchanged_mapping_is_sent_as_a_place(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.zeros((4, 1, 2, 2), np.uint8))
    own = np.load(tmp_path / "images.npy", mmap_mode="c")
    own += 7  # in memory alone
    part = np.load(tmp_path / "images.npy", mmap_mode="r")[1:3]
    for images in (own, part, own + 1, torch.ones(4, 1, 2, 2)):
        data = ArrayDataset(images, np.zeros(len(images), np.int64))
        assert torch.equal(pickle.loads(pickle.dumps(data)).batch([0, 1])[0], data.batch([0, 1])[0])
