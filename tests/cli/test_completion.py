"""Shells complete recipes, runs, checkpoints, keys and the other names that a command line takes, without torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distrain.runs.checkpoints import final_path
from distrain.runs.directory import RunDirectory

PROGRAM = (
    "import sys, atexit; sys.argv = ['distrain']\n"
    "atexit.register(lambda: 'torch' in sys.modules and print('TORCH'))\n"
    "from distrain.cli import main; main()"
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("digits-1", "other"):
        run = RunDirectory(tmp_path / "runs" / name)
        run.create()
        run.recipe.touch()
        final_path(run.checkpoints, 46).mkdir()
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "mine.txt").touch()
    (tmp_path / "minerals").mkdir()
    return tmp_path


def complete(line: str, *, shell: str, cwd: Path) -> list[str]:
    """Return what a shell offers for the last word of a line, as its script asks for it."""
    words = line.split(" ")
    env = {**os.environ, "_DISTRAIN_COMPLETE": f"complete_{shell}"}
    if shell == "bash":
        env |= {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    else:
        env |= {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert "TORCH" not in done.stdout
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("distrain fit dig", ["digits", "digits-distilled"]),
        ("distrain fit mine", ["minerals/", "mine.yaml"]),
        (
            "distrain fit --set optimizer.l",
            ["optimizer.lr=", "optimizer.lr_per=", "optimizer.layer_decay=", "optimizer.lr_factors="],
        ),
        ("distrain fit --set optimizer.name=ad", ["optimizer.name=adam", "optimizer.name=adamw"]),
        ("distrain fit --set data.drop_last=", ["data.drop_last=true", "data.drop_last=false"]),
        ("distrain fit --launch cpu", ["cpu-2"]),
        ("distrain fit --device ", ["cpu", "cuda"]),
        ("distrain fit --launcher t", ["torchrun"]),
        ("distrain stop di", ["digits-1"]),
        ("distrain stop las", ["last"]),
        ("distrain runs show oth", ["other"]),
        ("distrain checkpoints show other ", ["best", "last", "46"]),
        ("distrain eval other 4", ["46"]),
        ("distrain eval other --metrics top1,f", ["top1,f1"]),
        ("distrain export other --format o", ["onnx"]),
        ("distrain recipes show cifar10-f", ["cifar10-fast"]),
    ],
)
def test_names_are_completed(place: Path, line: str, offered: list[str]) -> None:
    assert sorted(complete(line, shell="bash", cwd=place)) == sorted(offered)


def test_every_shell_is_answered_in_its_own_form(place: Path) -> None:
    assert complete("distrain stop di", shell="fish", cwd=place) == ["digits-1"]
    (answer,) = complete("distrain stop di", shell="zsh", cwd=place)
    assert '"digits-1"' in answer


def test_missing_run_gives_no_completions_and_no_error(place: Path) -> None:
    assert complete("distrain checkpoints show nothing ", shell="bash", cwd=place) == ["best", "last"]
