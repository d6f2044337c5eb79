"""What a failed evaluation or benchmark leaves behind and raises; the workers are small programs."""

import json
import sys
from pathlib import Path

import pytest

from distrain.config import load_recipe
from distrain.config.profile import Profile
from distrain.errors import DistrainError, ExitCode, RunError, TaskError
from distrain.launchers.launch_task import launch_task
from distrain.launchers.plan import Plan
from distrain.runs.directory import RunDirectory
from distrain.runs.task import BenchmarkRequest, read_task

REQUEST = BenchmarkRequest(steps=2)


def launch(run: RunDirectory, code: str, *, keeps_logs: bool = True) -> None:
    profile = Profile(launcher="torchrun", device="cpu", processes=1, threads=1)
    plan = Plan((sys.executable, "-c", code), cwd=run.path.parent)
    launch_task(
        run,
        load_recipe("digits", overrides=[]),
        profile,
        plan,
        REQUEST,
        results=run.figures,
        keeps_logs=keeps_logs,
        notify=lambda _: None,
    )


def failing(run: RunDirectory, code: ExitCode) -> str:
    """The program of a rank that writes an error report and exits."""
    report = {
        "time": 1.0,
        "rank": 0,
        "host": "here",
        "step": 0,
        "type": "OddError",
        "message": "too odd\nby far",
        "exit_code": int(code),
        "is_secondary": False,
        "is_final": True,
        "is_mistake": False,
        "traceback": "Traceback: the whole of it",
    }
    return f"import sys; open({str(run.error(0))!r}, 'w').write({json.dumps(report)!r}); sys.exit({int(code)})"


def test_launch_ends_with_results(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    launch(run, f"open({str(run.figures)!r}, 'w').write('1')")
    assert read_task(run) == REQUEST
    assert run.figures.read_text() == "1"


def test_older_results_are_not_mistaken_for_new_ones(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    launch(run, f"open({str(run.figures)!r}, 'w').write('1')")
    with pytest.raises(TaskError, match="without an error report"):
        launch(run, "pass")
    assert not run.figures.exists()


@pytest.mark.parametrize(("keeps_logs", "ending"), [(True, "too odd (log "), (False, "the whole of it")])
def test_failure_names_the_log_or_holds_the_traceback(tmp_path: Path, keeps_logs: bool, ending: str) -> None:
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(TaskError) as failed:
        launch(run, failing(run, ExitCode.FAILED), keeps_logs=keeps_logs)
    assert ending in str(failed.value)
    assert ("Traceback" in str(failed.value)) != keeps_logs
    assert failed.value.exit_code == ExitCode.FAILED
    assert run.exists


def test_bad_input_leaves_no_new_folder(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "evaluations" / "run")
    run.path.parent.mkdir()
    with pytest.raises(RunError, match="too odd"):
        launch(run, failing(run, ExitCode.BAD_INPUT))
    assert not run.path.parent.exists()


def test_failure_without_a_report_shows_the_last_line_of_the_launcher(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(DistrainError, match="it broke"):
        launch(run, "import sys; sys.exit('it broke')")
