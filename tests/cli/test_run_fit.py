"""The steps of `distrain fit` one by one: what is resolved, what is written, and by which node."""

import sys
from pathlib import Path

import pytest
from rich.console import Console

from distrain.cli.run_fit import prepare
from distrain.config import read_recipe
from distrain.config.profile import read_options, read_profile
from distrain.errors import LaunchError, PreflightError
from distrain.launchers.fit_request import FitRequest, ResolvedFit
from distrain.launchers.resolve import resolve
from distrain.runs.directory import RunDirectory
from distrain.system.signals import StopRequest
from tests.forks import server


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def on_cpu(processes: int = 1, **options: object) -> FitRequest:
    return FitRequest(options=read_options(processes=processes, device="cpu"), preflight=False, **options)  # type: ignore[arg-type]  # fields of the request


def console() -> Console:
    return Console(record=True, quiet=True)


def exit_with_held(folder: Path) -> None:
    sys.exit(RunDirectory(folder).is_held)


def is_held(run: RunDirectory) -> bool:
    """Ask a process of its own: a lock does not keep out the one that has it."""
    child = server().Process(target=exit_with_held, args=(run.path,))
    child.start()
    child.join(60)
    return child.exitcode == 1


def test_resolve_writes_nothing() -> None:
    fit = resolve(on_cpu(2, overrides=["train.epochs=2"]))
    assert fit.recipe.train.epochs == 2
    assert fit.profile.processes == 2
    assert not fit.plan.in_process
    assert str(fit.run.path) in fit.plan.argv
    assert not fit.is_finished
    assert not any(Path().iterdir())


def test_resolve_lists_all_that_is_wrong_at_once() -> None:
    with pytest.raises(PreflightError) as refused:
        resolve(
            on_cpu(
                3, overrides=["schedule={name: cosine, warmup_epochs: 9}", "train.epochs=2", "train.micro_batch_size=7"]
            )
        )
    assert "schedule.warmup_epochs" in str(refused.value)
    assert "micro" in str(refused.value)
    assert not any(Path().iterdir())


def test_several_nodes_need_a_run_directory() -> None:
    options = read_options(processes=1, device="cpu", nodes="2", node_rank=1, rendezvous="127.0.0.1:29999")
    with pytest.raises(LaunchError, match="--run DIR"):
        resolve(FitRequest(options=options, preflight=False))


def test_prepare_writes_the_run_and_holds_it_for_the_block() -> None:
    fit = resolve(on_cpu(run=Path("run")))
    with prepare(fit, console(), StopRequest()) as is_new:
        assert is_new
        assert read_recipe(fit.run.recipe) == fit.recipe
        assert read_profile(fit.run.profile) == fit.profile
        assert not fit.run.stop.exists()
        assert is_held(fit.run)
    assert not is_held(fit.run)
    with prepare(fit, console(), StopRequest()) as is_new:
        assert not is_new


def test_stop_before_the_run_directory_exists_reaches_the_ranks() -> None:
    stop = StopRequest()
    stop.set()
    with prepare(resolve(on_cpu(run=Path("run"))), console(), stop):
        assert Path("run/stop").exists()


def test_second_node_leaves_the_run_directory_to_the_first() -> None:
    found = resolve(on_cpu(run=Path("run")))
    profile = found.profile.model_copy(update={"nodes": 2, "node_rank": 1})
    run = RunDirectory(found.run.path, node_rank=1)
    fit = ResolvedFit(**{**vars(found), "profile": profile, "run": run})
    with prepare(fit, console(), StopRequest()) as is_new:
        assert not is_new
        assert not any(Path().iterdir())
