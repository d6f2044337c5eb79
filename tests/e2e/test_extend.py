"""A run that has ended is trained further by a changed recipe, and no kill loses the old values or the new."""

import json
import math
import shutil
from pathlib import Path

import pytest

from distrain.config import change_recipe, read_recipe
from distrain.config.debug_presets import DebugOptions
from distrain.config.profile import read_profile
from distrain.errors import UserError
from distrain.launchers import LAUNCHERS
from distrain.launchers.extension import record_changes
from distrain.launchers.prepare import check_schedule, resolve_run, write_request
from distrain.runs.directory import RunDirectory
from tests.cli_runner import begin_fit, checkpoint_steps, comparable, distrain, fit, status, wait_until

SMALL = [
    "digits",
    "--device=cpu",
    "--set=data.train_samples=128",
    "--set=data.batch_size=16",
    "--set=eval.batch_size=512",
    "--set=log.every_steps=4",
    "--set=checkpoint.every_steps=3",
    "--set=checkpoint.keep_last=9",
]
STEPS_PER_EPOCH = 8
LONGER = ["--set=train.epochs=4", "--set=optimizer.lr=0.02", "--set=schedule={name: cosine}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `ended` is, a run of 2 epochs that has finished, and `extended`, the same up to 4 epochs."""
    place = tmp_path_factory.mktemp("extend")
    constant = ["--set=schedule={name: constant}", "--set=train.epochs=2"]
    fit(*SMALL, *constant, "--run=ended", cwd=place)
    shutil.copytree(place / "ended", place / "extended")
    fit("--run=extended", *LONGER, cwd=place)
    return place


@pytest.fixture
def run(folder: Path) -> Path:
    """A copy of `ended`."""
    copied = folder / "copy"
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(folder / "ended", copied)
    return copied


def contents(run: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file() and "lock" not in path.name}


def digests(run: Path) -> tuple[str, str]:
    found = status(run)
    assert found["state"] == "finished"
    return found["weights_digest"], found["state_digest"]


def test_extended_run_is_the_one_that_was_long_from_the_start(folder: Path, run: Path) -> None:
    straight = ["--set=schedule={name: constant}", "--set=train.epochs=3", "--run=straight"]
    fit(*SMALL, *straight, cwd=folder)
    done = fit("--run=copy", "--set=train.epochs=3", cwd=folder)
    assert "from step 16 on: train.epochs 2 -> 3" in done.out
    assert digests(run) == digests(folder / "straight")
    assert comparable(run) == comparable(folder / "straight")


def test_history_holds_what_changed_and_from_which_step(folder: Path) -> None:
    run = folder / "extended"
    first, second = status(run)["attempts"]
    assert (first["changes"], first["state"], second["first_step"]) == ({}, "finished", 2 * STEPS_PER_EPOCH)
    assert second["changes"] == {
        "train.epochs": {"old": 2, "new": 4},
        "optimizer.lr": {"old": first_lr(folder), "new": 0.02},
        "schedule.name": {"old": "constant", "new": "cosine"},
    }
    assert read_recipe(RunDirectory(run).recipe).train.epochs == 4
    shown = distrain("runs", "show", "extended", cwd=folder).out
    assert "from step 16 on: " in shown and "schedule.name constant -> cosine" in shown
    rates = {record["step"]: record["train/lr"] for record in comparable(run) if "train/lr" in record}
    assert rates[16] == first_lr(folder)
    of_all_steps = 0.02 * (1 + math.cos(math.pi * 19 / 32)) / 2
    assert rates[20] == pytest.approx(of_all_steps)
    distrain("report", "extended", "--out=page.html", cwd=folder)
    assert "schedule.name constant -&gt; cosine" in (folder / "page.html").read_text()


def first_lr(folder: Path) -> float:
    return read_recipe(RunDirectory(folder / "ended").recipe).optimizer.lr


def test_crash_after_the_extension_resumes_with_the_new_recipe_to_the_bit(folder: Path, run: Path) -> None:
    process = begin_fit("--run=copy", *LONGER, cwd=folder)
    wait_until(lambda: any(step > 18 for step in checkpoint_steps(run)), "a checkpoint")
    process.kill()
    process.communicate()
    assert distrain("resume", "copy", cwd=folder).code == 0
    assert digests(run) == digests(folder / "extended")
    assert comparable(run) == comparable(folder / "extended")
    changed = [attempt["first_step"] for attempt in status(run)["attempts"] if attempt["changes"]]
    assert changed == [16]


def test_kill_before_the_start_loses_nothing(folder: Path, run: Path) -> None:
    directory = RunDirectory(run)
    before = digests(run)
    old, profile = read_recipe(directory.recipe), read_profile(directory.profile)
    new = change_recipe(old, [change.removeprefix("--set=") for change in LONGER])

    record_changes(directory, new)  # killed before the recipe was replaced: nothing has changed
    assert distrain("resume", "copy", cwd=folder).code == 0
    assert digests(run) == before and not any(attempt["changes"] for attempt in status(run)["attempts"])

    write_request(directory, new, profile, LAUNCHERS[profile.launcher](profile, run))  # killed after it
    assert status(run)["state"] == "stopped" and status(run)["weights_digest"] is None
    shown = distrain("runs", "show", "copy", cwd=folder).out
    assert "from the next attempt on: optimizer.lr" in shown and "train.epochs 2 -> 4" in shown
    assert distrain("resume", "copy", cwd=folder).code == 0
    assert digests(run) == digests(folder / "extended")
    assert status(run)["attempts"][-1]["changes"].keys() == {"train.epochs", "optimizer.lr", "schedule.name"}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.seed=3"], "train.seed cannot change in run .*: order, augmentation and dropout are drawn from it"),
        (["data.batch_size=32"], "data.batch_size cannot change .*: it decides which samples a step has"),
        (["model.name=lenet"], "model.name cannot change .*: the weights of the run belong to that network"),
        (["optimizer={name: adam, lr: 1}"], "optimizer.name cannot change .*has the state of the optimizer"),
        (["train.ema_decay=0.9"], "train.ema_decay cannot change"),
        (["train.epochs=1"], "has trained 16 steps, and train.epochs=1 ends it at step 8; raise it"),
        (["optimizer.lr=0.5"], "has trained 16 steps, and train.epochs=2 ends it at step 16; raise it"),
        (["train.epochs=9", "train.max_steps=16"], "train.max_steps=16 ends it at step 16; .*--set train.max_steps=N"),
        (["train.epochs=9", "schedule.warmup_epochs=11"], "does not end before train.epochs=9"),
    ],
)
def test_what_cannot_change_is_refused_with_the_reason(run: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        recipe = resolve_run(None, overrides, None, run, DebugOptions())[1]
        check_schedule(recipe)
    assert "\n" not in str(caught.value)


def test_refusal_is_one_sentence_of_both_commands_and_nothing_is_written(folder: Path, run: Path) -> None:
    before = contents(run)
    for verb in (["fit", "--run=copy"], ["resume", "copy"]):
        done = distrain(*verb, "--set=train.seed=3", cwd=folder)
        assert done.code == 2
        assert "train.seed cannot change in run" in done.err and len(done.err.strip().splitlines()) == 1
    assert contents(run) == before


def test_nothing_changed_says_finished_and_a_dry_run_shows_the_difference(folder: Path, run: Path) -> None:
    before = contents(run)
    for verb in (["fit", "--run=copy"], ["resume", "copy"]):
        assert "has already finished" in distrain(*verb, "--set=train.epochs=2", cwd=folder).out
    shown = distrain("fit", "--run=copy", "--set=train.epochs=3", "--dry-run", cwd=folder)
    assert "from step 16 on: train.epochs 2 -> 3" in shown.out
    assert contents(run) == before


@pytest.mark.slow
def test_plan_of_an_extension_shows_the_difference(folder: Path, run: Path) -> None:
    before = contents(run)
    shown = distrain("plan", "--run=copy", "--set=train.epochs=3", "--steps=2", cwd=folder)
    assert "from step 16 on: train.epochs 2 -> 3" in shown.out
    assert contents(run) == before


@pytest.mark.slow
def test_run_that_a_limit_has_ended_is_extended_by_lifting_it(folder: Path) -> None:
    fit(*SMALL, "--set=train={epochs: 9, patience: 1}", "--set=optimizer.lr=1e-12", "--run=impatient", cwd=folder)
    run = folder / "impatient"
    end = status(run)["step"]
    assert end < 9 * STEPS_PER_EPOCH
    refused = distrain("fit", "--run=impatient", "--set=optimizer.lr=0.1", cwd=folder)
    assert refused.code == 2 and f"ended at step {end} by train.patience=1" in refused.err
    fit("--run=impatient", "--set=train.patience=null", "--set=train.epochs=4", cwd=folder)
    assert status(run)["step"] == 4 * STEPS_PER_EPOCH
    assert "train.patience" in json.dumps(status(run)["attempts"][-1]["changes"])


@pytest.mark.slow
def test_run_that_has_lost_its_checkpoints_cannot_be_extended(folder: Path, run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    done = distrain("fit", "--run=copy", "--set=train.epochs=3", cwd=folder)
    assert done.code == 2 and "has no checkpoint left" in done.err
