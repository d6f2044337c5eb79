"""A training that goes wrong is looked into: a debugger, a small training, a trace, the stacks of a running one."""

import json
import os
import pty
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from distrain.config import builtin_recipes, read_recipe
from tests.cli_runner import QUIET, Launch, command, distrain, end_of, fit, heartbeat, metrics, status, wait_until

FAULTS = """
import torch
from torch import nn

class BadEvaluation(nn.Linear):
    def __init__(self, num_classes):
        super().__init__(64, num_classes)
    def forward(self, images):
        if len(images) == 256:  # those of an evaluation
            batch = len(images)
            raise ArithmeticError("the evaluation broke")
        return super().forward(images.flatten(1))

class Frozen(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes).requires_grad_(False), nn.BatchNorm1d(num_classes))

def root(logits, targets):
    return (-logits.abs()).sqrt().sum() * 0 + nn.functional.cross_entropy(logits, targets)

class Images:
    classes = ["a", "b"]
    def __len__(self):
        return 64
    def __getitem__(self, index):
        if index == 40:
            breakpoint()
        return torch.full((1, 8, 8), index, dtype=torch.uint8), index % 2

def images(split, path):
    return Images()
"""


@pytest.fixture
def faults(tmp_path: Path) -> Path:
    (tmp_path / "faults.py").write_text(FAULTS)
    return tmp_path


def only_run(folder: Path) -> Path:
    (run,) = (folder / "runs").iterdir()
    return run


def typed(text: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("fit", *arguments, *QUIET),
        cwd=cwd,
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_debug_evaluates_first_then_takes_a_few_steps_and_is_no_real_run(tmp_path: Path) -> None:
    done = fit("--debug", "--set=train.max_steps=3", cwd=tmp_path)
    run = only_run(tmp_path)
    assert run.name.startswith("digits-debug-")
    assert "changed in the recipe: name=digits-debug, " in done.out
    assert "train.max_steps=8" not in done.out  # --set has the last word
    recipe = read_recipe(run / "recipe.yaml")
    assert (recipe.name, recipe.train.max_steps, recipe.train.detect_anomaly) == ("digits-debug", 3, True)
    records = metrics(run)
    assert [record["step"] for record in records] == [0, 1, 2, 3]
    assert ["val/loss" in record for record in records] == [True, False, False, True]
    assert "train/loss" not in records[0]
    for step in range(4):
        assert f"step {step}/3  " in done.out


@pytest.mark.slow
def test_debug_stops_at_a_breakpoint_in_code_that_loader_processes_run(faults: Path) -> None:
    text = builtin_recipes()["digits"].replace("source: digits", "source: faults:images\n  num_workers: 2")
    (faults / "mine.yaml").write_text(text.replace("train:\n  epochs: 15", "train:\n  epochs: 1"))
    done = typed("p 'seen', index\nc\n" * 4, "mine.yaml", "--debug", "--set=eval.at_start=false", cwd=faults)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("('seen', 40)") == 2  # one epoch and one evaluation


@pytest.mark.slow
def test_debug_names_the_operation_whose_gradient_is_not_a_number(faults: Path) -> None:
    done = typed("", "--debug", "--set=loss={name: 'faults:root'}", cwd=faults)
    assert done.returncode == 1
    failed = next(line for line in done.stdout.splitlines() if line.startswith("failed at step 0"))
    assert "a gradient is NaN in the backward pass after step 0: SqrtBackward0 made it for the operation at " in failed
    assert re.search(r"faults\.py:\d+, in root; keep the input", failed)
    assert done.stderr == ""


def test_pdb_opens_in_the_frame_that_failed_with_nothing_written_over_its_prompt(faults: Path) -> None:
    arguments = ["--debug", "--pdb", "--set=model.name=faults:BadEvaluation", "--run=run"]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        command("fit", *arguments, *QUIET), cwd=faults, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    unread = ""

    def read_until(words: str) -> str:
        nonlocal unread
        while words not in unread:
            unread += os.read(ours, 65536).decode()
        before, _, unread = unread.partition(words)
        return before

    read_until("(Pdb) ")
    os.write(ours, b"p 'seen', batch\n")
    time.sleep(1.0)  # a live line would write itself again four times
    assert "ETA" not in read_until("('seen', 256)")
    os.write(ours, b"\x03p 'still', self.training\n")  # Ctrl-C is no stop request here
    read_until("('still', False)")
    os.write(ours, b"q\n")
    read_until(" before the first step, at ")
    assert process.wait(30) == 2
    os.close(ours)
    assert not (faults / "run").exists()


@pytest.mark.slow
def test_overfit_learns_its_batches_by_heart_and_ends_there(tmp_path: Path) -> None:
    done = fit("--overfit=2", "--procs=2", cwd=tmp_path)
    run = only_run(tmp_path)
    assert run.name.startswith("digits-overfit-")
    found = status(run)
    assert found["step"] == found["total_steps"] < 300
    assert found["step"] % 2 == 0
    losses = [record["train/loss"] for record in metrics(run)]
    assert losses[-1] < 0.05 <= min(losses[:-1])
    assert f"after {found['step']} steps, below the target of 0.05" in done.out
    assert (run / "checkpoints" / f"step-{found['step']:08d}").is_dir()


@pytest.mark.slow
def test_overfit_that_cannot_says_so_and_what_to_look_at(faults: Path) -> None:
    arguments = ["--overfit=1", "--set=train.max_steps=20", "--set=model.name=faults:Frozen", "--run=run"]
    done = fit(*arguments, cwd=faults, code=1)
    assert "did not fall below train.target_loss=0.05 in 20 steps (it is " in done.out
    assert "check the learning rate, the labels, and frozen weights" in done.out
    assert "Traceback" not in done.out + done.err
    assert status(faults / "run")["state"] == "failed"
    again = fit("--run=run", cwd=faults, code=1)  # no step is left, and it still is no success
    assert "did not fall below" in again.out


@pytest.mark.slow
def test_profile_writes_a_trace_of_each_rank_and_changes_no_bit(tmp_path: Path) -> None:
    arguments = ["--procs=2", "--set=train.max_steps=12", "--set=train.micro_batch_size=16"]
    done = fit(*arguments, "--profile", "--run=traced", cwd=tmp_path)
    traced = tmp_path / "traced"
    for rank in range(2):
        events = json.loads((traced / "profile" / f"rank-{rank}.json").read_text())["traceEvents"]
        assert sum(event.get("name") == "aten::convolution_backward" for event in events) == 5 * 2 * 3
    assert "steps 4 to 8, operators by their own CPU time:" in done.out
    assert done.out.count("aten::convolution_backward") == 1
    assert str(traced / "profile" / "rank-0.json") in done.out
    assert "perfetto" in done.out
    done = fit(*arguments, "--run=plain", cwd=tmp_path)
    assert not (tmp_path / "plain" / "profile").exists()
    assert "operators" not in done.out
    assert status(traced)["state_digest"] == status(tmp_path / "plain")["state_digest"]


@pytest.mark.slow
def test_stacks_show_where_each_rank_stands_while_it_goes_on(tmp_path: Path, launch: Launch) -> None:
    (tmp_path / "nets.py").write_text(
        "import os, time\n"
        "from torch import nn\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__(64, num_classes)\n"
        "    def forward(self, images):\n"
        "        self.dawdle()\n"
        "        return super().forward(images.flatten(1))\n"
        "    def dawdle(self):\n"
        "        time.sleep(0.2 if os.environ['RANK'] == '1' else 0.0)\n"
    )
    process = launch(
        "digits", "--procs=2", "--set=model.name=nets:Net", "--set=train.epochs=99", "--run=run", cwd=tmp_path
    )
    run = tmp_path / "run"
    wait_until(lambda: all((run / "heartbeats" / f"rank-{rank}.json").exists() for rank in range(2)), "life")
    wait_until(lambda: min(heartbeat(run, rank)["step"] for rank in range(2)) > 0, "the first step")

    done = distrain("stacks", "run", "--all", cwd=tmp_path)
    assert done.code == 0, done.err
    first, second = done.out.split("rank 1 (")
    assert "silent" not in done.out
    assert f"process {heartbeat(run, 0)['pid']}) at step " in first
    assert "in run_steps" in first and "in dawdle" in second
    assert "thread distrain-heartbeat (" in first and "thread distrain-heartbeat (" in second
    assert not (run / "stacks-request").exists()

    found = json.loads(distrain("stacks", "run", "--json", cwd=tmp_path).out)
    assert "in dawdle" in found[1]["stack"]
    assert "distrain/worker.py" in found[1]["stack"].splitlines()[0], "the frames that called the worker are cut"
    assert list(found[1]["threads"]) == ["MainThread"]

    os.kill(heartbeat(run, 1)["pid"], signal.SIGSTOP)
    wait_until(lambda: time.time() - heartbeat(run, 1)["time"] > 5.2, "silence")
    found = json.loads(distrain("stacks", "run", "--json", cwd=tmp_path).out)
    assert [rank["is_silent"] for rank in found] == [False, True]
    assert found[1]["stack"] == "" and found[1]["age_s"] > 5
    told = distrain("stacks", "run", cwd=tmp_path).out
    assert "silent for" in told and "(its process is stopped)" in told
    assert "no stack: it did not answer the request" in told
    os.kill(heartbeat(run, 1)["pid"], signal.SIGCONT)

    process.send_signal(signal.SIGINT)
    assert end_of(process).code == 75
    done = distrain("stacks", "run", cwd=tmp_path)
    assert done.code == 2
    assert done.err.startswith("distrain: run run is not running: it was stopped at step ")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--debug", "--procs=2"], "--debug needs a single process"),
        (["--pdb", "--procs=2"], "--pdb needs a single process"),
        (["--overfit=0"], "--overfit must be 1 batch or more, not 0"),
    ],
)
def test_unusable_debug_option_is_reported_in_one_sentence(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = distrain("fit", *arguments, cwd=tmp_path)
    assert done.code == 2
    assert words in done.err
    assert done.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
