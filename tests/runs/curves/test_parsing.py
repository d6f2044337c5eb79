"""Odd, damaged and hostile files of metrics cost only what cannot be read in them."""

import json
import math
import os
import tracemalloc
from pathlib import Path

import pytest

from distrain.errors import RunError
from distrain.runs.curves import access, list_keys, parsing, read_curves
from distrain.runs.directory import RunDirectory
from tests.runs.curves.full_read import BATCH, line, store_files

DAMAGED = [
    b"",
    b"{}",
    b"[1]",
    b"nonsense",
    b'{"train/loss": 1}',
    b'{"step": true, "train/loss": 1}',
    b'{"step": 1.5, "train/loss": 1}',
    b'{"step": null, "train/loss": 1}',
    b'{"step": 9223372036854775808, "train/loss": 1}',
    b'{"step": 1, "train/loss": 1}}',
    b'{"step": 1, "lo{"step": 2, "train/loss": 1}',
    b"[" * 100_000,
    b'{"step": 1, "train/loss": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    b'{"step": 1, "train/loss": ' + b"1" * 5000 + b"}",
    b'{"step": 1, "train/loss": 1, "padding": "' + b"x" * parsing.MAX_LINE + b'"}',
    b'{"step": 1, "train/loss": 1, "padding": "' + b"x" * 4 * parsing.MAX_LINE + b'"}',
]


@pytest.fixture(params=[0, 1 << 40], ids=["stored", "not stored"])
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> RunDirectory:
    monkeypatch.setattr(access, "UNSTORED_BYTES", request.param)
    (tmp_path / "run").mkdir()
    return RunDirectory(tmp_path / "run")


def test_damaged_lines_are_skipped(run: RunDirectory) -> None:
    good = [line(step, train_loss=step / 7).encode() for step in range(len(DAMAGED) + 1)]
    lines = [good[0], *(text for pair in zip(DAMAGED, good[1:], strict=True) for text in (pair[0] + b"\n", pair[1]))]
    run.metrics.write_bytes(b"".join(lines) + good[0].strip())  # the last one is not finished
    found = read_curves(run)
    assert found.records == len(good)
    assert found.curves["train/loss"].mean.tolist() == [step / 7 for step in range(len(good))]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("NaN", math.nan),
        ("null", math.nan),
        ("Infinity", math.inf),
        ("-Infinity", -math.inf),
        ("1e999", math.inf),
        ("1" + "0" * 400, math.inf),
        ("-1" + "0" * 400, -math.inf),
        ("18446744073709551617", 2.0**64),
        ("9007199254740993", 2.0**53),
        ("0.1000000000000000055511151231257827021181583404541015625", 0.1),
        ("5e-324", 5e-324),
        ("-0.0", -0.0),
        ("123456789.12345678", 123456789.12345678),
    ],
)
def test_numbers_are_those_that_json_reads(run: RunDirectory, text: str, value: float) -> None:
    run.metrics.write_text(f'{{"step": 1, "a/b": {text}}}\n{{"step": 2, "a/b": 1.5}}\n')
    curve = read_curves(run).curves["a/b"]
    assert list(map(repr, curve.mean.tolist())) == [repr(value), "1.5"]
    assert list(map(repr, curve.time.tolist())) == ["nan", "nan"]
    assert curve.num_not_finite.tolist() == [0 if math.isfinite(value) else 1, 0]
    assert json.loads(json.dumps(curve.as_json(), allow_nan=False))["max"][0] == (
        value if math.isfinite(value) else None
    )


def test_values_that_are_no_numbers_cost_only_themselves(run: RunDirectory) -> None:
    odd = {"a/text": "1.5", "a/true": True, "a/list": [1], "a/object": {"x": 1}, "epoch": "2", "time": [], "a/b": 0.25}
    run.metrics.write_text(json.dumps({"step": 1, **odd}) + "\n" + line(2, a_b=0.5))
    found = read_curves(run)
    assert list(found.curves) == ["a/b"]
    curve = found.curves["a/b"]
    assert curve.mean.tolist() == [0.25, 0.5]
    assert repr(curve.epoch.tolist()) == "[nan, 0.02]"


def test_names_of_metrics_can_be_anything(run: RunDirectory) -> None:
    names = ["../../x/y", "/", "a/\n\0", "a/" + "é" * 400, "a/\ud800", 'a/"<script>', "C:\\/"]
    run.metrics.write_text(
        "".join(json.dumps({"step": step, **dict.fromkeys(names, 1.5)}) + "\n" for step in range(5000))
    )
    for _ in range(2):
        assert list_keys(run) == names
        assert all(len(curve.step) for curve in read_curves(run, points=10).curves.values())
    assert {path.name for path in run.path.iterdir()} <= {"metrics.jsonl", "curves"}
    with pytest.raises(RunError, match="has no metric"):
        read_curves(run, keys=["a/" + "x" * 100_000])


def test_text_that_is_not_utf_8_is_read(run: RunDirectory) -> None:
    run.metrics.write_bytes(b'{"step": 1, "a/b": 1.5, "note": "\xff\xfe"}\r\n{"step": 2, "a/\xff": 2}\n')
    assert list_keys(run) == ["a/b", "a/\ufffd"]


def test_numbers_of_metrics_and_of_values_in_memory_are_limited(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parsing, "MAX_KEYS", 100)
    monkeypatch.setattr(parsing, "MAX_VALUES", 1000)
    with run.metrics.open("w") as file:
        for step in range(3000):
            values = {f"a/{(step * 7 + number) % 400}": step + number for number in range(20)}
            file.write(json.dumps({"step": step, **values}) + "\n")
    found = read_curves(run, points=100_000)
    assert found.records == 3000
    assert len(found.curves) == 100
    for key, curve in found.curves.items():
        number = int(key.removeprefix("a/"))
        wanted = [(step, step + (number - step * 7) % 400) for step in range(3000) if (number - step * 7) % 400 < 20]
        assert list(zip(curve.step.tolist(), curve.mean.tolist(), strict=True)) == wanted
    assert all(len(curve.step) <= 10 for curve in read_curves(run, points=10).curves.values())


def test_memory_is_bounded_whatever_is_in_the_file(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with run.metrics.open("wb") as file:
        file.write(line(1, train_loss=0.5).encode())
        for _ in range(64):
            file.write(b"{" * (1 << 20))
        file.write(b"\n" + line(2, train_loss=0.25).encode())
    tracemalloc.start()
    try:
        found = read_curves(run)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.curves["train/loss"].mean.tolist() == [0.5, 0.25]
    assert peak < 16 << 20
    assert all(path.exists() for path in store_files(run))


def test_pipe_in_place_of_the_metrics_does_not_block(run: RunDirectory) -> None:
    os.mkfifo(run.metrics)
    with pytest.raises(RunError, match=r"metrics\.jsonl is not a file"):
        read_curves(run)


def test_batches_depend_on_the_text_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b"".join(line(step, a_b=step).encode() + b"x" * (step % 50) + b"\n" for step in range(2 * BATCH + 9))
    )

    def read(block: int) -> list[tuple[int, int, bytes]]:
        monkeypatch.setattr(parsing, "_BLOCK", block)
        file = os.open(path, os.O_RDONLY)
        try:
            found = list(parsing.read_batches(file))
            assert [batch.is_whole for batch in found] == [True, True, False]
            return [(batch.start, batch.end, batch.digest) for batch in found[:2]]
        finally:
            os.close(file)

    assert read(1 << 20) == read(1000) == read(17) == read(1 << 26)
