"""DataModule's own settings; what it does to batches is tested in test_base, through a Trainer."""

import inspect

import pytest

from lit_guide.data import DataModule, FolderData, ImageDataModule


def test_images_in_memory_have_augmentation_on_the_device_and_photos_do_not() -> None:
    assert {name: p.default for name, p in inspect.signature(DataModule).parameters.items() if name != "kwargs"} == {
        "shift": 0.125,
        "rotate": 0.0,
        "flip": False,
    }
    assert not {"shift", "rotate", "flip"} & set(inspect.signature(ImageDataModule).parameters)
    with pytest.raises(TypeError, match="shift"):
        FolderData("photos", shift=0.1)


def test_the_name_that_the_readme_gives_it_is_kept() -> None:
    from lit_guide.data.base import DataModule as Named
    from lit_guide.data.base import Source

    assert Named is DataModule
    assert Source.__name__ == "Source"
