"""Every command's help has an example, readable placeholders, and defaults that are values."""

from pathlib import Path

import pytest

from tests.cli.test_everywhere import names_of_all_commands
from tests.cli.walker import walk

GROUPS = ["", "recipes", "runs", "launch", "checkpoints", "data"]


def test_every_help_has_an_example_and_shows_no_type_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for walked in walk(
        [[*name.split(), "--help"] for name in (*GROUPS, *names_of_all_commands())], cwd=tmp_path, torch=False
    ):
        assert walked.code == 0, walked
        assert "Example" in walked.out, walked
        for words in ("<bool>", "<str>", "<int>", "<path>", "<float>", "if left out", "TEXT", "INTEGER"):
            assert words not in walked.out, walked


def test_help_explains_the_most_used_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    fit, predict = walk([["fit", "--help"], ["predict", "--help"]], cwd=tmp_path, torch=False)
    for words in ("null", "quote lists", "'augment.mean=[0.5]'", ".npz", "CSV", "default: (3)", "default: (120)"):
        assert words in fit.out, words
    assert "or - to read paths from standard input" in predict.out
