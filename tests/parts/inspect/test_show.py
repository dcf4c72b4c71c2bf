import numpy as np
import pytest
import torch
from PIL import Image

from lit_guide.data import ArraysData, FolderData
from lit_guide.parts.inspect.show import class_chart, contact_sheet, show

RED, BLUE = (250, 0, 0), (0, 0, 250)


@pytest.fixture
def folder(tmp_path):
    """Ten red squares and twenty blue rectangles."""
    for name, colour, size, count in (("red", RED, (48, 48), 10), ("blue", BLUE, (96, 48), 20)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for at in range(count):
            Image.new("RGB", size, (*colour[:1], at, *colour[2:])).save(tmp_path / "photos" / name / f"{at}.png")
    return tmp_path / "photos"


def axes_of(figure):
    return [axes for axes in figure.axes if axes.images]


def pixels(axes):
    return np.asarray(axes.images[0].get_array())


def test_three_pictures_are_written(folder, tmp_path):
    torch.manual_seed(0)
    paths = show(FolderData(str(folder), image_size=32, batch_size=8, num_workers=0), tmp_path / "out" / "deep", images=6)
    assert [path.name for path in paths] == ["batch.png", "raw.png", "classes.png"]
    sizes = []
    for path in paths:
        with Image.open(path) as image:
            image.load()
            sizes.append(image.size)
    assert sizes[0] == sizes[1] == (1140, 220)  # one row of six at 100 dots an inch
    colours = np.asarray(Image.open(paths[0]).convert("RGB")).reshape(-1, 3)
    assert ((colours[:, 2] > 200) & (colours[:, 0] < 60)).any()  # blue ones are drawn


def sheets(monkeypatch, data, tmp_path, images):
    """What `show` hands to be drawn: (images, titles) of batch and raw."""
    drawn = []

    def keep(images, titles):
        drawn.append((images, titles))
        return contact_sheet(images, titles)

    monkeypatch.setattr("lit_guide.parts.inspect.show.contact_sheet", keep)
    show(data, tmp_path / "out", images)
    return drawn


def test_both_sheets_show_the_same_images_and_the_labels_are_theirs(monkeypatch, folder, tmp_path):
    torch.manual_seed(0)
    data = FolderData(str(folder), image_size=32, batch_size=16, num_workers=0)
    (batch, batch_titles), (raw, raw_titles) = sheets(monkeypatch, data, tmp_path, 12)
    assert len(batch) == len(raw) == 12
    assert set(batch_titles) == {"red", "blue"}
    for image_CHW, title, raw_CHW, raw_title in zip(batch, batch_titles, raw, raw_titles, strict=True):
        assert image_CHW.shape == (3, 32, 32)
        assert image_CHW.dtype == torch.float32
        assert image_CHW.max() <= 1
        # The green of each file is its number: the same file is in both places, and it is the one that is named.
        assert raw_title == f"{raw_CHW[1, 0, 0]}.png\n" + {"red": "red, 48 x 48", "blue": "blue, 96 x 48"}[title]
        assert (image_CHW[1] * 255).round().unique().tolist() == raw_CHW[1].unique().tolist()
        assert (image_CHW[0].mean() > image_CHW[2].mean()) == (title == "red")


def test_a_mixed_image_names_both_classes_with_their_shares(monkeypatch, folder, tmp_path):
    torch.manual_seed(0)
    data = FolderData(str(folder), image_size=32, batch_size=16, num_workers=0, mixup=5.0)
    (batch, titles), _ = sheets(monkeypatch, data, tmp_path, 16)
    mixed = [at for at, title in enumerate(titles) if " + " in title]
    assert mixed
    for at in mixed:
        shares = {name: float(share) for name, share, _ in (part.split() for part in titles[at].split(" + "))}
        assert set(shares) == {"red", "blue"}
        assert sum(shares.values()) == pytest.approx(100, abs=1)
        red = shares["red"]
        assert batch[at][0].mean().item() == pytest.approx(red / 100 * 250 / 255, abs=0.02)


def test_large_photos_are_drawn_small_under_their_own_size(monkeypatch, tmp_path):
    for name in ("red", "blue"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for at in range(6):
            Image.new("RGB", (900, 600), (at, 0, 0)).save(tmp_path / "photos" / name / f"{at}.jpg")
    _, (raw, titles) = sheets(monkeypatch, FolderData(str(tmp_path / "photos"), batch_size=4, num_workers=0), tmp_path, 4)
    assert {image_CHW.shape for image_CHW in raw} == {(3, 256, 384)}
    assert {title.partition(", ")[2] for title in titles} == {"900 x 600"}


def test_fewer_images_than_asked_for_are_a_whole_batch(monkeypatch, folder, tmp_path):
    data = FolderData(str(folder), image_size=32, batch_size=4, num_workers=0)
    (batch, _), (raw, _) = sheets(monkeypatch, data, tmp_path, 24)
    assert len(batch) == len(raw) == 4


def test_arrays_are_drawn_too(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(40) % 2, class_names=["$a$", "<b>"])
    for path in show(ArraysData(str(tmp_path / "a.npz")), tmp_path / "out", 12):
        with Image.open(path) as image:
            assert image.size[0] > 500


def test_a_sheet_draws_each_image_under_its_title():
    grey_1HW = torch.full((1, 4, 6), 128, dtype=torch.uint8)
    rgba_4HW = torch.tensor([0.2, 0.4, 0.6, 1.0])[:, None, None].expand(4, 5, 5)
    figure = contact_sheet([grey_1HW, rgba_4HW], ["grey", "with $alpha"])
    first, second = axes_of(figure)
    assert (first.get_title(), second.get_title()) == ("grey", "with $alpha")
    np.testing.assert_allclose(pixels(first), np.full((4, 6), 128 / 255), atol=1e-6)
    np.testing.assert_allclose(pixels(second)[0, 0], [0.2, 0.4, 0.6], atol=1e-6)
    assert first.images[0].get_clim() == (0, 1)


def bars_of(figure):
    (axes,) = figure.axes
    return [label.get_text() for label in axes.get_yticklabels()], {
        container.get_label(): [bar.get_width() for bar in container] for container in axes.containers
    }


def test_the_chart_has_a_bar_for_each_class_and_split_the_largest_first():
    names, bars = bars_of(class_chart(["few", "many", "some"], {"train": [1, 30, 5], "val": [0, 4, 2]}))
    assert names == ["many", "some", "few"]
    assert bars == {"train": [30, 5, 1], "val": [4, 2, 0]}


def test_of_many_classes_the_chart_keeps_the_largest_and_the_smallest():
    figure = class_chart([f"c{k}" for k in range(1000)], {"train": list(range(1000))})
    names, bars = bars_of(figure)
    assert names[:2] + names[-2:] == ["c999", "c998", "c1", "c0"]
    assert bars["train"][19:21] == [980, 19]
    assert "960 in the middle left out" in figure.axes[0].get_title()
