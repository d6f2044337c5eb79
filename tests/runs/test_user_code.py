"""Tests of where a run's own modules are found."""

import json
import sys
from pathlib import Path

import pytest

from distrain.runs.directory import RunDirectory
from distrain.runs.user_code import find_code


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    monkeypatch.setattr(sys, "path", ["site-packages", *sys.path])
    run = RunDirectory(tmp_path / "run")
    run.create()
    (tmp_path / "start").mkdir()
    run.plan.write_text(json.dumps({"cwd": str(tmp_path / "start")}), encoding="utf-8")
    return run


def test_code_is_found_where_the_run_was_started(run: RunDirectory) -> None:
    find_code(run)
    assert sys.path[:3] == [str(Path.cwd()), str(run.path.parent / "start"), "site-packages"]


def test_copy_of_the_code_comes_before_the_folder_of_the_start(run: RunDirectory) -> None:
    run.code.mkdir()
    find_code(run)
    assert sys.path[:3] == [str(Path.cwd()), str(run.code), str(run.path.parent / "start")]


@pytest.mark.parametrize("plan", ["{", "[]", "{}", '{"cwd": 1}', '{"cwd": "/gone"}', None])
def test_plan_without_a_folder_is_passed_over(run: RunDirectory, plan: str | None) -> None:
    run.plan.unlink() if plan is None else run.plan.write_text(plan, encoding="utf-8")
    find_code(run)
    assert sys.path[:2] == [str(Path.cwd()), "site-packages"]


def test_code_of_another_user_is_not_imported(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distrain.system.filesystem.os.geteuid", lambda: 4321)
    find_code(run)
    assert sys.path[:2] == [str(Path.cwd()), "site-packages"]
