"""What optimizers, schedules and averages have as a state is there again after a resume, on any number of processes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from distrain.checkpoint.load import describe_tensors
from distrain.distributed.world import World
from distrain.errors import RecipeError
from tests.checkpoint.factories import SINGLE
from tests.cli_runner import comparable, metrics, status
from tests.processes import run_ranks
from tests.training.state.factories import train, train_and_resume, unfinish

EXACT = "train={epochs: 2, micro_batch_size: 4, exact: true}"


class Follower:
    """A schedule that counts its steps and evaluations."""

    def __init__(self) -> None:
        self.steps = self.evaluations = 0

    def __call__(self, step: int) -> float:
        self.steps += 1
        return 1 / (1 + self.steps + self.evaluations)

    def observe(self, step: int, evaluation: dict[str, float]) -> None:
        assert "val/loss" in evaluation
        self.evaluations += 1

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "evaluations": self.evaluations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.evaluations = state["steps"], state["evaluations"]


MUON = "optimizer={name: muon, lr: 0.02, adamw_lr: 0.001}"
SCHEDULE_FREE = "optimizer={name: schedule_free_adamw, lr: 0.01}"
CONSTANT = "schedule={name: constant}"
KINDS = {
    "nadam": ["optimizer={name: 'torch.optim:NAdam', lr: 0.01}"],
    "numbers that are no tensors": ["optimizer={name: timm.adafactor, lr: 0.01}"],  # its steps are Python's
    "numbers in groups": ["optimizer={name: timm.lamb, lr: 0.01}"],
    "muon": [MUON],
    "schedule-free": [SCHEDULE_FREE, CONSTANT],
    "schedule-free sgd, warm-up": [
        "optimizer={name: schedule_free_sgd, lr: 0.1, arguments: {r: 0.5}}",
        "schedule={name: constant, warmup_epochs: 0.4}",
    ],
    "plateau": ["schedule={name: plateau, patience: 0, threshold: 0.9}", "eval.every_steps=2"],
    "own schedule": [f"schedule={{name: '{__name__}:Follower'}}", "eval.every_steps=2"],
    "stochastic average": ["train={epochs: 2, micro_batch_size: 4, swa_start_epochs: 0.4, swa_every_steps: 2}"],
}


SLOW = {"numbers in groups", "schedule-free sgd, warm-up", "own schedule", "nadam"}


@pytest.mark.parametrize(
    "overrides",
    [pytest.param(kind, id=name, marks=pytest.mark.slow if name in SLOW else ()) for name, kind in KINDS.items()],
)
def test_run_resumes_as_if_it_had_not_been_killed(tmp_path: Path, overrides: list[str]) -> None:
    train_and_resume(SINGLE, tmp_path, *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param([EXACT, MUON], id="muon", marks=pytest.mark.slow),
        pytest.param([EXACT, SCHEDULE_FREE, CONSTANT], id="schedule-free"),
        pytest.param([EXACT, *KINDS["plateau"]], id="plateau", marks=pytest.mark.slow),
        pytest.param([EXACT, *KINDS["own schedule"]], id="own schedule"),
        pytest.param(
            ["train={epochs: 2, micro_batch_size: 4, exact: true, swa_start_epochs: 0.4, swa_every_steps: 2}"],
            id="stochastic average",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_exact_mode_gives_the_same_bits_on_one_process_and_two_with_a_resume_between_them(
    tmp_path: Path, overrides: list[str]
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _check_exact(tmp_path, overrides)
    finally:
        torch.set_num_threads(threads)


def _train_with_one_thread(world: World, folder: Path, *overrides: str) -> None:
    torch.set_num_threads(1)
    train_and_resume(world, folder, *overrides)


def _check_exact(tmp_path: Path, overrides: list[str]) -> None:
    alone = train(tmp_path / "alone", *overrides)
    run_ranks(_train_with_one_thread, tmp_path, 2, tmp_path, *overrides)
    facts = [(found["weights_digest"], found["state_digest"]) for found in map(status, sorted(tmp_path.glob("*/")))]
    assert facts == [(alone.weights_digest, alone.state_digest)] * 3
    unfinish(tmp_path / "resumed")  # killed on two processes, resumed on one
    again = train(tmp_path / "resumed", *overrides)
    assert (again.weights_digest, again.state_digest) == facts[0]
    assert comparable(tmp_path / "resumed") == comparable(tmp_path / "alone")


def test_plateau_lowers_the_rate_after_the_evaluation_that_made_no_progress(tmp_path: Path) -> None:
    train(tmp_path / "run", *KINDS["plateau"], "log.every_steps=1")
    rates = {int(record["step"]): record["train/lr"] for record in metrics(tmp_path / "run")}
    assert rates[1] == rates[4] == 0.05  # the first evaluation, at step 2, is progress; that of step 4 is not
    assert [rates[5], rates[6]] == pytest.approx([0.005, 0.0005])  # step 5 ends an epoch, and is evaluated too
    names = describe_tensors(tmp_path / "run" / "checkpoints" / "step-00000010")
    assert "schedule.state:json" in names


def test_plateau_that_follows_a_metric_that_is_not_measured_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"schedule\.metric=f1 is not measured by the evaluations; add it to eval"):
        train(tmp_path / "run", "schedule={name: plateau, metric: f1}")
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_checkpoint_of_a_schedule_free_run_has_the_average_that_was_evaluated(tmp_path: Path) -> None:
    train(tmp_path / "run", SCHEDULE_FREE, CONSTANT)
    names = describe_tensors(tmp_path / "run" / "checkpoints" / "step-00000010")
    assert {"model.fc.weight", "average.fc.weight", "optimizer.fc.weight.z", "optimizer.groups:json"} <= names.keys()
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-00000010" / "state.json").read_text())
    assert state["evaluation"]["val/loss"] == metrics(tmp_path / "run")[-1]["val/loss"]
