"""DataModule's own settings; what it does to batches is tested in test_base, through a Trainer."""

import inspect
from typing import Any

import pytest

from lit_guide.data import DataModule, FolderData, ImageDataModule
from lit_guide.engine.config.parser import Parser


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


@pytest.mark.parametrize("init_args", [{"class_path": "DigitsData"}, {"class_path": "FolderData", "root": "photos"}])
def test_what_comes_from_the_command_line_is_plain_numbers(init_args: dict[str, Any]) -> None:
    parser = Parser()
    parser.add_subclass_arguments(ImageDataModule, "data")
    name = init_args["class_path"]
    flags = [f"--data.{key}={value}" for key, value in init_args.items() if key != "class_path"]
    config = parser.parse_args(["--data", f"lit_guide.data.{name}", *flags, "--data.image_size=16", "--data.batch_size=4"])
    data = parser.instantiate(config).data
    assert [type(number) for number in (*data.input_shape, data.batch_size)] == [int] * 4
