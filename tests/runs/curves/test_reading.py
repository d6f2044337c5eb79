"""Curves are those of a full read of metrics.jsonl, to the last digit, whatever happened to this file or the store."""

import json
import math
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distrain.errors import RunError
from distrain.runs.curves import access, list_keys, read_curves
from distrain.runs.directory import RunDirectory
from distrain.training.loggers.jsonl import rewind_metrics
from tests.runs.curves.full_read import BATCH, check, expected, line, store_files


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A run whose whole batches are stored from the first one on."""
    monkeypatch.setattr(access, "UNSTORED_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "run").mkdir()
    return RunDirectory(tmp_path / "run")


def write(run: RunDirectory, first: int, number: int, draws: random.Random) -> None:
    """Append records: one metric in each, one in every tenth, one in few, and one that is often not finite."""
    with run.metrics.open("a") as file:
        for step in range(first, first + number):
            values = {"train_loss": draws.uniform(-1, 1)}
            if step % 10 == 0:
                values["node_0/memory"] = round(draws.uniform(0, 64), 2)
            if step % 997 == 0:
                values["val_loss"] = draws.random()
            if step % 3 == 0:
                values["train_grad_norm"] = draws.choice((draws.random(), math.inf, -math.inf, math.nan))
            file.write(line(step, **values))


def check_all(
    run: RunDirectory,
    points: int,
    first: int | None = None,
    last: int | None = None,
    records: list[dict[str, Any]] | None = None,
) -> None:
    found = read_curves(run, points=points, first_step=first, last_step=last)
    records = run.read_metrics() if records is None else records
    assert found.records == len(records)
    assert found.step == (records[-1]["step"] if records else 0)
    keys = dict.fromkeys(key for record in records for key in record if "/" in key)
    assert list(found.curves) == list(keys) == list_keys(run)
    for key, curve in found.curves.items():
        check(curve, expected(records, key, points=points, first_step=first, last_step=last))
        assert len(curve.step) <= points


def test_curves_are_those_of_a_full_read(run: RunDirectory) -> None:
    write(run, 1, 4 * BATCH + 1000, random.Random(0))
    records = run.read_metrics()
    for points in (1, 7, 100, 1000, 5000, 100_000):
        check_all(run, points, records=records)
        check_all(run, points, 5000, 9000, records)
        check_all(run, points, BATCH + 1, 2 * BATCH, records)
    check_all(run, 100, 10**30, None, records)
    assert all(path.exists() for path in store_files(run))


@pytest.mark.parametrize("points", [1, 2, 30, 1000])
def test_spikes_at_the_ends_and_at_the_borders_of_buckets_are_seen(run: RunDirectory, points: int) -> None:
    number = 6 * BATCH + 77
    borders = [2**level for level in range(15)] + [BATCH * batch for batch in range(7)]
    places = sorted({max(0, border + beside) for border in borders for beside in (-1, 0, 1)} | {number - 1})
    spikes = {place: (-1) ** order * (100.0 + order / 7) for order, place in enumerate(places)}
    run.metrics.write_text("".join(line(place + 1, train_loss=spikes.get(place, 0.5)) for place in range(number)))
    curve = read_curves(run, points=points).curves["train/loss"]
    bounds = np.searchsorted(curve.step, [place + 1 for place in spikes])
    for bucket, spike in zip(bounds.tolist(), spikes.values(), strict=True):
        assert curve.min[bucket] <= spike <= curve.max[bucket]
    assert {curve.min.min(), curve.max.max()} == {min(spikes.values()), max(spikes.values())}
    for place, spike in spikes.items():  # a range that ends at it
        assert read_curves(run, points=points, last_step=place + 1).curves["train/loss"].max[-1] >= min(spike, 0.5)
        exact = read_curves(run, first_step=place + 1, last_step=place + 1).curves["train/loss"]
        assert exact.is_exact and exact.mean.tolist() == exact.min.tolist() == exact.max.tolist() == [spike]


def test_buckets_stay_the_same_while_a_run_grows(run: RunDirectory) -> None:
    draws = random.Random(1)
    write(run, 1, 2 * BATCH + 100, draws)
    before = read_curves(run, points=1000).curves["train/loss"]
    write(run, 2 * BATCH + 101, 3000, draws)
    after = read_curves(run, points=1000).curves["train/loss"]
    assert before.count[0] == after.count[0] == 16
    for name in ("step", "mean", "min", "max"):
        assert getattr(after, name)[: len(before.step) - 1].tolist() == getattr(before, name)[:-1].tolist()


def test_bits_do_not_depend_on_what_is_stored(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    write(run, 1, 5 * BATCH + 10, random.Random(2))
    stored = {points: read_curves(run, points=points).curves for points in (1, 3, 50, 300, 3000)}
    monkeypatch.setattr(access, "UNSTORED_BYTES", 1 << 40)
    for points, curves in stored.items():
        for key, curve in read_curves(run, points=points).curves.items():
            assert curve.mean.tobytes() == curves[key].mean.tobytes()
            assert curve.min.tobytes() == curves[key].min.tobytes()


def test_only_appended_lines_are_parsed_again(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = random.Random(3)
    write(run, 1, 3 * BATCH, draws)
    read_curves(run)
    write(run, 3 * BATCH + 1, 1000, draws)
    position = run.metrics.read_bytes().index(b'{"step": 12289,')
    starts, pread = [], os.pread

    def recorded(file: int, size: int, offset: int) -> bytes:
        if os.path.samestat(os.fstat(file), run.metrics.stat()):
            starts.append(offset)
        return pread(file, size, offset)

    before = {path: path.stat().st_mtime_ns for path in store_files(run)}
    monkeypatch.setattr(os, "pread", recorded)
    read_curves(run)
    last_batch = len(run.metrics.read_bytes()[:position]) - len(
        b"".join(run.metrics.read_bytes()[:position].splitlines(keepends=True)[-BATCH:])
    )
    assert min(starts) == last_batch, "the digest of the newest batch"
    assert {path: path.stat().st_mtime_ns for path in store_files(run)} == before, "nothing is written"


def rewind(run: RunDirectory, draws: random.Random) -> None:
    """A resume drops records, and the run grows again, past its old length or not."""
    records = run.read_metrics()
    if records:
        step = draws.choice(records)["step"]
        rewind_metrics(run, step)
        write(run, step + 1, draws.randrange(1, 9000), draws)


def cut(run: RunDirectory, draws: random.Random) -> None:
    """A crash leaves half a line, and the next one follows it directly; the file stays the same one."""
    if run.metrics.exists() and (size := run.metrics.stat().st_size):
        os.truncate(run.metrics, draws.randrange(size))
        grow(run, draws)


def grow(run: RunDirectory, draws: random.Random) -> None:
    records = run.read_metrics()
    write(run, records[-1]["step"] + 1 if records else 0, draws.choice((1, 50, 3000, 9000)), draws)
    if draws.random() < 0.3:
        with run.metrics.open("a") as file:
            file.write(draws.choice(('{"step": 7, "train/lo', "[]\n", "\n", '{"step": "x", "a/b": 1}\n')))


def flip(run: RunDirectory, draws: random.Random) -> None:
    for path in store_files(run):
        if path.exists() and path.stat().st_size and draws.random() < 0.6:
            data = bytearray(path.read_bytes())
            data[draws.randrange(len(data))] ^= 1 << draws.randrange(8)
            path.write_bytes(data)


def truncate(run: RunDirectory, draws: random.Random) -> None:
    """As a process that was killed while it wrote, or a power failure."""
    for path in store_files(run):
        if path.exists() and draws.random() < 0.6:
            os.truncate(path, draws.randrange(path.stat().st_size + 1))


def restore(run: RunDirectory, draws: random.Random) -> None:
    """One file of the store is that of an earlier time."""
    saved = run.path.parent / "saved"
    if saved.exists() and run.curves.exists():
        name = draws.choice(("index", "columns"))
        if (saved / name).exists():
            shutil.copyfile(saved / name, run.curves / name)
    elif run.curves.exists():
        shutil.copytree(run.curves, saved)


def copy(run: RunDirectory, draws: random.Random) -> None:
    """The run moves to another disk: all inodes are new."""
    other = run.path.with_name("other")
    shutil.copytree(run.path, other)
    shutil.rmtree(run.path)
    other.rename(run.path)


def delete(run: RunDirectory, draws: random.Random) -> None:
    shutil.rmtree(run.curves, ignore_errors=True)


EVENTS: list[Callable[[RunDirectory, random.Random], None]] = [
    *[grow] * 4,
    *[rewind] * 2,
    cut,
    flip,
    truncate,
    restore,
    copy,
    delete,
]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 60))])
def test_whatever_happens_curves_are_those_of_a_full_read(run: RunDirectory, seed: int) -> None:
    draws = random.Random(seed)
    story = []
    for _ in range(12):
        event = draws.choice(EVENTS)
        story.append(event.__name__)
        event(run, draws)
        last = draws.randrange(30_000)
        first, last_step = draws.choice(((None, None), (None, last), (last // 2, None), (last // 2, last)))
        try:
            check_all(run, draws.choice((1, 5, 100, 1000, 4000)), first, last_step)
        except AssertionError as error:
            raise AssertionError(f"after {', '.join(story)}") from error


def test_histories_whose_steps_go_back_are_read_whole(run: RunDirectory) -> None:
    draws = random.Random(5)
    steps = [draws.randrange(-100, 20_000) for _ in range(3 * BATCH)]
    run.metrics.write_text("".join(line(step, train_loss=draws.random()) for step in steps))
    for points in (10, 1000, 10_000):
        check_all(run, points, 100, 10_000)


def test_short_runs_have_no_store(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write(run, 1, 10_000, random.Random(0))
    check_all(run, 1000)
    assert not run.curves.exists()


def test_run_without_records(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for _ in range(2):
        found = read_curves(run)
        assert (found.records, found.step, found.curves, list_keys(run)) == (0, 0, {}, [])
        run.metrics.touch()


def test_unknown_metrics_are_refused_with_what_was_meant(run: RunDirectory) -> None:
    run.metrics.write_text(line(1, train_loss=0.5))
    with pytest.raises(RunError, match=r"run run has no metric train/los; did you mean train/loss\?"):
        read_curves(run, keys=["train/loss", "train/los"])
    with pytest.raises(RunError, match="a curve has at least 1 point, not 0"):
        read_curves(run, points=0)
    assert list(read_curves(run, keys=["train/loss"], first_step=5).curves["train/loss"].step) == []


def test_json_is_strict_and_keeps_every_digit(run: RunDirectory) -> None:
    values = [0.1 + 0.2, None, 1e-300, 5]
    run.metrics.write_text("".join(line(step, train_loss=value) for step, value in enumerate(values)))
    found = read_curves(run).curves["train/loss"].as_json()
    assert json.loads(json.dumps(found, allow_nan=False)) == {
        "step": [0, 1, 2, 3],
        "epoch": [0, 0.01, 0.02, 0.03],
        "time": [1000, 1000.125, 1000.25, 1000.375],
        **dict.fromkeys(("mean", "min", "max"), values),
        "count": [1, 1, 1, 1],
        "num_not_finite": [0, 1, 0, 0],
        "is_exact": True,
    }
