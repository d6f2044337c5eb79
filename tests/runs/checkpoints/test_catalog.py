"""The best checkpoint is that of the run's best evaluation; if it was not kept, no other is called the best."""

import json
from pathlib import Path

import pytest

from distrain.errors import RunError
from distrain.runs.checkpoints import choose, final_path, find_best, read_catalog
from distrain.runs.directory import RunDirectory
from distrain.runs.query import find_checkpoint


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.create()
    run.recipe.write_text("")
    return run


def write(run: RunDirectory, step: int, top1: float | None, *, best: int | None) -> None:
    """Write the evaluation in a checkpoint's state, and the step of the run's best one up to then."""
    path = final_path(run.checkpoints, step)
    path.mkdir()
    evaluation = None if top1 is None else {"step": step, "val/loss": 1.0, "val/top1": top1}
    kept = None if best is None else {"step": best, "val/loss": 1.0, "val/top1": 0.9}
    (path / "state.json").write_text(json.dumps({"evaluation": evaluation, "best": kept, "best_by": "top1"}))


def test_best_that_was_kept_is_chosen(run: RunDirectory) -> None:
    write(run, 10, 0.9, best=10)
    write(run, 20, 0.8, best=10)
    assert choose(run.checkpoints, "best").name == "step-00000010"
    _, path, why = find_checkpoint(str(run.path), run.path, must_be_best=True)
    assert (path.name, why) == ("step-00000010", "the best by evaluation")


@pytest.mark.parametrize("best", [0, 7])
def test_best_that_was_not_kept_is_not_replaced_by_another(run: RunDirectory, best: int) -> None:
    write(run, 10, 0.3, best=best)
    write(run, 20, 0.4, best=best)
    write(run, 30, None, best=best)
    assert find_best(read_catalog(run.checkpoints)) is None
    with pytest.raises(
        RunError, match=f"the best evaluation, at step {best}, has no checkpoint in .*; use last, or 10"
    ):
        choose(run.checkpoints, "best")
    with pytest.raises(RunError, match="has no checkpoint"):
        find_checkpoint(str(run.path), run.path, must_be_best=True)
    _, path, why = find_checkpoint(str(run.path), run.path, must_be_best=False)
    assert path.name == "step-00000020"
    assert why == f"the best by evaluation of those kept; the best of the run, at step {best}, was not kept"


def test_newest_is_used_where_none_was_evaluated(run: RunDirectory) -> None:
    write(run, 10, None, best=None)
    write(run, 20, None, best=None)
    _, path, why = find_checkpoint(str(run.path), run.path, must_be_best=False)
    assert (path.name, why) == ("step-00000020", "the newest; none was evaluated")
    with pytest.raises(RunError, match="was evaluated, so there is no best one"):
        choose(run.checkpoints, "best")
    write(run, 30, float("nan"), best=None)
    _, path, why = find_checkpoint(str(run.path), run.path, must_be_best=False)
    assert (path.name, why) == ("step-00000030", "the newest; no evaluation was finite")
    with pytest.raises(RunError, match="had a finite evaluation, so there is no best one"):
        choose(run.checkpoints, "best")


@pytest.mark.parametrize(
    ("reference", "which"),
    [
        ("run", "20"),
        ("run", "last"),
        ("run/checkpoints/step-00000020", None),
        ("run/checkpoints/step-20", None),
        ("run/checkpoints/20", None),
    ],
)
def test_checkpoint_is_found_by_its_step_below_the_folder_of_the_runs(
    run: RunDirectory, reference: str, which: str | None
) -> None:
    write(run, 10, 0.9, best=10)
    write(run, 20, 0.8, best=10)
    for place in (reference, str(run.path.parent / reference)):
        _, path, why = find_checkpoint(place, run.path.parent, must_be_best=False, which=which)
        assert (path.name, why) == ("step-00000020", "as named")
    with pytest.raises(RunError, match="remove one"):
        find_checkpoint(reference, run.path.parent, must_be_best=True, which=which or "10")
    with pytest.raises(RunError, match="there is no checkpoint"):
        find_checkpoint("run/checkpoints/step-30", run.path.parent, must_be_best=False)
