"""The best run is that with the best checkpoint by a metric, whichever direction of the metric is better."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from distrain.errors import RunError
from distrain.runs.checkpoints import final_path, read_catalog
from distrain.runs.checkpoints.paths import STATE
from distrain.runs.directory import RunDirectory
from distrain.runs.overview import read_each
from distrain.runs.ranking import RankedRun, rank
from distrain.runs.status import Status
from tests.cli.test_bad_input import assert_one_sentence
from tests.cli.test_output import make_run
from tests.cli_runner import distrain, fit

Evaluations = dict[int, dict[str, float]]


def make(root: Path, name: str, evaluations: Evaluations, *, best: int | None, by: str = "top1") -> RunDirectory:
    """Make a run with a checkpoint for each evaluation, by step."""
    last = {"step": max(evaluations), **evaluations[max(evaluations)]}
    chosen = None if best is None else {"step": best, **evaluations[best]}
    run = make_run(root / name, Status(last=last, best=chosen, best_by=by))
    for step, evaluation in evaluations.items():
        path = final_path(run.checkpoints, step)
        path.mkdir(exist_ok=True)
        (path / STATE).write_text(
            json.dumps({"best_by": by, "best": chosen, "evaluation": {"step": step} | evaluation})
        )
    return run


def told(ranked: list[RankedRun]) -> list[tuple[str, int, float]]:
    assert all(each.checkpoint == final_path(each.overview.run.checkpoints, each.step) for each in ranked)
    return [(each.overview.name, each.step, each.value) for each in ranked]


@pytest.fixture
def runs(tmp_path: Path) -> list[RunDirectory]:
    first = {3: {"val/loss": 0.2, "val/top1": 0.5, "val/top1/ants": 0.9}, 6: {"val/loss": 0.4, "val/top1": 0.75}}
    second = {3: {"val/loss": 0.3, "val/top1": 0.875, "val/top1/ants": 0.1}, 6: {"val/loss": 0.1, "val/top1": 0.25}}
    diverged = {3: {"val/loss": math.inf, "val/top1": 0.99}}
    return [
        make(tmp_path, "first", first, best=6),
        make(tmp_path, "second", second, best=3),
        make(tmp_path, "diverged", diverged, best=None),
        make_run(tmp_path / "new", Status()),
    ]


def test_runs_are_ranked_by_their_own_metric_or_by_any_other_in_its_direction(runs: list[RunDirectory]) -> None:
    found = read_each(runs)
    assert told(rank(found, None)) == [("second", 3, 0.875), ("first", 6, 0.75)]
    assert told(rank(found, "top1")) == told(rank(found, "val/top1")) == told(rank(found, None))
    assert told(rank(found, "val/loss")) == [("second", 6, 0.1), ("first", 3, 0.2)]
    assert told(rank(found, "val/top1/ants")) == [("first", 3, 0.9), ("second", 3, 0.1)]
    assert told(rank(found, "val/f1")) == []


def test_evaluation_without_a_checkpoint_does_not_count(runs: list[RunDirectory]) -> None:
    (final_path(runs[1].checkpoints, 3) / STATE).unlink()
    final_path(runs[1].checkpoints, 3).rmdir()
    assert told(rank(read_each(runs), None)) == [("first", 6, 0.75), ("second", 6, 0.25)]


def test_runs_that_select_by_different_metrics_need_one_to_be_named(runs: list[RunDirectory], tmp_path: Path) -> None:
    other = make(tmp_path, "other", {3: {"val/loss": 0.01, "val/mae": 2.0}}, best=3, by="mae")
    found = read_each([*runs, other])
    with pytest.raises(RunError, match=r"^these runs select their best evaluations by val/mae and val/top1; choose"):
        rank(found, None)
    assert told(rank(found, "loss"))[0] == ("other", 3, 0.01)
    with pytest.raises(RunError, match=r"^--metric val/tpo1 is not a metric of evaluations; did you mean val/top1"):
        rank(found, "val/tpo1")


def test_path_of_the_best_checkpoint_is_evaluated_by_a_script(tmp_path: Path) -> None:
    for name, lr in (("good", "0.1"), ("bad", "1e-9")):
        fit(f"--run=runs/{name}", f"--set=optimizer.lr={lr}", "--set=train.max_steps=20", "--device=cpu", cwd=tmp_path)
    program = f"{sys.executable} -m distrain"
    script = f'{program} eval "$({program} runs best --path)" --device=cpu --no-pictures --json'
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=240)
    (best,) = json.loads(distrain("runs", "best", "--json", cwd=tmp_path).out)
    assert best["name"] == "good"
    assert json.loads(done.stdout)["metrics"]["val/top1"] == best["value"]
    (entry,) = [each for each in read_catalog(tmp_path / "runs" / "good" / "checkpoints") if each.step == best["step"]]
    assert str(entry.path) == str(tmp_path / best["checkpoint"])
    listed = distrain("runs", "best", "-n", "5", cwd=tmp_path).out.splitlines()
    assert [line.split()[0] for line in listed] == ["run", "good", "bad"]
    paths = distrain("runs", "best", "-n", "5", "--path", "--filter=name=bad", cwd=tmp_path).out
    assert paths == f"runs/bad/checkpoints/{next((tmp_path / 'runs' / 'bad' / 'checkpoints').glob('step-*')).name}\n"
    nothing = distrain("runs", "best", "--path", "--filter=state=failed", cwd=tmp_path)
    assert nothing.out == ""
    assert_one_sentence(nothing, "that matches state=failed has a checkpoint with an evaluation")
    assert_one_sentence(distrain("runs", "best", "--path", "--json", cwd=tmp_path), "both choose what is printed")
