"""A walk over a data folder skips hidden and system files, and reads each real folder once."""

import os
import shutil
from pathlib import Path

import pytest

from distrain.config import Data
from distrain.data.inspection.probe_image import NO_IMAGE, find_image
from distrain.data.layout.checks import check_requirements
from distrain.data.layout.image_folder import scan_image_folder
from distrain.data.layout.repeats import find_repeats
from distrain.data.layout.walk import Walk, images_below
from distrain.errors import DataError
from tests.data.writing import write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train/ and val/ with the classes cat and dog, two images in each."""
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            for number in range(2):
                write(tmp_path / split / name / f"{number}.png")
    return tmp_path


def read(folder: Path) -> dict[str, list[str]]:
    """The paths below the folder of what each split has, by class."""
    found = scan_image_folder(str(folder))
    return {
        f"{split}/{name}": [
            Path(path).relative_to(folder).as_posix()
            for path, target in zip(listing.paths, listing.targets, strict=True)
            if target == label
        ]
        for split, listing in found.items()
        for label, name in enumerate(listing.classes)
    }


def notes(folder: Path) -> list[str]:
    found = scan_image_folder(str(folder))
    words = [*(note for listing in found.values() for note in listing.notes), *find_repeats(found)]
    return [sentence.replace(str(folder), "DIR") for sentence in words]


PLAIN = {
    f"{split}/{name}": [f"{split}/{name}/{i}.png" for i in (0, 1)]
    for split in ("train", "val")
    for name in ("cat", "dog")
}


def test_plain_folder_gives_no_notes(folder: Path) -> None:
    assert (read(folder), notes(folder)) == (PLAIN, [])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("train/cat/._0.png", "1 file (train/cat/._0.png)"),
        ("train/cat/.hidden.png", "1 file (train/cat/.hidden.png)"),
        ("val/dog/Thumbs.db", "1 file (val/dog/Thumbs.db)"),
        ("train/cat/deep/desktop.ini", "1 file (train/cat/deep/desktop.ini)"),
        ("train/.ipynb_checkpoints/0-checkpoint.png", "1 folder (train/.ipynb_checkpoints)"),
        ("train/cat/.ipynb_checkpoints/0.png", "1 folder (train/cat/.ipynb_checkpoints)"),
        *(
            (f"{place}/{name}/0.png", f"1 folder ({place}/{name})")
            for place in ("train", "val/dog")
            for name in ("__MACOSX", "lost+found", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
        ),
    ],
)
def test_hidden_and_system_files_are_skipped_and_reported(folder: Path, name: str, words: str) -> None:
    write(folder / "x.png")
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / "x.png").rename(folder / name)
    assert read(folder) == PLAIN
    assert notes(folder) == [f"DIR: skipped hidden and system files: {words}"]


def test_skipped_files_are_counted_in_one_line(folder: Path) -> None:
    for number in range(3):
        write(folder / f"val/cat/._{number}.png")
    write(folder / "train/__MACOSX/cat/._0.png")
    assert notes(folder) == [
        "DIR: skipped hidden and system files: 3 files (val/cat/._0.png, ...) and 1 folder (train/__MACOSX)"
    ]


def test_images_of_unsupported_formats_are_reported(folder: Path) -> None:
    for name in ("train/cat/x.HEIC", "val/dog/y.jfif", "val/dog/notes.txt"):
        (folder / name).touch()
    assert read(folder) == PLAIN
    assert notes(folder) == [
        "DIR: skipped 2 images whose suffix is not supported (train/cat/x.HEIC, ...); convert to .jpg or .png"
    ]


def test_pipe_with_the_name_of_an_image_is_not_read(folder: Path) -> None:
    os.mkfifo(folder / "train/cat/x.png")
    (folder / "train/dog/x.png").symlink_to("../cat/x.png")
    (folder / "train/dog/self.png").symlink_to("self.png")
    assert read(folder) == {**PLAIN, "train/dog": [*PLAIN["train/dog"], "train/dog/self.png"]}
    assert find_image(str(folder / "train/cat/x.png")) == NO_IMAGE


def test_given_folder_is_read_whatever_its_name(tmp_path: Path) -> None:
    write(tmp_path / ".cache/__MACOSX/0.png")
    assert images_below(tmp_path / ".cache/__MACOSX") == [str(tmp_path / ".cache/__MACOSX/0.png")]


@pytest.mark.parametrize("target", ["..", "../..", ".", "../../..", "../dog", "deep", "/"])
@pytest.mark.parametrize("name", ["up", "a", "z"])
def test_link_to_a_folder_that_is_read_anyway_is_not_followed(folder: Path, target: str, name: str) -> None:
    write(folder / "train/cat/deep/er/2.png")
    expected = read(folder)
    (folder / "train/cat/deep" / name).symlink_to(target if target.startswith("/") else f"../{target}")
    assert read(folder) == expected
    assert notes(folder) == [f"DIR: did not follow 1 link to a folder that is read anyway (train/cat/deep/{name})"]


def test_loops_among_folders_behind_links_end(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    pool = tmp_path_factory.mktemp("pool")
    for place in ("a", "b/c"):
        write(pool / place / "0.png")
    (pool / "a/next").symlink_to(pool / "b")
    (pool / "b/c/next").symlink_to(pool / "a")
    (pool / "b/c/back").symlink_to(folder / "train")
    (folder / "train/cat/pool").symlink_to(pool)
    (folder / "train/dog/again").symlink_to(pool / "b")
    found = read(folder)
    assert {os.path.realpath(folder / path) for path in found["train/cat"][2:]} == {
        str(pool / place / "0.png") for place in ("a", "b/c")
    }
    assert len(found["train/cat"]) == 4
    assert found["train/dog"] == PLAIN["train/dog"]
    (words,) = notes(folder)
    assert words.startswith("DIR: did not follow 4 links to folders that are read anyway (train/cat/pool/")


def test_class_folders_and_splits_may_be_links(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    pool = tmp_path_factory.mktemp("pool")
    for name in ("cat", "dog"):
        write(pool / "photos" / name / "deep/0.png")
    (tmp_path / "train").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).symlink_to(pool / "photos" / name)
    (tmp_path / "val").symlink_to(pool / "photos")
    found = read(tmp_path)
    assert found == {f"{s}/{n}": [f"{s}/{n}/deep/0.png"] for s in ("train", "val") for n in ("cat", "dog")}
    assert notes(tmp_path) == [
        "2 images are listed more than once (2 in both train and val), such as DIR/train/cat/deep/0.png and "
        "DIR/val/cat/deep/0.png"
    ]


def test_looping_link_among_class_folders_is_not_a_class(folder: Path) -> None:
    (folder / "train/loop").symlink_to("..")
    (folder / "train/self").symlink_to("self")
    assert read(folder) == PLAIN
    assert notes(folder) == ["DIR: did not follow 1 link to a folder that is read anyway (train/loop)"]


def test_a_note_reports_images_listed_twice_and_their_contradictions(folder: Path) -> None:
    (folder / "train/dog/link.png").symlink_to("../cat/0.png")
    (folder / "train/dog/hard.png").hardlink_to(folder / "train/dog/1.png")
    (folder / "val/dog/link.png").symlink_to("../../train/dog/0.png")
    assert notes(folder) == [
        "3 images are listed more than once (1 under different labels, 1 in both train and val), such as "
        "DIR/train/cat/0.png and DIR/train/dog/link.png"
    ]


def test_dangling_links_are_listed_as_images(folder: Path) -> None:
    for name in ("x.png", "y.png"):
        (folder / "train/cat" / name).symlink_to("nowhere")
    assert read(folder)["train/cat"] == [f"train/cat/{name}.png" for name in "01xy"]
    assert notes(folder) == []


def test_note_is_one_line_of_text_whatever_a_name_holds(folder: Path) -> None:
    write(folder / "x.png").rename(folder / "train/cat" / os.fsdecode(b"._\n\xfc.png"))
    assert notes(folder) == [r"DIR: skipped hidden and system files: 1 file (train/cat/._\n\xfc.png)"]


def test_a_note_reports_validation_on_test(folder: Path) -> None:
    (folder / "val").rename(folder / "test")
    assert notes(folder) == ["DIR has no val/: validating on test/"]
    config = Data(source="imagefolder", path=str(folder), batch_size=1)
    assert check_requirements(config) == [f"{folder} has no val/: validating on test/"]
    assert check_requirements(config.model_copy(update={"source": "cifar10"})) == []  # which has always test/
    (folder / "test").rename(folder / "valid")
    assert notes(folder) == check_requirements(config) == []


def test_error_names_a_folder_that_cannot_be_read(folder: Path) -> None:
    walk = Walk(folder)
    walk.begin([folder / "train/cat"])
    shutil.rmtree(folder / "train/cat")
    with pytest.raises(DataError, match="train/cat cannot be read"):
        list(walk.below(folder / "train/cat"))
