"""Sweeps with real runs: what they find is the same however they are interrupted, and a paused trial loses nothing."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from distrain.runs.directory import RunDirectory
from distrain.runs.query import find_runs
from tests.cli_runner import QUIET, Done, command, distrain, fit, status, wait_until
from tests.disk import small_disk

TINY = [*QUIET, "--device=cpu", "--procs=1", "--no-snapshot", "--set=data.batch_size=512"]
RATES = "--param=optimizer.lr=log(1e-3, 1)"


class Sweeps:
    """A folder in which sweeps run, with leases of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "runs"
        self.env = {"DISTRAIN_LOCK_DIR": str(folder / "locks"), "HOME": str(folder)}

    def sweep(self, *arguments: str, timeout_s: float = 280) -> Done:
        return distrain("sweep", *arguments, cwd=self.folder, env=self.env, timeout_s=timeout_s)

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command("sweep", *arguments),
            cwd=self.folder,
            env={**os.environ, **self.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def table(self, name: str) -> list[dict[str, Any]]:
        path = self.root / name / "trials.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def run(self, trial: dict[str, Any]) -> Path:
        return self.root / str(trial["run"])


@pytest.fixture
def sweeps(tmp_path: Path) -> Iterator[Sweeps]:
    found = Sweeps(tmp_path)
    yield found
    for process in psutil.process_iter(["cmdline"]):
        if str(tmp_path) in " ".join(process.info["cmdline"] or []):
            process.kill()


def results(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table without the name of the sweep."""
    return [{key: value for key, value in trial.items() if key != "run"} for trial in table]


def test_promoted_trial_resumes_where_it_paused_to_the_bits_of_a_run_that_never_paused(sweeps: Sweeps) -> None:
    options = [RATES, "--set=train.epochs=3", "--trials=3", "--parallel=2", "--prune=asha", "--rungs=1", "--name=s"]
    done = sweeps.sweep("digits", *TINY, *options, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    table = sweeps.table("s")
    assert [trial["state"] for trial in table].count("pruned") == 2, done.err
    best = next(trial for trial in table if trial["state"] == "finished")
    assert found["best"]["number"] == best["number"] and found["best"]["value"] == best["value"]
    assert [trial["run"] for trial in found["trials"]] == ["s-0000", "s-0001", "s-0002"]
    assert best["rungs"][0] == max(trial["rungs"][0] for trial in table)

    of_best = status(sweeps.run(best))
    attempts = of_best["attempts"]
    assert [attempt["state"] for attempt in attempts] == ["stopped", "finished"]
    assert attempts[0]["last_step"] == attempts[1]["first_step"] == of_best["step"] / 3
    for trial in table:
        if trial["state"] == "pruned":
            assert status(sweeps.run(trial))["step"] == attempts[0]["last_step"], "it paused exactly at the rung"
    fit(str(sweeps.root / "s" / "best.yaml"), "--device=cpu", "--procs=1", "--run=alone", cwd=sweeps.folder)
    alone = status(sweeps.folder / "alone")
    for digest in ("weights_digest", "state_digest"):
        assert alone[digest] == of_best[digest]

    assert {run.path.name for run in find_runs(sweeps.root)} == {trial["run"] for trial in table}
    storage = JournalStorage(JournalFileBackend(str(sweeps.root / "s" / "journal.log")))
    study = optuna.load_study(study_name="s", storage=storage)
    assert study.best_trial.number == best["number"] and study.best_value == best["value"]
    assert [trial.state.name for trial in study.trials] == [
        "COMPLETE" if trial["state"] == "finished" else "PRUNED" for trial in table
    ]


@pytest.mark.slow
def test_combination_that_is_refused_is_kept_in_the_table_and_the_best_is_repeated_with_other_seeds(
    sweeps: Sweeps,
) -> None:
    options = ["--param=optimizer.name=[sgd, adamw]", "--sampler=grid", "--set=train.max_steps=2", "--parallel=2"]
    done = sweeps.sweep("digits", *TINY, *options, "--name=s", "--top=1", "--seeds=2", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [trial["state"] for trial in found["trials"]] == ["finished", "failed"]
    assert found["trials"][1]["reason"].startswith("refused: optimizer.")
    assert not sweeps.run(found["trials"][1]).exists()
    (repeated,) = found["repeats"]
    values = [status(sweeps.root / f"s-0000-seed{seed}")["last"]["val/top1"] for seed in (1, 2)]
    assert repeated["values"] == values and repeated["mean"] == sum(values) / 2 and repeated["std"] >= 0
    again = sweeps.sweep("--name=s")
    assert again.code == 0, again.err
    assert "mean" in again.out
    other = sweeps.sweep("digits", *TINY, "--param=optimizer.name=[sgd, adam]", "--name=s")
    assert other.code == 2
    assert "sweep s exists with another" in other.err


@pytest.mark.slow
def test_killed_sweep_adopts_its_trials_and_ctrl_c_saves_them(sweeps: Sweeps) -> None:
    options = ["digits", *TINY, RATES, "--set=train.epochs=4", "--set=data.batch_size=16", "--trials=2", "--name=s"]
    first = sweeps.begin(*options, "--parallel=2")
    wait_until(lambda: len(sweeps.table("s")) == 2, "the second trial")
    first.kill()
    first.communicate()
    wait_until(lambda: (sweeps.root / "s-0000" / "recipe.yaml").exists(), "the first run")
    second = sweeps.begin(*options, "--parallel=2")
    runs = [RunDirectory(sweeps.root / f"s-000{number}") for number in range(2)]
    wait_until(lambda: any(run.exists and run.read_status().step > 5 for run in runs), "steps")
    second.send_signal(signal.SIGINT)
    out, _ = second.communicate(timeout=60)
    assert second.returncode == 75, out
    assert "distrain sweep --name s" in out
    assert not any(run.is_held for run in runs)
    steps = [run.read_status().step for run in runs]
    assert [run.read_status().state for run in runs] == ["stopped", "stopped"], out
    third = sweeps.sweep("--name=s", "--json")
    assert third.code == 0, third.err
    table = sweeps.table("s")
    assert [trial["state"] for trial in table] == ["finished", "finished"]
    assert len(find_runs(sweeps.root)) == 2, "no trial was begun twice"
    for run, step in zip(runs, steps, strict=True):
        attempts = run.read_status().attempts
        assert all(before.last_step == after.first_step for before, after in pairwise(attempts)), "no step was repeated"
        assert step in {attempt.first_step for attempt in attempts}


def test_no_trial_begins_on_a_disk_that_is_nearly_full_and_the_sweep_says_so(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", mebibytes=20) as disk:
        found = Sweeps(disk)
        process = found.begin("digits", *TINY, RATES, "--name=s")
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert any("no trial begins: the disk has only" in line for line in lines)
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
        assert process.returncode == 75, rest
        assert found.table("s") == []


@pytest.mark.slow
def test_sweep_whose_first_trials_all_fail_ends(sweeps: Sweeps) -> None:
    (sweeps.folder / "broken.py").write_text("def make(num_classes):\n    raise ValueError('no such layer')\n")
    sweeps.env["PYTHONPATH"] = f"{sweeps.folder}:{os.environ.get('PYTHONPATH', '')}"
    options = ["--set=model.name=broken:make", "--set=model.weights=null", RATES, "--trials=9", "--parallel=3"]
    done = sweeps.sweep("digits", *TINY, *options, "--name=s")
    assert done.code == 1, done.err
    assert "no trial of s has finished" in done.err and "no such layer" in done.err
    states = [trial["state"] for trial in sweeps.table("s")]
    assert states[:3] == ["failed"] * 3 and len(states) < 9


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("prune", ["asha", "median"])
def test_table_is_the_same_with_one_and_three_at_a_time_and_after_kills(sweeps: Sweeps, prune: str) -> None:
    options = [RATES, "--param=optimizer.momentum=[0.5, 0.9]", "--set=train.epochs=4", f"--prune={prune}", "--lag=3"]
    tables = []
    for name, parallel, kills in (("one", 1, 0), ("three", 3, 0), ("killed", 3, 4)):
        arguments = ["digits", *TINY, *options, "--trials=8", f"--name={name}", f"--parallel={parallel}"]
        for number in range(kills):
            process = sweeps.begin(*arguments)
            time.sleep(6 + number)
            process.send_signal(signal.SIGINT if number % 2 else signal.SIGKILL)
            process.communicate(timeout=60)
        done = sweeps.sweep(*arguments, timeout_s=1000)
        assert done.code == 0, done.out + done.err
        tables.append(results(sweeps.table(name)))
    assert tables[0] == tables[1] == tables[2]
    assert any(trial["state"] == "pruned" for trial in tables[0])
    digests = [
        [status(sweeps.root / f"{name}-{number:04}")["state_digest"] for number in range(8)]
        for name in ("one", "three", "killed")
    ]
    if prune == "asha":  # a run that `median` prunes stops where it is by then
        assert digests[0] == digests[1] == digests[2]


@pytest.mark.slow
def test_serve_runs_the_trials_of_a_sweep_and_takes_over_from_one(sweeps: Sweeps) -> None:
    arguments = ["digits", *TINY, RATES, "--set=train.epochs=3", "--trials=4", "--parallel=2", "--name=s"]
    process = sweeps.begin(*arguments)
    wait_until(lambda: (sweeps.root / "s-0000" / "status.json").exists(), "the first run")
    with (sweeps.folder / "serve.log").open("w") as log:
        serve = subprocess.Popen(
            command("serve", "--slots=2", "--no-page"),
            cwd=sweeps.folder,
            env={**os.environ, **sweeps.env},
            stdout=log,
            stderr=log,
        )
    out, _ = process.communicate(timeout=200)
    serve.terminate()
    serve.wait(30)
    assert process.returncode == 0, out
    assert "s-0003 has finished" in (sweeps.folder / "serve.log").read_text()
    assert [trial["state"] for trial in sweeps.table("s")] == ["finished"] * 4


@pytest.mark.slow
def test_asynchronous_pruning_ends_with_a_trial_that_has_finished(sweeps: Sweeps) -> None:
    options = [RATES, "--set=train.epochs=4", "--prune=asha", "--no-reproducible", "--trials=6", "--parallel=2"]
    done = sweeps.sweep("digits", *TINY, *options, "--name=s", "--json")
    assert done.code == 0, done.err
    states = [trial["state"] for trial in sweeps.table("s")]
    assert "finished" in states and "pruned" in states and set(states) == {"finished", "pruned"}
