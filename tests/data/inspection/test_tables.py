"""Manifests and packs are inspected like folders, with one class, several labels or values per image."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distrain.config import Data
from distrain.data.inspection.contact_sheet import collect_images
from distrain.data.inspection.folders import list_data
from distrain.data.inspection.image_table import probe_all
from distrain.data.inspection.rules import run_checks
from distrain.data.inspection.scan import Listing
from distrain.data.inspection.worker_pool import open_decode_pool
from distrain.errors import DataError
from tests.cli_runner import distrain
from tests.data.packing.packs import pack

Rows = list[tuple[str, str, str]]  # path, label, split


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """48 images of noise, 0.png to 47.png."""
    (tmp_path / "images").mkdir()
    numbers = np.random.default_rng(0)
    for number in range(48):
        pixels = numbers.integers(0, 256, (32, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{number}.png")
    return tmp_path


def rows(labels: tuple[str, ...]) -> Rows:
    """20 rows to train on and 4 to validate on for each of two labels."""
    return [(f"images/{number}.png", labels[number % 2], "train" if number < 40 else "val") for number in range(48)]


def write(folder: Path, rows: Rows) -> Path:
    lines = ["path,label,split", *map(",".join, rows)]
    (folder / "all.csv").write_text("\n".join(lines) + "\n")
    return folder / "all.csv"


def listed(path: Path, **fields: Any) -> Listing:
    return list_data(Data.model_validate({"source": "manifest", "path": str(path), "batch_size": 1, **fields}))


def check(listing: Listing) -> list[tuple[str, str, list[tuple[str, ...]]]]:
    with open_decode_pool(1) as readers:
        found = run_checks(listing, *probe_all(readers, listing, advance=lambda: None))
    return [(f.severity, f.kind, [item.paths for item in f.items]) for f in found]


def test_nothing_is_found_in_a_good_manifest(folder: Path) -> None:
    listing = listed(write(folder, rows(("ant", "bee"))))
    assert check(listing) == []
    assert listing.counts() == {"train": {"ant": 20, "bee": 20}, "val": {"ant": 4, "bee": 4}}
    assert (listing.absolute(listing.paths[3]), listing.paths[3]) == (str(folder / "images/3.png"), "images/3.png")


def test_what_is_wrong_in_a_manifest_is_found(folder: Path) -> None:
    (folder / "images/7.png").write_bytes(b"no image")
    table = rows(("ant", "bee"))
    table += [("images/none.png", "ant", "train"), ("images/2.png", "bee", "train"), ("images/5.png", "bee", "train")]
    table += [("images/4.png", "ant", "val")]
    assert check(listed(write(folder, table))) == [
        ("error", "unreadable", [("images/none.png",)]),
        ("error", "not-an-image", [("images/7.png",)]),
        ("error", "contradictory-label", [("images/2.png", "images/2.png")]),
        ("error", "leak", [("images/4.png", "images/4.png")]),
        ("warning", "duplicate", [("images/5.png", "images/5.png")]),
    ]


def test_labels_are_counted_each_and_compared_together(folder: Path) -> None:
    table = rows(("red;round", "red"))
    table += [
        ("images/0.png", "round; red", "train"),
        ("images/2.png", "round", "train"),
        ("images/4.png", "", "train"),
    ]
    listing = listed(write(folder, table), target="labels")
    assert listing.counts() == {"train": {"red": 41, "round": 22}, "val": {"red": 8, "round": 4}}
    assert listing.num_images() == {"train": 43, "val": 8}
    assert check(listing) == [
        ("error", "contradictory-label", [("images/2.png", "images/2.png"), ("images/4.png", "images/4.png")]),
        ("warning", "duplicate", [("images/0.png", "images/0.png")]),
    ]
    with open_decode_pool(1) as readers:
        assert {name: len(found) for name, found in collect_images(readers, listing, per_class=30).items()} == {
            "red": 30,
            "round": 22,
        }


def test_class_without_validation_samples_and_ambiguous_labels_are_reported(folder: Path) -> None:
    table = [row for row in rows(("red;round", "red")) if (row[1], row[2]) != ("red", "val")]
    assert check(listed(write(folder, table))) == [
        ("warning", "missing-class", [("red in train",)]),
        ("note", "reading", []),  # that `red;round` is read as one class
    ]
    table = [row for row in rows(("red", "blue")) if row[2] == "train"]
    assert check(listed(write(folder, table))) == [("note", "no-validation", [])]


def test_values_are_compared_like_labels(folder: Path) -> None:
    table = [(path, str(number), split) for number, (path, _, split) in enumerate(rows(("", "")))]
    table.append(("images/9.png", "8", "train"))
    listing = listed(write(folder, table), target="values")
    assert listing.counts() == {"train": {"with values": 41}, "val": {"with values": 8}}
    assert check(listing) == [("error", "contradictory-label", [("images/9.png", "images/9.png")])]


def test_pack_with_labels_counts_them_as_its_manifest_does(folder: Path) -> None:
    file = write(folder, rows(("red;round", "red")))
    pack(file, folder / "packed", source="manifest", target="labels")
    assert listed(folder / "packed").counts() == listed(file, target="labels").counts()
    assert check(listed(folder / "packed")) == []


def test_commands_read_a_manifest_by_its_name_and_keys_of_the_data(folder: Path) -> None:
    file = write(folder, rows(("red;round", "red")))
    file.write_text(file.read_text().replace("path,label", "file,what"))
    keys = ["--set=data.target=labels", "--set=data.label_column=what", "--json", "--workers=1"]
    done = distrain("data", "check", "all.csv", *keys, cwd=folder)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert (report["folder"], report["splits"]["train"]) == ("all.csv", {"red": 40, "round": 20})
    done = distrain("data", "info", "all.csv", *keys, cwd=folder)
    assert done.code == 0, done.err
    assert json.loads(done.out)["contact_sheet"] == "all-contact-sheet.png"
    done = distrain("data", "pack", "all.csv", "packed", "--target=labels", keys[1], "--json", cwd=folder)
    assert done.code == 0, done.err
    assert json.loads(done.out)["images"] == {"train": 40, "val": 8}
    shown = distrain("data", "check", "all.csv", *keys[:2], cwd=folder)
    assert shown.out.splitlines()[-1] == (
        "next     distrain fit imagefolder-resnet18 --data all.csv --set data.source=manifest --set data.target=labels "
        "--set data.label_column=what --set 'loss={name: bce}'"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("train.epochs=1", "--set train.epochs=1 does not say how data is read"),
        ("data.targt=labels", "did you mean data.target?"),
        ("data.source=digits", "data.source=digits cannot be inspected"),
        ("data.label_column=none", "but no 'none', the value of data.label_column"),
    ],
)
def test_key_that_does_not_affect_how_data_is_read_is_refused(folder: Path, change: str, words: str) -> None:
    write(folder, rows(("ant", "bee")))
    done = distrain("data", "check", "all.csv", f"--set={change}", cwd=folder)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert words in done.err


def test_label_folders_are_classes_by_their_ending(folder: Path) -> None:
    for split in ("train", "val"):
        for name in ("ants_image", "ants_mask"):
            (folder / split / name).mkdir(parents=True)
    for number in range(10):
        (folder / f"images/{number}.png").rename(folder / f"train/ants_image/{number}.png")
    (folder / "images/10.png").rename(folder / "val/ants_image/10.png")
    listing = listed(folder, source="labelfolders")
    assert listing.counts() == {"train": {"ants": 10}, "val": {"ants": 1}}
    assert check(listing) == [("warning", "stray-folder", [("train/ants_mask/",), ("val/ants_mask/",), ("images/",)])]


def test_error_names_a_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv does not exist"):
        listed(tmp_path / "none.csv")


def test_check_lists_the_bad_rows_of_a_manifest_up_to_a_number(folder: Path) -> None:
    bad = [f"images/{number}.png,green,train,more" for number in range(25)]
    table = ["path,label,split", *(",".join(row) for row in rows(("red", "blue"))), *bad]
    (folder / "all.csv").write_text("\n".join(table))
    done = distrain("data", "check", "all.csv", cwd=folder)
    assert done.code == 2
    told = done.err.splitlines()
    assert told[0] == "distrain: all.csv, line 50 does not have 3 cells like the first line"
    assert told[19].startswith("distrain: all.csv, line 69 ")
    assert told[20:] == ["distrain: and 5 more rows are wrong"]
