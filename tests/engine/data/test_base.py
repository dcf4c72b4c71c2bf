import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as TF

from lit_guide.data import ArrayDataset, DataModule, Source
from lit_guide.engine.errors import ConfigError, UserError
from tests.conftest import Run

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),  # Lightning 2.6 on torch 2.11 and up
]

NONE = np.empty(0, dtype=np.int64)


class Arrays(DataModule):
    def __init__(self, images, labels, rows=None, classes=None, **kwargs):
        super().__init__(**kwargs)
        self.given = images, labels, rows, classes

    def load(self):
        images, labels, rows, classes = self.given
        names = [f"class {k}" for k in range(classes or int(labels.max()) + 1)]
        return Source(ArrayDataset(images, labels), labels, names, rows)


def some_bytes(N=40, C=2, H=6, W=9):
    return np.random.default_rng(0).integers(0, 256, (N, C, H, W), dtype=np.uint8)


def data_of(N=40, C=2, H=6, W=9, rows=None, **kwargs):
    return Arrays(some_bytes(N, C, H, W), np.arange(N) % 4, rows, **kwargs)


class Recorder(LightningModule):
    """Keeps the batches that a real Trainer hands over."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen = {"train": [], "val": [], "test": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].append(batch)
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.seen["val"].append(batch)

    def test_step(self, batch, batch_idx):
        self.seen["test"].append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path, **kwargs):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(default_root_dir=tmp_path, accelerator="cpu", max_epochs=1, **quiet, **kwargs)


def fitted(tmp_path, data):
    seed_everything(0, verbose=False)
    recorder = Recorder()
    trainer(tmp_path).fit(recorder, data)
    return recorder


# --- Loaders


def test_train_loader_gives_every_training_image_once_as_uint8_with_its_label():
    data = data_of(batch_size=7)
    batches = list(data.train_dataloader())
    images, labels = data.given[:2]
    assert {image_BCHW.dtype for image_BCHW, _ in batches} == {torch.uint8}
    assert {label_B.dtype for _, label_B in batches} == {torch.int64}
    assert [len(label_B) for _, label_B in batches] == [7, 7, 7, 3]
    row_of = {image.tobytes(): row for row, image in enumerate(images)}
    seen = [row_of[image.numpy().tobytes()] for image_BCHW, _ in batches for image in image_BCHW]
    assert sorted(seen) == data.rows["train"].tolist()
    assert seen != data.rows["train"].tolist(), "not shuffled"
    assert torch.cat([label_B for _, label_B in batches]).tolist() == labels[seen].tolist()


@pytest.mark.parametrize("split", ["val", "test", "predict"])
def test_other_loaders_give_their_split_in_order(split):
    data = data_of(batch_size=3)
    rows = data.rows["test" if split == "predict" else split]
    batches = list(getattr(data, f"{split}_dataloader")())
    np.testing.assert_array_equal(torch.cat([image_BCHW for image_BCHW, _ in batches]).numpy(), data.given[0][rows])
    assert torch.cat([label_B for _, label_B in batches]).tolist() == data.given[1][rows].tolist()


def test_a_dataset_of_single_samples_is_batched_as_usual():
    class OneByOne(Dataset):
        def __init__(self, images, labels):
            self.images, self.labels = images, labels

        def __len__(self):
            return len(self.images)

        def __getitem__(self, index):
            assert type(index) is int  # what most datasets expect, and a NumPy integer is not
            return torch.from_numpy(self.images[index]), torch.tensor(self.labels[index])

    class Data(Arrays):
        def load(self):
            source = super().load()
            return Source(OneByOne(*self.given[:2]), source.labels_N, source.class_names)

    data = Data(some_bytes(), np.arange(40) % 4)
    image_BCHW, label_B = next(iter(data.test_dataloader()))
    np.testing.assert_array_equal(image_BCHW.numpy(), data.given[0][data.rows["test"]])
    assert label_B.tolist() == data.given[1][data.rows["test"]].tolist()


def test_worker_processes_give_the_same_test_batches():
    here, apart = data_of(batch_size=4), data_of(batch_size=4, num_workers=1)
    for (image_BCHW, label_B), (other_BCHW, other_B) in zip(here.test_dataloader(), apart.test_dataloader(), strict=True):
        assert torch.equal(image_BCHW, other_BCHW)
        assert torch.equal(label_B, other_B)


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"), [(17, 8, [8, 8]), (18, 8, [8, 8, 2]), (1, 8, [1]), (3, 1, [1, 1, 1]), (16, 8, [8, 8])]
)
def test_a_last_batch_of_one_is_left_out_in_training_only(count, batch_size, sizes):
    rows = {"train": np.arange(count), "val": np.arange(count), "test": np.arange(count)}
    data = data_of(rows=rows, batch_size=batch_size)
    assert [len(label_B) for _, label_B in data.train_dataloader()] == sizes
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert sum(len(label_B) for _, label_B in loader) == count


@pytest.mark.filterwarnings("ignore:Total length of `list`")
def test_an_empty_validation_split_gives_no_loader_and_training_runs(tmp_path):
    data = data_of(val_fraction=0.0)
    assert data.val_dataloader() == []
    seen = fitted(tmp_path, data).seen
    assert len(seen["train"]) == 1
    assert seen["val"] == []


@pytest.mark.parametrize(("split", "advice"), [("train", "lower data.val_fraction"), ("test", "set data.test_fraction above 0")])
def test_an_empty_split_that_is_needed_is_an_error_with_advice(split, advice):
    rows = {"train": np.arange(9), "val": NONE, "test": np.arange(9)} | {split: NONE}
    with pytest.raises(UserError, match=f"The {split} split is empty: {advice}"):
        getattr(data_of(rows=rows), f"{split}_dataloader")()


# --- What the data say of themselves


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_mean_and_std_are_numpys_over_the_training_split_only(dtype, channels):
    images = some_bytes(700, channels)
    data = Arrays(images if dtype == np.uint8 else (images / 255).astype(dtype), np.arange(700) % 4)
    data.given[0][data.rows["test"]] = 1  # must not count
    pixels_NCHW = images[data.rows["train"]] / 255
    np.testing.assert_allclose(data.mean, pixels_NCHW.mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(data.std, pixels_NCHW.std((0, 2, 3)), atol=1e-6)
    assert {type(value) for value in data.mean + data.std} == {float}


def test_statistics_count_every_training_image_even_a_last_batch_of_one():
    images = np.zeros((257, 1, 2, 2), dtype=np.uint8)
    images[256] = 255
    rows = {"train": np.arange(257), "val": NONE, "test": NONE}
    data = Arrays(images, np.arange(257) % 2, rows)
    assert data.mean == [pytest.approx(1 / 257, abs=1e-6)]


def test_a_constant_channel_has_std_one():
    images = some_bytes()
    images[:, 1] = 200
    data = Arrays(images, np.arange(40) % 4)
    assert data.std[0] == pytest.approx(images[data.rows["train"], 0].std() / 255, abs=1e-6)
    assert data.std[1] == 1.0
    assert data.mean[1] == pytest.approx(200 / 255, abs=1e-6)


def test_class_names_follow_the_source():
    data = data_of(val_fraction=0.2, test_fraction=0.3)
    assert data.class_names == ["class 0", "class 1", "class 2", "class 3"]
    assert data.sample_names("test") == [f"row {row}" for row in data.rows["test"]]


def test_one_class_is_not_enough():
    with pytest.raises(UserError, match="1 class: a classifier needs at least two"):
        _ = Arrays(some_bytes(), np.zeros(40, dtype=np.int64)).class_names


def test_source_is_loaded_once():
    class Counting(Arrays):
        loads = 0

        def load(self):
            Counting.loads += 1
            return super().load()

    data = Counting(some_bytes(), np.arange(40) % 4)
    _ = data.mean, data.rows, data.input_shape, data.class_names, list(data.train_dataloader())
    assert Counting.loads == 1


def test_test_split_is_the_same_for_every_training_seed():
    splits = []
    for seed in (1, 2):
        seed_everything(seed, verbose=False)
        splits.append(data_of().rows["test"].tolist())
    assert splits[0] == splits[1]
    assert splits[0] != data_of(split_seed=1).rows["test"].tolist()


def test_a_source_with_its_own_split_keeps_it():
    rows = {"train": np.arange(5, 20), "val": np.arange(5), "test": np.array([39, 21])}
    data = data_of(rows=rows, val_fraction=0.4)
    assert {name: data.rows[name].tolist() for name in rows} == {name: part.tolist() for name, part in rows.items()}
    assert data.sample_names("test") == ["row 39", "row 21"]


# --- On the device


def test_image_size_resizes_as_torchvision_does(tmp_path):
    data = data_of(image_size=12, augment=False)
    assert data.input_shape == (2, 12, 12)
    recorder = Recorder()
    trainer(tmp_path).test(recorder, data, verbose=False)
    image_BCHW = torch.cat([image_BCHW for image_BCHW, _ in recorder.seen["test"]])
    pixels_BCHW = torch.from_numpy(data.given[0][data.rows["test"]]).float() / 255
    torch.testing.assert_close(image_BCHW, TF.resize(pixels_BCHW, [12, 12], antialias=True))


def test_without_image_size_images_keep_their_shape():
    assert data_of().input_shape == (2, 6, 9)


def as_rows(batches, images):
    """The row of each plain image of these batches; -1 for an image that is none of the plain ones."""
    row_of = {image.tobytes(): row for row, image in enumerate(images)}
    bytes_BCHW = torch.cat([image_BCHW for image_BCHW, _ in batches]).mul(255).round().to(torch.uint8).numpy()
    return [row_of.get(image.tobytes(), -1) for image in bytes_BCHW]


@pytest.mark.parametrize("settings", [{"shift": 0.5, "flip": True}, {"rotate": 20.0}, {"shift": 0.5, "rotate": 20.0}])
def test_training_images_are_augmented_and_the_others_never(tmp_path, settings):
    data = data_of(N=80, H=12, W=12, **settings)
    recorder = fitted(tmp_path, data)
    images = data.given[0]
    train = as_rows(recorder.seen["train"], images)
    assert len(train) == len(data.rows["train"])
    assert train.count(-1) > 0.7 * len(train)
    # Validation ran before (sanity check) and within the epoch.
    assert as_rows(recorder.seen["val"], images) == 2 * data.rows["val"].tolist()
    trainer(tmp_path).test(recorder, data, verbose=False)
    assert as_rows(recorder.seen["test"], images) == data.rows["test"].tolist()
    for batches in recorder.seen.values():
        for image_BCHW, label_B in batches:
            assert image_BCHW.dtype == torch.float32
            assert image_BCHW.shape[1:] == (2, 12, 12)
            assert 0 <= image_BCHW.min() <= image_BCHW.max() <= 1 + 1e-6
            assert label_B.dtype == torch.int64


def test_augment_false_leaves_training_images_as_they_are(tmp_path):
    data = data_of(augment=False, shift=0.5, rotate=30.0, flip=True)
    seen = fitted(tmp_path, data).seen["train"]
    rows = as_rows(seen, data.given[0])
    assert sorted(rows) == data.rows["train"].tolist()
    assert torch.cat([label_B for _, label_B in seen]).tolist() == data.given[1][rows].tolist()


def test_images_are_mirrored_in_training_only_if_flip_is_given(tmp_path):
    for flip in (False, True):
        data = data_of(N=200, shift=0.0, flip=flip)
        rows = np.array(as_rows(fitted(tmp_path, data).seen["train"], data.given[0]))
        mirrored = np.mean(rows == -1)
        assert (0.3 < mirrored < 0.7) if flip else mirrored == 0


def test_an_image_without_label_passes_unchanged():
    example_BCHW = torch.rand(1, 2, 6, 9)
    assert data_of(image_size=12).on_after_batch_transfer(example_BCHW, 0) is example_BCHW


# --- Wrong settings


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.2), (0.1, -0.2), (0.5, 0.5), (1.0, 0.0), (0.7, 0.6), (float("nan"), 0.1)])
def test_fractions_that_leave_nothing_to_train_on_are_refused(val, test):
    with pytest.raises(ConfigError, match=r"data\.val_fraction .* data\.test_fraction .* less than 1"):
        data_of(val_fraction=val, test_fraction=test)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("batch_size", 0, "int above 0"),
        ("batch_size", -3, "int above 0"),
        ("batch_size", 1.5, "int above 0"),
        ("image_size", 0, "int above 0, or null"),
        ("image_size", -8, "int above 0, or null"),
        ("num_workers", -1, "int of 0 or more, or 'auto'"),
        ("mixup", -0.1, "float of 0 or more"),
        ("cutmix", "nan", "float of 0 or more"),
        ("shift", -0.1, "float of 0 or more"),
        ("rotate", "far", "float of 0 or more"),
    ],
)
def test_numbers_that_can_not_be_are_refused_on_the_command_line_and_in_a_file(run: Run, tmp_path, key, value, words):
    (tmp_path / "own.yaml").write_text(f"data: {{init_args: {{{key}: {value}}}}}")
    for args in ([f"--data.{key}", value], ["--config", "own.yaml"]):
        outcome = run("fit", "--config", "configs/digits.yaml", *args, "--run_dir", "run")
        assert (outcome.code, outcome.err) == (2, f"lit-guide: data.{key} is {value}: expected {words}.\n")
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_f02_a_few_batches_learnt_by_heart_go_on_where_they_stopped(run: Run):
    few = [
        "--config",
        "configs/digits.yaml",
        "--accelerator",
        "cpu",
        "--trainer.overfit_batches",
        "4",
        "--trainer.max_epochs",
        "3",
    ]
    few += ["--model.scheduler", "null", "--trainer.enable_model_summary", "false"]
    few += [f"--export.{name}.enabled=false" for name in ("onnx", "torchscript", "pt2")]
    assert run("fit", *few, "--run_dir", "whole").code == 0
    assert run("fit", *few, "--run_dir", "part", "--trainer.max_steps", "6").code == 0
    assert run("fit", "--run", "part", "--trainer.max_steps", "12").code == 0
    whole, part = (torch.load(f"{name}/checkpoints/last.ckpt", weights_only=True) for name in ("whole", "part"))
    assert whole["global_step"] == part["global_step"] == 12
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, part["state_dict"][name]), name
