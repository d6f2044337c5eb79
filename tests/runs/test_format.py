"""A run directory has a format version; older ones are read, and newer ones are refused."""

import json
from pathlib import Path

import pytest

from distrain.errors import RunError
from distrain.runs.directory import RunDirectory
from distrain.runs.format import FORMAT_VERSION, OLD_NAMES, find_file
from distrain.runs.status import Status


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.create()
    return run


def test_status_has_the_version_of_the_distrain_that_wrote_it(run: RunDirectory) -> None:
    run.write_status(Status(state="stopped", step=3))
    written = json.loads(run.status.read_text())
    assert written.pop("format_version") == FORMAT_VERSION

    run.status.write_text(json.dumps(written))
    run.check_format()
    older = run.read_status()
    assert (older.format_version, older.step) == (0, 3)
    run.write_status(older)
    assert run.read_status() == Status(state="stopped", step=3)


def test_newer_version_is_refused_with_the_versions_that_are_read(run: RunDirectory) -> None:
    run.status.write_text(json.dumps({"format_version": FORMAT_VERSION + 1, "state": "a state of later versions"}))
    with pytest.raises(RunError) as error:
        run.check_format()
    assert str(error.value) == (
        f"run directory {run.path} has format version {FORMAT_VERSION + 1}, and this distrain reads versions up to "
        f"{FORMAT_VERSION}; update distrain, or use the one that wrote it"
    )


@pytest.mark.parametrize("text", [None, "", "{", "[]", "null", '{"format_version": null}', '{"format_version": "x"}'])
def test_missing_or_damaged_status_has_no_newer_version(run: RunDirectory, text: str | None) -> None:
    if text is not None:
        run.status.write_text(text)
    run.check_format()


@pytest.mark.parametrize(("old", "new"), OLD_NAMES.items())
def test_file_is_found_under_its_old_name_only_where_the_new_one_is_missing(
    run: RunDirectory, old: str, new: str
) -> None:
    path = run.path / new
    assert find_file(path) == path
    (run.path / old).touch()
    assert find_file(path) == run.path / old
    path.touch()
    assert find_file(path) == path


def test_new_names_are_those_of_the_run_directory(run: RunDirectory) -> None:
    assert {run.path / new for new in OLD_NAMES.values()} <= {run.task, run.rendezvous}
