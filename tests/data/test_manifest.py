"""A manifest gives each image its target, whatever way it is written, and every bad row is named with its line."""

import json
from pathlib import Path
from typing import Any

import pytest

from distrain.data.listing import Listing
from distrain.data.manifest import read_manifest
from distrain.errors import DataError
from distrain.recipe import Data
from tests.data.writing import write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abcd":
        write(tmp_path / "images" / f"{name}.png")
    return tmp_path


def read(path: Path, **fields: Any) -> dict[Any, Listing]:
    return read_manifest(Data.model_validate({"source": "manifest", "path": str(path), "batch_size": 1, **fields}))


def sentence(path: Path, **fields: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(path, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


ROWS: list[dict[str, Any]] = [
    {"path": "images/a.png", "label": "cat", "split": "train"},
    {"path": "images/b.png", "label": "ant", "split": "train"},
    {"path": "images/c.png", "label": "cat", "split": "val"},
]


def as_csv(rows: list[dict[str, Any]]) -> str:
    return "\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]) + "\n"


def as_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("all.csv", as_csv(ROWS)),
        ("all.csv", "\ufeff" + as_csv(ROWS).replace("\n", "\r\n")),
        ("all.csv", as_csv([{"id": 7, **row} for row in ROWS])),
        ("all.json", json.dumps(ROWS)),
        ("all.jsonl", as_lines(ROWS)),
    ],
)
def test_table_of_any_format_gives_classes_in_alphabetical_order(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text, encoding="utf-8", newline="")
    found = read(folder / name)
    assert found["train"].classes == found["val"].classes == ("ant", "cat")
    assert found["train"].targets == (1, 0)
    assert found["train"].paths == (str(folder / "images/a.png"), str(folder / "images/b.png"))
    assert (found["val"].targets, found["val"].paths) == ((1,), (str(folder / "images/c.png"),))


def test_folder_holds_a_table_for_each_split(folder: Path) -> None:
    (folder / "train.csv").write_text("path,label\nimages/a.png,10\nimages/b.png,9\n")
    (folder / "test.jsonl").write_text('{"path": "images/c.png", "label": 9}\n')
    found = read(folder)
    assert found["train"].classes == ("9", "10")
    assert (found["train"].targets, found["val"].targets) == ((1, 0), (0,))
    assert set(read(folder, val_fraction=0.5)) == {"train"}
    (folder / "val.csv").write_text("path,label\nimages/d.png,10\n")
    assert read(folder)["val"].targets == (1,)  # test is left for a test


def test_rows_without_a_split_train_and_absolute_paths_are_taken(folder: Path) -> None:
    (folder / "all.jsonl").write_text(as_lines([{"path": str(folder / "images/a.png"), "label": "x"}]))
    assert {split: found.targets for split, found in read(folder / "all.jsonl").items()} == {"train": (0,)}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("all.csv", "path,label\nimages/a.png,red;round\nimages/b.png,\nimages/c.png,round\n"),
        ("all.csv", 'path,label\nimages/a.png,"[""round"", ""red""]"\nimages/b.png,[]\nimages/c.png,round\n'),
        ("all.csv", "path,label_red,label_round\nimages/a.png,1,1\nimages/b.png,0,0\nimages/c.png,0,1\n"),
        (
            "all.jsonl",
            as_lines(
                [
                    {"path": "images/a.png", "label": ["red", "round"]},
                    {"path": "images/b.png", "label": []},
                    {"path": "images/c.png", "label": "round"},
                ]
            ),
        ),
    ],
)
def test_several_labels_become_ones_and_zeros(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    found = read(folder / name, target="labels")["train"]
    assert (found.target, found.classes) == ("labels", ("red", "round"))
    assert found.targets == ((1, 1), (0, 0), (0, 1))


@pytest.mark.parametrize(
    ("name", "text", "names", "values"),
    [
        ("all.csv", "path,label\nimages/a.png,1.5\nimages/b.png,-2e3\n", ("label",), ((1.5,), (-2000,))),
        ("all.csv", "path,label\nimages/a.png,1;2\nimages/b.png,3;4\n", ("label_0", "label_1"), ((1, 2), (3, 4))),
        ("all.csv", "path,label_x,label_y\nimages/a.png,1,2\nimages/b.png,3,4\n", ("x", "y"), ((1, 2), (3, 4))),
        ("all.json", '[{"path": "images/a.png", "label": [0.5, 1]}]', ("label_0", "label_1"), ((0.5, 1),)),
    ],
)
def test_numbers_become_values(folder: Path, name: str, text: str, names: tuple[str, ...], values: Any) -> None:
    (folder / name).write_text(text)
    found = read(folder / name, target="values")["train"]
    assert (found.target, found.classes, found.targets) == ("values", names, values)


HEAD = "path,label\nimages/a.png,x\n"


@pytest.mark.parametrize(
    ("name", "text", "fields", "words"),
    [
        ("all.csv", HEAD + "images/none.png,x\n", {}, ["line 3 names image", "images/none.png, which does not exist"]),
        ("all.csv", HEAD + "images/b.png\n", {}, ["line 3 has not 2 cells"]),
        ("all.csv", HEAD + "images/b.png,x,y\n", {}, ["line 3 has not 2 cells"]),
        ("all.csv", HEAD + "images/b.png, \n", {}, ["line 3 has label ''"]),
        ("all.csv", HEAD + ",x\n", {}, ["line 3 has no path"]),
        ("all.csv", HEAD + '"images/b.png,x\n', {}, ["cannot be read as CSV near line 2"]),
        ("all.csv", "path;label\nimages/a.png;x\n", {}, ["columns path;label", "with commas"]),
        ("all.csv", "path,label,label\nimages/a.png,x,y\n", {}, ["once each"]),
        ("all.csv", "path,kind\nimages/a.png,x\n", {}, ["line 2 has no label; it has path, kind"]),
        ("all.csv", "path,label\n", {}, ["has no rows"]),
        ("all.csv", "", {}, ["columns none"]),
        ("all.csv", "path,label,split\nimages/a.png,x,trian\n", {}, ["line 2 has split 'trian'; take train or val"]),
        ("all.csv", "path,label,split\nimages/a.png,x,val\n", {}, ["no row to train on"]),
        (
            "all.csv",
            "path,label,split\nimages/a.png,x,train\nimages/b.png,y,val\n",
            {},
            ["line 3 has label 'y', which no row to train on has"],
        ),
        ("all.csv", HEAD, {"target": "values"}, ["line 2 has label 'x', which is not a finite number"]),
        ("all.csv", HEAD.replace("x", "nan"), {"target": "values"}, ["line 2 has label 'nan', which is not a finite"]),
        ("all.csv", HEAD.replace("x", "1") + "images/b.png,1;2\n", {"target": "values"}, ["line 3 has 2 values"]),
        ("all.csv", HEAD.replace("x", ""), {"target": "labels"}, ["all other rows to train on have an empty label"]),
        ("all.csv", "path,label_x\nimages/a.png,2\n", {"target": "labels"}, ["line 2 has (2.0,)", "hold 0 or 1"]),
        ("all.csv", "path,label,label_x\nimages/a.png,2,3\n", {"target": "values"}, ["keep one of the two forms"]),
        ("all.jsonl", '{"path": "images/a.png", "label": ["x"]}', {}, ["line 1 has several", "data.target=labels"]),
        ("all.jsonl", '{"path": "images/a.png", "label": 1.5}', {}, ["line 1 has label 1.5"]),
        ("all.jsonl", '\n{"path": "images/a.png",', {}, ["line 2 cannot be read as JSON"]),
        ("all.jsonl", "[1, 2]\n", {}, ["line 1 is [1, 2], not an object"]),
        ("all.json", '{"path": "images/a.png"}', {}, ["holds dict, not a list"]),
        ("all.json", '[{"label": "x"}]', {}, ["entry 1 has no path; it has label"]),
        ("all.txt", HEAD, {}, ["a name that tells no format", ".csv, .json or .jsonl"]),
    ],
)
def test_bad_manifest_is_one_sentence_with_the_line(
    folder: Path, name: str, text: str, fields: dict[str, Any], words: list[str]
) -> None:
    (folder / name).write_text(text)
    told = sentence(folder / name, **fields)
    assert str(folder / name) in told
    assert all(word in told for word in words), told


def test_manifest_that_is_not_there_or_not_text_is_named(folder: Path) -> None:
    assert "none.csv does not exist" in sentence(folder / "none.csv")
    assert "holds no train.csv" in sentence(folder)
    (folder / "bad.csv").write_bytes(b"path,label\n\xff\xfe,x\n")
    assert "bad.csv is not UTF-8 text" in sentence(folder / "bad.csv")
    for name in ("train.csv", "train.json"):
        (folder / name).write_text("")
    assert "holds train.csv and train.json; keep one" in sentence(folder)
