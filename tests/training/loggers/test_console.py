"""What a person sees of a training is true at every moment and fits into the terminal."""

import io
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.control import Control

from distrain.config import load_recipe
from distrain.runs.directory import RunDirectory
from distrain.system.display import Line
from distrain.training.loggers.console import ConsoleLogger
from distrain.training.loggers.protocol import LoggerContext, Moment, Record
from tests.screen import Screen
from tests.training.loggers.factories import input_samples

EVALUATION = {"val/loss": 0.3195, "val/top1": 0.9944, "val/top5": 1.0}


@dataclass
class Training:
    """A training of 15 epochs with 23 steps each, of which a test says where it is."""

    moment: Moment
    verbose: bool = False

    def open(self, *, history: list[Record] | None = None) -> ConsoleLogger:
        return ConsoleLogger(
            LoggerContext(
                run=RunDirectory(Path("run")),
                recipe=load_recipe("digits", overrides=[f"log.verbose={str(self.verbose).lower()}"]),
                first_step=0,
                total_steps=345,
                steps_per_epoch=23,
                now=lambda: self.moment,
                samples=input_samples(torch.zeros(1, 1, 8, 8, dtype=torch.uint8)),
                model=torch.nn.Identity(),
                shown_metrics=("top1", "top5"),
                history=history or [],
            )
        )


@pytest.fixture
def lines() -> Iterator[list[Line]]:
    """The lines that are logged, in their columns."""
    found: list[Line] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            assert isinstance(record.msg, Line)
            found.append(record.msg)

    logger, handler = logging.getLogger("distrain.training.loggers.console"), Keep()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield found
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def test_line_of_an_epoch_has_its_own_means_though_records_are_rarer(lines: list[Line]) -> None:
    """50 steps between two records, 23 an epoch."""
    training = Training(Moment(23, epoch_loss=1.5, epoch_samples_per_s=3000))
    logger = training.open()
    logger.write({"step": 23, "epoch": 1.0, **EVALUATION})
    training.moment = Moment(46, epoch_loss=0.5, epoch_samples_per_s=2000)
    logger.write({"step": 46, "epoch": 2.0, **EVALUATION})
    logger.write({"step": 50, "epoch": 2.1739, "train/loss": 0.9, "train/samples_per_s": 1.0})
    training.moment = Moment(69, epoch_loss=0.25, epoch_samples_per_s=1000)
    logger.write({"step": 69, "epoch": 3.0, **EVALUATION})
    logger.close()
    assert [str(line) for line in lines] == [
        "epoch 1/15  step 23/345  loss 1.5000  val loss 0.3195  top-1 99.44%  top-5 100.00%  3,000 samples/s",
        "epoch 2/15  step 46/345  loss 0.5000  val loss 0.3195  top-1 99.44%  top-5 100.00%  2,000 samples/s",
        "epoch 3/15  step 69/345  loss 0.2500  val loss 0.3195  top-1 99.44%  top-5 100.00%  1,000 samples/s",
    ]
    assert lines[0].within(80) == "epoch 1/15  loss 1.5000  val loss 0.3195  top-1 99.44%  3,000 samples/s"
    assert lines[0].within(60) == "epoch 1/15  loss 1.5000  top-1 99.44%  3,000 samples/s"


def test_record_between_two_evaluations_repeats_nothing_of_the_one_before(lines: list[Line]) -> None:
    training = Training(Moment(0), verbose=True)
    logger = training.open()
    logger.write({"step": 0, "epoch": 0.0, **EVALUATION})
    logger.write({"step": 1, "epoch": 0.0435, "train/loss": 2.5, "train/samples_per_s": 900.0})
    training.moment = Moment(23, epoch_loss=2.0, epoch_samples_per_s=800)
    logger.write({"step": 23, "epoch": 1.0, "train/loss": 1.5, "train/samples_per_s": 700.0, **EVALUATION})
    logger.close()
    assert [str(line) for line in lines] == [
        "epoch 0/15  step 0/345  val loss 0.3195  top-1 99.44%  top-5 100.00%",
        "epoch 1/15  step 1/345  loss 2.5000  900 samples/s",
        "epoch 1/15  step 23/345  loss 1.5000  val loss 0.3195  top-1 99.44%  top-5 100.00%  700 samples/s",
    ]


def live_lines(training: Training, width: int, monkeypatch: pytest.MonkeyPatch, moments: list[Moment]) -> list[str]:
    """Return the live line at each of the moments, after an evaluation at the end of the second epoch."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=width, soft_wrap=True, _environ={})
    monkeypatch.setattr("distrain.training.loggers.console.Console", lambda **_: console)
    logger = training.open()
    training.moment = Moment(46, epoch_loss=0.4667, epoch_samples_per_s=2873)
    logger.write({"step": 46, "epoch": 2.0, **EVALUATION})
    shown = []
    for moment in moments:
        training.moment = moment
        screen = Screen(width)
        console.print(Control())
        screen.feed(text.getvalue())
        assert screen.num_wrapped == 0
        shown += [line for line in screen.lines if line][-1:]
    logger.close()
    return [re.sub(r"ETA [\d.]+ (s|min \d+ s)", "ETA 9 s", line) for line in shown]


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (60, "epoch 3/15  step 50/345  loss 0.4667  ETA 9 s"),
        (80, "epoch 3/15  step 50/345  loss 0.4667  top-1 99.44%  2,873/s  ETA 9 s"),
        (
            132,
            "epoch 3/15  ━━──────────  step 50/345  loss 0.4667  val loss 0.3195  top-1 99.44%  top-5 100.00%  "
            "2,873 samples/s  ETA 9 s",
        ),
    ],
)
def test_live_line_has_what_the_terminal_has_room_for(width: int, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert live_lines(Training(Moment(0)), width, monkeypatch, [Moment(50)]) == [line]


def test_live_line_names_the_epoch_that_is_being_trained_from_its_first_step_to_its_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = live_lines(Training(Moment(0)), 80, monkeypatch, [Moment(step) for step in (0, 1, 23, 24, 46, 47, 345)])
    assert [line.split()[1] for line in shown] == ["1/15", "1/15", "1/15", "2/15", "2/15", "3/15", "15/15"]


def test_live_line_shows_how_far_an_evaluation_is_and_that_the_loggers_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluating = Moment(345, "evaluate", evaluated=10, to_evaluate=40)
    moments = [evaluating, replace(evaluating, evaluated=30), Moment(345, "close")]
    first, later, closing = live_lines(Training(Moment(0)), 160, monkeypatch, moments)
    assert "  evaluating 10/40  " in first
    assert "  evaluating 30/40  " in later
    assert first.count("━") < later.count("━")
    assert "closing the loggers" in closing
    assert "ETA" not in closing
