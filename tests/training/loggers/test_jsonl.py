"""Metrics are whole lines, also while the disk is full, and none is lost once there is room again."""

import logging
from pathlib import Path

import pytest
import torch

from distrain.config import load_recipe
from distrain.runs.directory import RunDirectory
from distrain.training.loggers.jsonl import JsonlLogger, rewind_metrics
from distrain.training.loggers.protocol import LoggerContext, Moment, Record
from distrain.training.monitor import RankMonitor
from tests.disk import fill, small_disk
from tests.training.loggers.factories import input_samples


def open_logger(run: RunDirectory) -> JsonlLogger:
    return JsonlLogger(
        LoggerContext(
            run=run,
            recipe=load_recipe("digits", overrides=[]),
            first_step=0,
            total_steps=9,
            steps_per_epoch=3,
            now=lambda: Moment(0),
            samples=input_samples(torch.zeros(1, 1, 8, 8, dtype=torch.uint8)),
            model=torch.nn.Identity(),
        )
    )


def record(step: int) -> Record:
    return {"step": step, "train/loss": 1 / 3, "padding": 10.0**300}


def test_lines_wait_for_room_and_none_is_torn_or_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with small_disk(tmp_path / "disk", mebibytes=1) as disk:
        run = RunDirectory(disk)
        logger = open_logger(run)
        logger.write(record(1))
        filler = fill(disk)
        for step in range(2, 300):  # what is left of the first block is used up on the way
            logger.write(record(step))
        text = run.metrics.read_text()
        written = len(run.read_metrics())
        assert text.endswith("}\n")
        assert text.count("\n") == written < 299
        assert len([r for r in caplog.records if "wait in memory for room" in r.message]) == 1
        filler.unlink()
        logger.write(record(300))
        assert [r["step"] for r in run.read_metrics()] == list(range(1, 301))
        logger.close()


def test_lines_that_never_found_room_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with small_disk(tmp_path / "disk", mebibytes=1) as disk:
        run = RunDirectory(disk)
        fill(disk)
        logger = open_logger(run)
        logger.write(record(1))
        logger.write(record(2))
        logger.close()
        assert run.metrics.read_text() == ""
    assert "2 lines of metrics could not be written" in caplog.text


def test_appending_goes_on_behind_what_a_resume_left(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    logger = open_logger(run)
    for step in range(1, 6):
        logger.write(record(step))
    logger.close()
    with run.metrics.open("a") as file:
        file.write('{"step": 6, "train/lo')
    assert [r["step"] for r in rewind_metrics(run, 3)] == [1, 2, 3]
    logger = open_logger(run)
    logger.write(record(4))
    logger.close()
    assert [r["step"] for r in run.read_metrics()] == [1, 2, 3, 4]


def test_status_that_finds_no_room_is_written_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with small_disk(tmp_path / "disk", mebibytes=1) as disk, caplog.at_level(logging.WARNING):
        run = RunDirectory(disk)
        monitor = RankMonitor(run, rank=0)  # no thread is started, which would write and free drafts of its own
        monitor.state.begin_attempt(world_size=1, total_steps=9)
        monitor.report_start()
        filler = fill(disk)
        for step in (3, 4):
            monitor.state.step = step
            monitor.report("running")
        assert run.read_status().step == 0
        filler.unlink()
        monitor.report("finished")
        assert run.read_status().step == 4
    assert caplog.text.count("could not be written") == 1
