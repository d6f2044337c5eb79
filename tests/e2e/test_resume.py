"""A run that is killed and restarted ends in the same bits as an undisturbed run."""

import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from distrain.config.old_names import OLD_NAMES
from distrain.runs.directory import RunDirectory
from distrain.runs.format import FORMAT_VERSION
from tests.cli_runner import QUIET, command, comparable, distrain, fit, metrics, status

# BatchNorm and dropout in the model, augmentation drawn a sample, accumulation, a smaller last window (1,438 = 14 x 96
# + 94), a checkpoint in the middle of epochs and of log windows.
RECIPE = [
    "digits",
    "--set=data.batch_size=96",
    "--set=train.micro_batch_size=24",
    "--set=augment.train=[RandomCrop: {size: 8, padding: 1}]",
    "--set=train.epochs=6",
    "--set=checkpoint.every_steps=7",
    "--set=log.every_steps=4",
]
TOTAL_STEPS = 90


def start(arguments: list[str], cwd: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command("fit", *arguments, *QUIET),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def committed(run: Path) -> list[int]:
    return [int(path.name[5:]) for path in (run / "checkpoints").glob("step-????????")]


def num_attempts(run: Path) -> int:
    return len(RunDirectory(run).read_status().attempts)


def kill_after_checkpoint(process: subprocess.Popen[bytes], run: Path, *, step: int, delay_s: float) -> None:
    """SIGKILL the launcher that was just started, some time after a checkpoint at or after `step` is committed.

    The ranks of an earlier one may have committed it before they died: the new attempt must have begun as well.
    """
    deadline, before = time.monotonic() + 120, num_attempts(run)
    while not (any(found >= step for found in committed(run)) and num_attempts(run) > before):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.002)
    time.sleep(delay_s)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while RunDirectory(run).is_held:  # its ranks may still commit what they have begun
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "workers"),
    [
        (1, 0),
        (1, 2),
        (2, 0),
        (2, 2),
    ],
)
def test_killed_run_ends_in_the_bits_of_the_undisturbed_run(tmp_path: Path, processes: int, workers: int) -> None:
    chance = random.Random(f"{processes}-{workers}-{time.time_ns()}")
    arguments = [*RECIPE, f"--procs={processes}", f"--set=data.num_workers={workers}", "--set=data.loader=processes"]
    fit(*arguments, "--run=undisturbed", cwd=tmp_path)

    disturbed = [*arguments, "--run=disturbed"]
    kills = []
    for _ in range(2):
        step = max(committed(tmp_path / "disturbed"), default=0) + 7  # one that this attempt has to take
        process = start(disturbed, tmp_path)
        delay_s = chance.uniform(0, 0.3)
        kills.append((step, delay_s))
        kill_after_checkpoint(process, tmp_path / "disturbed", step=step, delay_s=delay_s)
    resumed = fit(*disturbed, cwd=tmp_path)

    assert "resumes from checkpoint step-" in resumed.out
    whole, pieced = status(tmp_path / "undisturbed"), status(tmp_path / "disturbed")
    assert pieced["weights_digest"] == whole["weights_digest"], f"killed at {kills}"
    assert len(pieced["attempts"]) == 3
    assert all(attempt["first_step"] > 0 for attempt in pieced["attempts"][1:])
    assert comparable(tmp_path / "disturbed") == comparable(tmp_path / "undisturbed"), f"killed at {kills}"
    assert whole["step"] == TOTAL_STEPS
    steps = [record["step"] for record in metrics(tmp_path / "disturbed")]
    assert steps == sorted(set(steps))


def make_old(run: RunDirectory) -> None:
    """Give a run directory what it had before it had a format version: the old names of recipe keys and files."""
    text = run.recipe.read_text(encoding="utf-8")
    for old, new in OLD_NAMES.items():
        new_key, old_key = new.rpartition(".")[2], old.rpartition(".")[2]
        text, count = re.subn(rf"^  {new_key}:", f"  {old_key}:", text, flags=re.MULTILINE)
        assert count == 1
    run.recipe.write_text(text, encoding="utf-8")
    state = status(run.path)
    del state["format_version"]
    run.status.write_text(json.dumps(state))
    run.task.unlink()  # which only an evaluation had, as examination.json
    (run.path / "meeting.json").write_text('{"token": "of an earlier attempt", "hosts": []}')


@pytest.mark.slow
def test_run_directory_of_an_earlier_version_is_resumed_to_the_same_bits(tmp_path: Path) -> None:
    fit(*RECIPE, "--run=undisturbed", cwd=tmp_path)
    process = start([*RECIPE, "--set=data.hold=never", "--run=old"], tmp_path)
    kill_after_checkpoint(process, tmp_path / "old", step=14, delay_s=0)
    run = RunDirectory(tmp_path / "old")
    make_old(run)
    assert "hold: never" in run.recipe.read_text()
    for words in (["runs", "show", "old"], ["eval", "old", "--no-pictures"]):
        done = distrain(*words, "--root=.", cwd=tmp_path)
        assert (done.code, done.err) == (0, ""), done

    resumed = distrain("resume", "old", "--root=.", cwd=tmp_path)
    assert (resumed.code, resumed.err) == (0, ""), resumed
    assert "resumes from checkpoint step-" in resumed.out
    found = status(run.path)
    assert found["weights_digest"] == status(tmp_path / "undisturbed")["weights_digest"]
    assert found["format_version"] == FORMAT_VERSION
    assert "cache: never" in run.recipe.read_text()
    assert comparable(run.path) == comparable(tmp_path / "undisturbed")


@pytest.mark.slow
def test_every_step_of_the_same_recipe_is_repeated_to_the_bit(tmp_path: Path) -> None:
    for run in ("first", "second"):
        fit(*RECIPE, f"--run={run}", cwd=tmp_path)
    assert comparable(tmp_path / "first") == comparable(tmp_path / "second")
    assert status(tmp_path / "first")["weights_digest"] == status(tmp_path / "second")["weights_digest"]


@pytest.mark.slow
def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    fit(*RECIPE, "--run=first", cwd=tmp_path)
    fit(*RECIPE, "--run=second", "--set=train.seed=1", cwd=tmp_path)
    assert status(tmp_path / "first")["weights_digest"] != status(tmp_path / "second")["weights_digest"]


@pytest.mark.slow
def test_loader_workers_do_not_change_the_training(tmp_path: Path) -> None:
    fit(*RECIPE, "--run=none", cwd=tmp_path)
    fit(*RECIPE, "--run=three", "--set=data.num_workers=3", "--set=data.loader=threads", cwd=tmp_path)
    assert status(tmp_path / "none")["weights_digest"] == status(tmp_path / "three")["weights_digest"]


@pytest.mark.slow
def test_weights_to_start_from_are_not_needed_again(tmp_path: Path) -> None:
    fit("digits", "--run=first", "--set=train.max_steps=4", cwd=tmp_path)
    exported = distrain("export", "first", "--format=safetensors", "--out=start.safetensors", cwd=tmp_path)
    assert exported.code == 0, exported.err
    process = start([*RECIPE, "--run=run", "--set=model.weights=start.safetensors"], tmp_path)
    kill_after_checkpoint(process, tmp_path / "run", step=14, delay_s=0)
    (tmp_path / "start.safetensors").unlink()
    fit("--run=run", cwd=tmp_path)
    attempts = status(tmp_path / "run")["attempts"]
    assert attempts[-1]["first_step"] >= 14
    assert attempts[-1]["last_step"] == TOTAL_STEPS
