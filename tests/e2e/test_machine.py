"""A run on two processes records what each rank sees of its machine, and names the rank that holds up the other."""

import json
import os
import re
import socket
from pathlib import Path

import pytest

from tests.cli_runner import Launch, distrain, end_of, fit, metrics, status, wait_until

NODE = {"cpu_utilization", "memory_used_gib", "memory_available_gib", "disk_used", "disk_free_gib"}
RANK = {"cpus_used", "memory_used_gib", "step_s", "data_wait"}
OFTEN = ["--set=log.system_every_s=0.5", "--set=log.every_steps=1"]

SLEEPY = """
import os, time
import torch

class Images:
    classes = ["a", "b"]
    def __len__(self):
        return 64
    def __getitem__(self, index):
        if os.environ.get("RANK") == "1":
            time.sleep(0.02)
        return torch.full((1, 8, 8), index, dtype=torch.uint8), index % 2

def images(split, path):
    return Images()
"""

BURNING = """
import os, time
from torch import nn

class Network(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))
    def forward(self, images):
        until = time.thread_time() + 0.3 * (os.environ.get("RANK") == "1")
        while time.thread_time() < until:
            pass
        return super().forward(images)
"""


def names(run: Path, group: str) -> set[str]:
    return {name.removeprefix(group) for record in metrics(run) for name in record if name.startswith(group)}


def train_until_diagnosed(launch: Launch, run: Path, *arguments: str) -> str:
    """Train on two processes until a rank is named, and a little longer; returns what the terminal has shown."""
    training = launch(
        "digits",
        *OFTEN,
        *arguments,
        "--procs=2",
        "--set=data.num_workers=0",
        "--set=data.batch_size=16",
        "--set=train.epochs=1000",
        "--set=eval.every_epochs=null",
        "--set=checkpoint.every_epochs=null",
        f"--run={run}",
        cwd=run.parent,
    )
    wait_until(lambda: (run / "status.json").exists() and bool(status(run)["diagnosis"]), "a diagnosis")
    named_at = len(metrics(run))
    wait_until(lambda: sum("rank/1/cpus_used" in record for record in metrics(run)[named_at:]) >= 2, "more figures")
    assert distrain("stop", str(run), "--wait", cwd=run.parent).code == 0
    return end_of(training).out


@pytest.mark.slow
def test_rank_whose_data_comes_slowly_is_named_once(tmp_path: Path, launch: Launch) -> None:
    (tmp_path / "sleepy.py").write_text(SLEEPY)
    run = tmp_path / "run"
    out = train_until_diagnosed(launch, run, "--set=data.source=sleepy:images", "--set=augment.train=[]")
    found = re.findall(r"^warning: rank (\d) on node (\S+) waits (\d+)% of its time for data, .*$", out, re.M)
    assert [(rank, node) for rank, node, _ in found] == [("1", socket.gethostname())], out
    assert int(found[0][2]) > 50
    (kept,) = status(run)["diagnosis"]
    assert kept in out
    assert kept in (run / "logs" / "rank-0.log").read_text()
    assert kept in distrain("runs", "show", str(run), cwd=tmp_path).out
    assert json.loads(distrain("runs", "show", str(run), "--json", cwd=tmp_path).out)["diagnosis"] == [kept]

    assert names(run, "node/0/") == NODE
    assert names(run, "node/1/") == set()
    assert names(run, "rank/0/") == names(run, "rank/1/") == RANK
    assert names(run, "gpu/") == set()
    slow = [record["rank/1/data_wait"] for record in metrics(run) if "rank/1/data_wait" in record]
    fast = [record["rank/0/data_wait"] for record in metrics(run) if "rank/0/data_wait" in record]
    assert min(slow) > 0.5
    assert max(fast) < 0.3


@pytest.mark.slow
def test_rank_whose_steps_take_longer_is_named_once(tmp_path: Path, launch: Launch) -> None:
    (tmp_path / "burning.py").write_text(BURNING)
    run = tmp_path / "run"
    out = train_until_diagnosed(launch, run, "--set=model.name=burning:Network")
    found = re.findall(r"^warning: rank (\d) on node \S+ computes with \S+ CPUs, the others with (\S+), ", out, re.M)
    assert [rank for rank, _ in found] == ["1"], out
    assert len(status(run)["diagnosis"]) == 1


@pytest.mark.parametrize("overrides", [[], ["--set=train.exact=true", "--set=train.micro_batch_size=16"]])
def test_sampling_changes_no_bit_and_can_be_turned_off(tmp_path: Path, overrides: list[str]) -> None:
    digests = set()
    for name, every_s in (("sampled", "0.05"), ("alone", "null")):
        fit(
            "digits",
            *overrides,
            "--procs=1",
            f"--set=log.system_every_s={every_s}",
            "--set=train.max_steps=60",
            f"--set=log.every_steps={1 if name == 'sampled' else 60}",
            f"--run={name}",
            cwd=tmp_path,
        )
        digests.add(status(tmp_path / name)["state_digest"])
        assert bool(names(tmp_path / name, "rank/0/")) == (name == "sampled")
    assert len(digests) == 1
    assert "train/grad_norm" in metrics(tmp_path / "alone")[-1]


def test_gradient_norm_of_exact_mode_is_the_same_on_any_number_of_processes(tmp_path: Path) -> None:
    found = []
    for processes in (1, 2):
        fit(
            "digits",
            "--set=train={exact: true, micro_batch_size: 16, max_steps: 12, epochs: 1}",
            "--set=log.every_steps=3",
            f"--procs={processes}",
            f"--run={processes}",
            cwd=tmp_path,
        )
        found.append([record["train/grad_norm"] for record in metrics(tmp_path / str(processes))])
    assert found[0] == found[1]
    assert len(set(found[0])) == 4


def test_run_without_nvml_says_nothing_of_it(tmp_path: Path) -> None:
    (tmp_path / "pynvml.py").write_text("raise ImportError('hidden')")
    done = distrain(
        "fit",
        "digits",
        "--device=cpu",
        "--set=train.max_steps=20",
        "--set=log={every_steps: 1, system_every_s: 0.1, wandb: disabled, tensorboard: false}",
        "--run=run",
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
    )
    assert done.code == 0, done.out + done.err
    assert "warning" not in done.out + done.err
    assert names(tmp_path / "run", "node/0/") >= {"memory_used_gib"}
