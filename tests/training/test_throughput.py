"""Checks that samples a second count the steps alone, on a clock that moves in passes, evaluations and saves only."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from distrain.training import records, resume, trainer
from tests.cli_runner import metrics
from tests.training.test_epoch_means import SAMPLES, train

PASS_S, OTHER_S = 0.25, 100.0


class Clock:
    """Seconds that move when they are told to."""

    now = 0.0


def timed_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The loss of a network whose forward pass takes `PASS_S`."""
    Clock.now += PASS_S
    return F.cross_entropy(logits, targets)


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            Clock.now += OTHER_S
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(trainer, "time", SimpleNamespace(perf_counter=lambda: Clock.now))
    monkeypatch.setattr(trainer, "save", slow(resume.save))
    monkeypatch.setattr(records, "run_evaluation", slow(records.run_evaluation))


@pytest.mark.parametrize(("micro_batch_size", "passes"), [("null", [1, 1, 1, 1]), ("32", [2, 2, 2, 1])])
@pytest.mark.parametrize("every_steps", [1, 3])
def test_rate_is_samples_over_seconds_of_the_steps_since_the_record_before(
    tmp_path: Path, every_steps: int, micro_batch_size: str, passes: list[int]
) -> None:
    overrides = ["eval.every_epochs=1", f"train.micro_batch_size={micro_batch_size}"]
    train(
        tmp_path,
        "loss={name: 'tests.training.test_throughput:timed_cross_entropy'}",
        *overrides,
        f"log.every_steps={every_steps}",
    )
    rates = {line["step"]: line["train/samples_per_s"] for line in metrics(tmp_path) if "train/samples_per_s" in line}
    assert list(rates) == list(range(every_steps, 13, every_steps))
    for last in range(every_steps, 13, every_steps):
        steps = [step % 4 for step in range(last - every_steps, last)]
        seconds = sum(passes[step] for step in steps) * PASS_S
        assert rates[last] == pytest.approx(sum(SAMPLES[step] for step in steps) / seconds)
