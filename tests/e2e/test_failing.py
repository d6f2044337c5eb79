"""A run whose processes die or stall is restarted, and reports the cause."""

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest

from tests.cli_runner import (
    QUIET,
    Launch,
    checkpoint_steps,
    comparable,
    distrain,
    end_of,
    fit,
    heartbeat,
    metrics,
    status,
    wait_for_step,
    wait_until,
)

RECIPE = [
    "--set=data.batch_size=96",
    "--set=train.micro_batch_size=24",
    "--set=augment.train=[RandomCrop: {size: 8, padding: 1}]",
    "--set=train.epochs=8",
    "--set=checkpoint={every_steps: 20, every_epochs: null}",
    "--set=eval.every_epochs=4",
    "--set=log.every_steps=16",
    "--procs=2",
]
BREAKING_LOSS = """
import os, torch
from distrain.errors import DataError
def loss(logits, targets):
    if os.environ.get("RANK", "0") == "WHO":
        WHAT
    return torch.nn.functional.cross_entropy(logits, targets)
"""


def breaking_loss(folder: Path, what: str, rank: int = 0) -> str:
    (folder / "broken.py").write_text(BREAKING_LOSS.replace("WHO", str(rank)).replace("WHAT", what))
    return "--set=loss={name: 'broken:loss'}"


def grandparent(run: Path) -> int:
    """The process that torchrun's agent was forked from."""
    pid = heartbeat(run, 0)["pid"]
    for _ in range(2):
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return int(pid)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    fit(*RECIPE, "--run=run", cwd=folder)
    return folder / "run"


def test_killed_rank_is_replaced_and_the_run_ends_in_the_undisturbed_bits(
    launch: Launch, tmp_path: Path, undisturbed: Path
) -> None:
    begun = time.monotonic()
    process = launch(*RECIPE, "--run=run", cwd=tmp_path)
    run = tmp_path / "run"
    wait_for_step(run, 1)
    start_up_s = time.monotonic() - begun
    wait_until(lambda: checkpoint_steps(run)[-1:] >= [20], "a checkpoint")
    rank, server = random.randrange(2), grandparent(run)
    os.kill(heartbeat(run, rank)["pid"], signal.SIGKILL)
    killed = time.monotonic()
    wait_until(lambda: len(status(run)["attempts"]) == 2 and status(run)["state"] == "running", "the restart")
    assert time.monotonic() - killed < max(10, 1.5 * start_up_s), "10 s, on a machine that is not busy otherwise"
    assert grandparent(run) == server, "torch was loaded again"
    done = end_of(process)
    assert done.code == 0, done.out
    assert f"rank {rank} failed at step" in done.out
    assert "restart 1 of 3, from checkpoint step-" in done.out
    assert status(run)["attempts"][0]["state"] == "failed"
    assert status(run)["attempts"][1]["first_step"] >= 20
    assert status(run)["weights_digest"] == status(undisturbed)["weights_digest"]
    assert comparable(run) == comparable(undisturbed)


@pytest.mark.slow
def test_stopped_process_is_named_with_its_stack_and_the_run_restarts(
    launch: Launch, tmp_path: Path, undisturbed: Path
) -> None:
    process = launch(*RECIPE, "--run=run", "--stall-timeout=4", cwd=tmp_path)
    run = tmp_path / "run"
    wait_for_step(run, 30)
    os.kill(heartbeat(run, 1)["pid"], signal.SIGSTOP)
    done = end_of(process)
    assert done.code == 0, done.out
    assert "rank 1 (" in done.out
    assert "its process is stopped" in done.out
    assert "waits for it: rank 0 in" in done.out
    assert re.search(r'trainer\.py", line \d+, in train\n', done.out), done.out
    assert "rank 1 failed at step" in done.out
    assert '"type": "Stalled"' in (run / "errors" / "rank-1.json").read_text()
    assert status(run)["weights_digest"] == status(undisturbed)["weights_digest"]


@pytest.mark.slow
def test_rank_that_hangs_in_the_users_code_is_distinguished_from_waiting_ranks(tmp_path: Path) -> None:
    loss = breaking_loss(tmp_path, "import time; time.sleep(1000 if logits.requires_grad else 0)", rank=1)
    done = distrain("fit", loss, "--run=run", "--procs=2", "--stall-timeout=3", "--restarts=0", *QUIET, cwd=tmp_path)
    assert done.code == 1
    assert "rank 1 (" in done.out
    assert "stalled in phase forward" in done.out
    assert "waits for it: rank 0 in reduce" in done.out
    assert "broken.py" in done.out
    assert "rank 0 (" not in done.out


@pytest.mark.slow
def test_hanging_device_is_distinguished_from_the_update_before_it(tmp_path: Path) -> None:
    """The host of rank 1 waits for its losses for ever, as it does when a device hangs."""
    (tmp_path / "hanging.py").write_text(
        "import os, time\nfrom torch import nn\nfrom distrain.training.meters import LossMeter\n"
        "if os.environ['RANK'] == '1':\n    LossMeter.sync_losses = lambda self, steps: time.sleep(1000)\n"
        "def net(num_classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    words = ["--set=model.name=hanging:net", "--set=model.arguments={}", "--procs=2", "--stall-timeout=3"]
    done = distrain("fit", *words, "--run=run", "--restarts=0", *QUIET, cwd=tmp_path)
    assert done.code == 1
    assert "stalled in phase sync" in done.out
    assert "stalled in phase update" not in done.out


@pytest.mark.slow
def test_killed_rank_is_the_first_failure_and_not_the_connection_that_it_broke(tmp_path: Path) -> None:
    loss = breaking_loss(tmp_path, "os.kill(os.getpid(), 9)", rank=1)
    done = distrain("fit", loss, "--run=run", "--procs=2", "--restarts=1", *QUIET, cwd=tmp_path)
    assert done.code == 1
    assert "restart 1 of 1, from step 0" in done.out
    last = done.out[done.out.index("failed at step 0 on rank 1") :]
    assert "it was killed by SIGKILL (the kernel does that when memory runs out)" in last
    assert "onnection" not in done.out
    assert "rank-1.log" in last
    assert "none yet" in last
    assert last.rstrip().splitlines()[-1].startswith("resume with   distrain resume ")


def test_users_mistake_is_not_retried(tmp_path: Path) -> None:
    loss = breaking_loss(tmp_path, "raise DataError('the label is missing')")
    done = distrain("fit", loss, "--run=run", "--procs=2", *QUIET, cwd=tmp_path)
    assert done.code == 2
    assert done.err.endswith("distrain: the label is missing\n")
    assert "restart" not in done.out


def test_users_mistake_that_comes_late_names_the_checkpoint_and_the_way_back(tmp_path: Path) -> None:
    loss = breaking_loss(
        tmp_path, "CALLS.append(1)\n        if len(CALLS) > 20: raise DataError('the label is missing')"
    )
    (tmp_path / "broken.py").write_text(f"CALLS = []\n{(tmp_path / 'broken.py').read_text()}")
    every = "--set=checkpoint={every_steps: 5, every_epochs: null}"
    done = distrain("fit", loss, "--run=run", every, *QUIET, cwd=tmp_path)
    assert done.code == 2
    assert done.err == "distrain: the label is missing\n"
    checkpoint, resume = done.out.splitlines()[-2:]
    assert checkpoint.split()[0] == "checkpoint"
    assert checkpoint_steps(tmp_path / "run")[-1] == int(checkpoint.rpartition("step-")[2])
    assert resume == f"resume with   distrain resume {tmp_path / 'run'}"


DATA = """
import torch

class Images(torch.utils.data.Dataset):
    classes = ("dark", "bright")

    def __init__(self, split):
        self.split = split

    def __len__(self):
        return {"train": 96, "val": 48}[self.split]

    def __getitem__(self, index):
        if self.split == "SPLIT" and index == 40:
            WHAT
        return torch.full((1, 8, 8), float(index % 2)), index % 2

def images(split, path):
    return Images(split)
"""
ON_DATA = ["--set=data={source: 'mine:images', batch_size: 8}", "--set=augment={}", "--set=train.epochs=1"]


def write_data(folder: Path, split: str, what: str) -> None:
    (folder / "mine.py").write_text(DATA.replace("SPLIT", split).replace("WHAT", what))


@pytest.mark.parametrize("processes", [1, 2])
def test_error_in_an_evaluation_comes_after_the_save_of_its_step(tmp_path: Path, processes: int) -> None:
    write_data(tmp_path, "val", "raise KeyError('row 40')")
    options = [*ON_DATA, "--set=eval.batch_size=8", f"--procs={processes}", "--device=cpu", "--restarts=0"]
    done = distrain("fit", *options, "--run=run", *QUIET, cwd=tmp_path)
    assert done.code == 1, done.out + done.err
    assert "KeyError: 'row 40', at " in done.out + done.err
    assert checkpoint_steps(tmp_path / "run") == [12]
    write_data(tmp_path, "none", "pass")
    resumed = fit("--run=run", cwd=tmp_path)
    assert "resumes from checkpoint step-00000012 at step 12 of 12" in resumed.out
    assert [line["step"] for line in metrics(tmp_path / "run") if "val/loss" in line] == [12]


def test_bad_input_that_shows_after_the_first_step_leaves_the_run(tmp_path: Path) -> None:
    write_data(tmp_path, "train", "return torch.zeros(1, 9, 9), 0")  # in step 8, of which there is no checkpoint
    done = distrain("fit", *ON_DATA, "--set=log.every_steps=1", "--run=run", *QUIET, cwd=tmp_path)
    assert done.code == 2, done.out + done.err
    assert "sample 40 of mine:images is 1x9x9" in done.err
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6, 7]
    assert "resume with" in done.out


@pytest.mark.slow
def test_progress_renews_the_restarts(tmp_path: Path) -> None:
    """Every attempt dies at its 13th step, after a checkpoint: three failures, where one in a row is allowed."""
    loss = breaking_loss(tmp_path, "CALLS.append(1); len(CALLS) > 12 and os._exit(9)")
    code = (tmp_path / "broken.py").read_text()
    (tmp_path / "broken.py").write_text(f"{code}\nCALLS = []\n")
    arguments = [
        "--run=run",
        "--procs=2",
        "--restarts=1",
        "--set=checkpoint={every_steps: 10, asynchronous: false}",  # there before the death that comes soon after
        "--set=train.max_steps=41",
    ]
    done = distrain("fit", loss, *arguments, "--set=eval.every_epochs=null", *QUIET, cwd=tmp_path)
    assert done.code == 0, done.out
    assert done.out.count("restart 1 of 1, from checkpoint step-") == 3


def test_out_of_memory_says_what_to_change(tmp_path: Path) -> None:
    loss = breaking_loss(tmp_path, "torch.empty(1 << 50)")
    done = distrain("fit", loss, "--run=run", *QUIET, cwd=tmp_path)
    assert done.code == 1
    assert "lower train.micro_batch_size (64 now)" in done.out
    assert "--set train.micro_batch_size=32" in done.out
    assert "precision=bf16" in done.out


def test_invalid_counts_and_times_are_refused(tmp_path: Path) -> None:
    assert distrain("fit", "--restarts=-1", cwd=tmp_path).err.startswith("distrain: --restarts must be 0 or more")
    assert distrain("fit", "--stall-timeout=0", cwd=tmp_path).err.startswith(
        "distrain: --stall-timeout must be greater than 0"
    )
    assert not list(tmp_path.iterdir())
