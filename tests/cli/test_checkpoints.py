"""`distrain checkpoints` lists what a run has saved, finds damage, and reports all that it moves or deletes."""

import fcntl
import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest
import safetensors
from safetensors.torch import load_file

from distrain.checkpoint.tensors import weights_digest
from distrain.models.nets import DigitsCnn
from distrain.runs.directory import RunDirectory
from tests.checkpoint.factories import copy, damage
from tests.cli.test_bad_input import assert_one_sentence
from tests.cli_runner import distrain, fit, status


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs with a checkpoint and an evaluation in each."""
    folder = tmp_path_factory.mktemp("trained")
    fit("--set=train.epochs=3", "--set=checkpoint.keep_last=9", "--run=run", cwd=folder)
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return copy(trained, tmp_path / "run")


def checkpoints(*arguments: str, run: Path, code: int = 0) -> str:
    done = distrain("checkpoints", *arguments, cwd=run.parent)
    assert done.code == code, done.out + done.err
    return done.out


def test_list_shows_step_size_evaluation_and_best(run: Path) -> None:
    text = checkpoints("list", "run", run=run)
    rows = json.loads(checkpoints("list", "run", "--json", run=run))
    assert [row["step"] for row in rows] == [23, 46, 69]
    for row in rows:
        assert str(row["step"]) in text
        assert f"{row['evaluation']['val/top1']:.2%}" in text
        assert row["bytes"] == sum(file.stat().st_size for file in (run.parent / row["path"]).iterdir())
    (best,) = (row for row in rows if row["best"])
    assert best["step"] == status(run)["best"]["step"]
    assert text.count("best") == 1
    (run / "checkpoints" / "quarantine").mkdir()
    (run / "checkpoints" / "step-00000046").rename(run / "checkpoints" / "quarantine" / "step-00000046")
    assert "quarantined: step-00000046" in checkpoints("list", "run", run=run)


def test_best_that_is_not_kept_is_reported_and_no_other_is_called_the_best(run: Path) -> None:
    file = run / "checkpoints" / "step-00000069" / "state.json"
    state = json.loads(file.read_text())
    state["best"]["step"] = 35
    file.write_text(json.dumps(state))
    text = checkpoints("list", "run", run=run)
    assert text.count("best") == 1
    assert "the best evaluation, at step 35, has no checkpoint" in text
    assert not any(row["best"] for row in json.loads(checkpoints("list", "run", "--json", run=run)))
    done = distrain("checkpoints", "consolidate", "run", "best", "model.safetensors", cwd=run.parent)
    assert_one_sentence(done, "the best evaluation, at step 35, has no checkpoint in")
    assert not (run.parent / "model.safetensors").exists()


def test_verify_finds_the_damage_and_moves_nothing(run: Path) -> None:
    assert checkpoints("verify", "run", run=run).count("good") == 3
    damage(run / "checkpoints" / "step-00000046" / "__0_0.distcp", "flipped")
    text = checkpoints("verify", "run", run=run, code=1)
    assert text.count("good") == 2
    assert "step-00000046  BAD: __0_0.distcp has changed since it was written" in text
    faults = json.loads(checkpoints("verify", "run", "46", "--json", run=run, code=1))
    assert [fault["checkpoint"] for fault in faults] == ["step-00000046"]
    assert checkpoints("verify", "run", "last", run=run) == "step-00000069  good\n"
    assert len(list((run / "checkpoints").glob("step-*"))) == 3


def test_show_prints_state_and_tensors(run: Path) -> None:
    text = checkpoints("show", "run", "23", run=run)
    shown = json.loads(checkpoints("show", "run", "23", "--json", run=run))
    assert shown["state"]["step"] == 23
    assert shown["tensors"]["model.fc.weight"] == {"shape": [10, 512], "dtype": "float32"}
    assert "10x512" in text
    assert "samples_seen" in text
    damage(run / "checkpoints" / "step-00000023" / ".metadata", "truncated")
    done = distrain("checkpoints", "show", "run", "23", cwd=run.parent)
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert ".metadata has" in done.err


def test_prune_keeps_the_best_and_refuses_while_the_run_trains(run: Path) -> None:
    best = max(json.loads(checkpoints("list", "run", "--json", run=run)), key=lambda row: row["evaluation"]["val/top1"])
    assert "would delete step-00000023" in checkpoints("prune", "run", "--keep-last=1", "--dry-run", run=run)
    assert len(list((run / "checkpoints").glob("step-*"))) == 3
    with RunDirectory(run).lock.open("a+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        assert_one_sentence(distrain("checkpoints", "prune", "run", "--keep-last=1", cwd=run.parent), "is in use by")
    checkpoints("prune", "run", "--keep-last=1", run=run)
    left = {path.name for path in (run / "checkpoints").iterdir()}
    assert left == {"step-00000069", f"step-{best['step']:08d}"}
    assert checkpoints("prune", "run", "--keep-last=1", run=run) == "nothing to delete\n"


def test_prune_by_age_and_of_all_runs(run: Path) -> None:
    other = run.parent / "other"
    shutil.copytree(run, other)
    for step in ("23", "46"):
        folder = next((other / "checkpoints").glob(f"step-*{step}"))
        os.utime(folder, (time.time() - 86_400 * 40, time.time() - 86_400 * 40))
    options = ["--all", "--root=.", "--keep-last=1"]
    assert checkpoints("prune", *options, "--older-than=50d", run=run) == "nothing to delete\n"
    words = checkpoints("prune", *options, "--older-than=30d", run=run)
    assert " of other" in words and " of run" not in words
    assert len(list((run / "checkpoints").glob("step-*"))) == 3
    assert len(list((other / "checkpoints").glob("step-*"))) < 3
    for arguments, part in (
        (["--keep-last=1"], "name a run, or give --all"),
        (["run", "--all", "--keep-last=1"], "remove it, or run"),
        (["--all", "--keep-last=1", "--root=nowhere"], "there is no folder nowhere"),
        (["run", "--keep-last=1", "--older-than=soon"], "is not an age"),
    ):
        assert_one_sentence(distrain("checkpoints", "prune", *arguments, cwd=run.parent), part)


def test_consolidated_file_is_the_plain_model(run: Path) -> None:
    checkpoints("consolidate", "run", "model.safetensors", run=run)
    file = run.parent / "model.safetensors"
    model = DigitsCnn(10, 1)
    model.load_state_dict(load_file(file), strict=True)
    assert weights_digest(model) == status(run)["weights_digest"]
    with safetensors.safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert metadata["step"] == "69"
    assert metadata["recipe"] == "digits"
    assert json.loads(metadata["classes"]) == [str(digit) for digit in range(10)]
    assert [path.name for path in run.parent.iterdir() if path.name.startswith(".")] == []

    checkpoints("consolidate", "run", "23", "early.safetensors", run=run)
    assert load_file(run.parent / "early.safetensors").keys() == load_file(file).keys()
    fit("--set=model.weights=model.safetensors", "--set=optimizer.lr=1.0e-12", "--set=train.max_steps=1",
        "--run=tuned", cwd=run.parent)  # fmt: skip
    assert status(run.parent / "tuned")["last"]["val/top1"] > 0.9


def test_consolidate_refuses_a_damaged_checkpoint_and_leaves_no_file(run: Path) -> None:
    damage(run / "checkpoints" / "step-00000069" / "__0_0.distcp", "flipped")
    done = distrain("checkpoints", "consolidate", "run", "model.safetensors", cwd=run.parent)
    assert done.code == 1
    assert "__0_0.distcp has changed" in done.err
    assert done.err.count("\n") == 1
    assert [path.name for path in run.parent.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["list", "nothing"], ["no run 'nothing'"]),
        (["verify", "run", "24"], ["no checkpoint '24'", "23, 46, 69"]),
        (["show", "run", "first"], ["no checkpoint 'first'", "best, last"]),
        (["consolidate", "run", "model.pth"], ["model.pth does not end in .safetensors"]),
        (["consolidate", "run", "run/recipe.yaml/new/model.safetensors"], ["run/recipe.yaml is not a folder"]),
        (["consolidate", "run", "1", "2", "3.safetensors"], ["1 2 3.safetensors are too many arguments"]),
    ],
)
def test_bad_request_is_one_sentence(trained: Path, arguments: list[str], words: list[str]) -> None:
    assert_one_sentence(distrain("checkpoints", *arguments, cwd=trained.parent), *words)


def test_existing_file_is_not_overwritten(run: Path) -> None:
    (run.parent / "mine.safetensors").write_text("mine")
    done = distrain("checkpoints", "consolidate", "run", "mine.safetensors", cwd=run.parent)
    assert_one_sentence(done, "mine.safetensors exists")
    assert (run.parent / "mine.safetensors").read_text() == "mine"


def test_list_verify_and_prune_need_no_torch(run: Path) -> None:
    """A torch that cannot be imported stands first on the path."""
    (run.parent / "torch.py").write_text("raise ImportError('this command should not need torch')")
    for arguments in (["list"], ["verify"], ["prune", "--keep-last=2"]):
        done = distrain("checkpoints", arguments[0], "run", *arguments[1:], cwd=run.parent)
        assert done.code == 0, done.err
    assert sys.executable
