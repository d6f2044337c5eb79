"""A manifest gives each image its target, whatever its format, and errors name the line of a bad row."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from distrain.config import Data
from distrain.data.layout.bad_rows import BadRowsError
from distrain.data.layout.file_list import Listing
from distrain.data.layout.manifest import read_manifest
from distrain.data.layout.repeats import find_repeats
from distrain.errors import DataError
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


@pytest.mark.parametrize(
    ("name", "text", "fields"),
    [
        ("all.csv", "path;label;split\nimages/a.png;cat;train\nimages/b.png;ant;train\nimages/c.png;cat;val\n", {}),
        ("all.csv", as_csv(ROWS).replace(",", "\t"), {}),
        ("all.tsv", as_csv(ROWS).replace(",", "\t"), {}),
        ("all.csv", as_csv(ROWS).replace(",", "|"), {}),
        ("all.csv", as_csv(ROWS).replace(",", "~"), {"delimiter": "~"}),
        ("all.csv", as_csv(ROWS).replace(",", "\t"), {"delimiter": "tab"}),
        ("all.csv", as_csv(ROWS).replace("path,label", "filename,class"), {}),
        ("all.csv", as_csv(ROWS).replace("path,label", "Image,Category").replace(",", ";"), {}),
        ("all.csv", as_csv(ROWS).replace("path,label", "where,what"), {"path_column": "where", "label_column": "what"}),
        (
            "all.csv",
            as_csv([{"label": "no", **row, "kind": row["label"]} for row in ROWS]),
            {"label_column": "kind"},
        ),
        ("all.json", json.dumps(ROWS).replace('"path"', '"file_name"').replace('"label"', '"target"'), {}),
        ("all.jsonl", as_lines(ROWS).replace('"path"', '"where"'), {"path_column": "where"}),
    ],
)
def test_columns_are_found_by_their_delimiter_and_by_their_names(
    folder: Path, name: str, text: str, fields: dict[str, Any]
) -> None:
    (folder / name).write_text(text)
    found = read(folder / name, **fields)
    assert (found["train"].classes, found["train"].targets, found["val"].targets) == (("ant", "cat"), (1, 0), (1,))
    assert found["train"].paths == (str(folder / "images/a.png"), str(folder / "images/b.png"))


def notes(path: Path, **fields: Any) -> list[str]:
    found = read(path, **fields)
    return [words.replace(str(path), "FILE") for words in (*found["train"].notes, *find_repeats(found))]


def test_notes_report_automatic_choices(folder: Path) -> None:
    file = folder / "all.csv"
    file.write_text(as_csv(ROWS))
    assert notes(file) == []
    file.write_text("filename;class;split\nimages/a.png;cat;train\nimages/b.png;ant;test\n".replace("ant", "cat"))
    assert notes(file) == [
        "FILE: reading paths from column 'filename' and labels from column 'class'",
        "FILE has no validation rows: validating on its test rows",
    ]
    assert notes(file, path_column="filename", label_column="class", val_fraction=0.5) == []


def test_a_note_reports_images_that_are_listed_twice(folder: Path) -> None:
    file = folder / "all.csv"
    file.write_text("path,label\nimages/a.png,x\nimages/a.png,y\nimages/b.png,x\nimages/b.png,x\n")
    assert notes(file) == [
        f"2 images are listed more than once (1 under different labels), such as {folder / 'images/a.png'}"
    ]
    file.write_text("path,label,split\nimages/a.png,x,train\nimages/b.png,x,train\nimages/a.png,x,val\n")
    assert notes(file) == [
        f"1 image is listed more than once (1 in both train and val), such as {folder / 'images/a.png'}"
    ]


@pytest.mark.parametrize(
    ("labels", "first"),
    [
        (("ants;green", "ants", "bees;green"), "ants;green"),
        (('"[""ants"", ""green""]"', "ants", "x"), '["ants", "green"]'),
        (("this; that", "other", "more"), None),  # a name with a semicolon, of which nothing comes again
    ],
)
def test_a_note_hints_at_several_labels_in_one_cell(folder: Path, labels: tuple[str, ...], first: str | None) -> None:
    file = folder / "all.csv"
    rows = [f"images/{name}.png,{label}\n" for name, label in zip("abc", labels, strict=True)]
    file.write_text("".join(["path,label\n", *rows]))
    hint = f"FILE: {first!r} is read as one class; --set data.target=labels reads several"
    assert notes(file) == ([] if first is None else [hint])
    assert notes(file, target="labels") == []


def test_keys_of_a_manifest_are_refused_for_other_sources() -> None:
    for key, value in (("path_column", "x"), ("label_column", "x"), ("delimiter", ";")):
        with pytest.raises(ValidationError, match=f"data.{key}={value} is for data.source=manifest, not imagefolder"):
            Data.model_validate({"source": "imagefolder", "batch_size": 1, key: value})
        Data.model_validate({"source": "digits", "more": [{"source": "manifest"}], "batch_size": 1, key: value})


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
        ("all.csv", HEAD + "images/b.png\n", {}, ["line 3 does not have 2 cells"]),
        ("all.csv", HEAD + "images/b.png,x,y\n", {}, ["line 3 does not have 2 cells"]),
        ("all.csv", HEAD + "images/b.png, \n", {}, ["line 3 has label ''"]),
        ("all.csv", HEAD + ",x\n", {}, ["line 3 has no path"]),
        ("all.csv", HEAD + '"images/b.png,x\n', {}, ["cannot be read as CSV near line 2"]),
        ("all.csv", "path,label,label\nimages/a.png,x,y\n", {}, ["repeated columns: path, label, label; give each"]),
        (
            "all.csv",
            "path,kind\nimages/a.png,x\n",
            {},
            ["columns path, kind, but none called label", "label_column"],
        ),
        ("all.csv", "images/a.png,x\n", {}, ["columns images/a.png, x, but none called path", "data.path_column"]),
        ("all.csv", "where;what\nimages/a.png;x\n", {}, ["columns where, what, but none called path"]),
        ("all.csv", HEAD, {"path_column": "file"}, ["but no 'file', the value of data.path_column"]),
        ("all.csv", HEAD, {"label_column": "kind"}, ["but no 'kind', the value of data.label_column"]),
        ("all.csv", HEAD, {"delimiter": ";"}, ["columns path,label, but none called path"]),
        (
            "all.jsonl",
            '{"path": "images/a.png", "kind": "x"}',
            {},
            ["line 1 has the columns path, kind, but none called label"],
        ),
        (
            "all.csv",
            "path,label,split\nimages/a.png,x,train\nimages/b.png,x;y,val\n",
            {},
            ["label 'x;y', which no training row has", "or it is several labels: --set data.target=labels"],
        ),
        ("all.csv", "path,label\n", {}, ["has no rows"]),
        ("all.csv", "", {}, ["all.csv is empty; add a line with the names of its columns"]),
        ("all.csv", "path,label,split\nimages/a.png,x,trian\n", {}, ["line 2 has split 'trian'; use train or val"]),
        ("all.csv", "path,label,split\nimages/a.png,x,val\n", {}, ["no training rows"]),
        (
            "all.csv",
            "path,label,split\nimages/a.png,x,train\nimages/b.png,y,val\n",
            {},
            ["line 3 has label 'y', which no training row has"],
        ),
        ("all.csv", HEAD, {"target": "values"}, ["line 2 has label 'x', which is not a finite number"]),
        ("all.csv", HEAD.replace("x", "nan"), {"target": "values"}, ["line 2 has label 'nan', which is not a finite"]),
        ("all.csv", HEAD.replace("x", "1") + "images/b.png,1;2\n", {"target": "values"}, ["line 3 has 2 values"]),
        ("all.csv", HEAD.replace("x", ""), {"target": "labels"}, ["all other training rows have an empty label"]),
        ("all.csv", "path,label_x\nimages/a.png,2\n", {"target": "labels"}, ["line 2 has (2.0,)", "hold 0 or 1"]),
        ("all.csv", "path,label,label_x\nimages/a.png,2,3\n", {"target": "values"}, ["keep one of the two forms"]),
        ("all.jsonl", '{"path": "images/a.png", "label": ["x"]}', {}, ["line 1 has several", "data.target=labels"]),
        ("all.jsonl", '{"path": "images/a.png", "label": 1.5}', {}, ["line 1 has label 1.5"]),
        ("all.jsonl", '\n{"path": "images/a.png",', {}, ["line 2 cannot be read as JSON"]),
        ("all.jsonl", "[1, 2]\n", {}, ["line 1 is [1, 2], not an object"]),
        ("all.json", '{"path": "images/a.png"}', {}, ["contains dict, not a list"]),
        ("all.json", '[{"label": "x"}]', {}, ["entry 1 has the columns label, but none called path"]),
        ("all.txt", HEAD, {}, ["an unknown suffix", ".csv, .tsv, .json or .jsonl"]),
    ],
)
def test_bad_manifest_is_one_sentence_with_the_line(
    folder: Path, name: str, text: str, fields: dict[str, Any], words: list[str]
) -> None:
    (folder / name).write_text(text)
    message = sentence(folder / name, **fields)
    assert str(folder / name) in message
    assert all(word in message for word in words), message


def test_error_names_a_manifest_that_is_missing_or_not_text(folder: Path) -> None:
    assert "none.csv does not exist" in sentence(folder / "none.csv")
    assert "has no train.csv" in sentence(folder)
    (folder / "bad.csv").write_bytes(b"path,label\n\xff\xfe,x\n")
    assert "bad.csv is not UTF-8 text" in sentence(folder / "bad.csv")
    for name in ("train.csv", "train.json"):
        (folder / name).write_text("")
    assert "has train.csv and train.json; keep one" in sentence(folder)


@pytest.mark.parametrize(
    ("target", "good", "bad"),
    [
        ("class", "x", [",x", "images/none.png,x", "images/b.png,", "images/b.png", "images/b.png,x,y"]),
        ("labels", "x;y", ["images/none.png,x", "images/b.png", 'images/b.png,"[x"', ",x"]),
        ("values", "1;2", ["images/none.png,1;2", "images/b.png,1", "images/b.png,x;y", "images/b.png,1;nan"]),
    ],
)
def test_all_bad_rows_are_found_whatever_is_wrong_with_each(
    folder: Path, target: str, good: str, bad: list[str]
) -> None:
    (folder / "all.csv").write_text("\n".join(["path,label", f"images/a.png,{good}", *bad]))
    with pytest.raises(BadRowsError) as caught:
        read(folder / "all.csv", target=target)
    lines = [int(found[1]) for s in caught.value.sentences if (found := re.search(r"all\.csv, line (\d+)", s))]
    assert sorted(lines) == list(range(3, 3 + len(bad)))
    more = f"; {len(bad) - 1} more rows are wrong, `distrain data check` lists them"
    assert str(caught.value) == f"{caught.value.sentences[0]}{more}"


def test_folder_of_nothing_but_bad_rows_is_told_as_such(folder: Path) -> None:
    (folder / "train.csv").write_text("path,label\n,x\n,y\n")
    assert "line 2 has no path" in sentence(folder, target="values")


def test_bad_lines_of_json_are_found_too(folder: Path) -> None:
    good = '{"path": "images/a.png", "label": "x"}'
    (folder / "all.jsonl").write_text("\n".join([good, "{", "[1]", '{"path": "images/b.png"}', good]))
    with pytest.raises(BadRowsError) as caught:
        read(folder / "all.jsonl")
    assert len(caught.value.sentences) == 3
