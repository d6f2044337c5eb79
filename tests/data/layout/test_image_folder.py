"""Image folders are listed by class and name, with or without splits, whatever their class folders end in."""

from pathlib import Path

import pytest

from distrain.data.layout.image_folder import LABEL_ENDING, scan_image_folder
from distrain.errors import DataError
from tests.data.writing import write


@pytest.mark.parametrize("ending", ["", LABEL_ENDING])
def test_classes_are_the_names_of_their_folders_without_the_ending(tmp_path: Path, ending: str) -> None:
    for place in ("train/dog", "train/cat", "valid/dog"):
        for name in ("b.png", "a.png"):
            write(tmp_path / f"{place}{ending}" / name)
    found = scan_image_folder(str(tmp_path), ending=ending)
    assert found["train"].classes == found["val"].classes == ("cat", "dog")
    assert found["train"].targets == (0, 0, 1, 1)
    assert [Path(path).relative_to(tmp_path).as_posix() for path in found["train"].paths] == [
        f"train/{name}{ending}/{file}" for name in ("cat", "dog") for file in ("a.png", "b.png")
    ]
    assert found["val"].targets == (1, 1)
    assert set(scan_image_folder(str(tmp_path), splits=("train",), ending=ending)) == {"train"}


def test_class_folders_alone_are_training_samples(tmp_path: Path) -> None:
    for name in ("a_image", "b_image", "a_mask"):
        write(tmp_path / name / "1.png")
    assert {s: found.classes for s, found in scan_image_folder(str(tmp_path)).items()} == {
        "train": ("a_image", "a_mask", "b_image")
    }
    assert scan_image_folder(str(tmp_path), ending=LABEL_ENDING)["train"].classes == ("a", "b")


def test_error_names_a_folder_of_another_form(tmp_path: Path) -> None:
    write(tmp_path / "val" / "cat" / "1.png")
    with pytest.raises(DataError, match="has val/ but no train/"):
        scan_image_folder(str(tmp_path))
    write(tmp_path / "train" / "cat" / "1.png")
    with pytest.raises(DataError, match=r"train has no class folders; put .*, CLASS_image, below"):
        scan_image_folder(str(tmp_path), ending=LABEL_ENDING)
    with pytest.raises(DataError, match=r"1\.png is not a folder"):
        scan_image_folder(str(tmp_path / "train" / "cat" / "1.png"))
