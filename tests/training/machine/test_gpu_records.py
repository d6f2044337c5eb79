"""Two ranks see a GPU each through a stand-in for NVML: all of it is in the records, and the hot one is named."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from distrain.config import load_recipe
from distrain.config.profile import Profile
from distrain.distributed.world import World
from distrain.runs.directory import RunDirectory
from distrain.training import build, heartbeat, trainer
from distrain.training.machine import sampler
from distrain.training.machine.sampler import MachineSampler
from distrain.training.monitor import RankMonitor
from tests.cli_runner import metrics, status
from tests.fakes import FOLDER, gpu
from tests.processes import run_ranks

GPUS = [
    gpu(0, used=2**30, utilization=90, milliwatts=500_000, celsius=60, sm_mhz=1755, memory_mhz=2619, reasons=0x04),
    gpu(1, used=2**31, utilization=99, milliwatts=400_000, celsius=87, sm_mhz=900, memory_mhz=2619, reasons=0x20),
]
SECONDS_OF_SAMPLE = 1e-5  # at the peak of the GPUs
RECIPE = [
    "data={source: digits, batch_size: 64, train_samples: 640, val_samples: 64}",
    "train={epochs: 12}",
    "eval.every_epochs=null",
    "checkpoint.every_epochs=null",
    f"loss={{name: '{__name__}:slow_loss'}}",
    "log={tensorboard: false, wandb: disabled, every_steps: 1, system_every_s: 0.1}",
]


def slow_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    time.sleep(0.01)
    return F.cross_entropy(logits, targets)


def train(world: World, folder: Path) -> None:
    """Train a few seconds, with heartbeats that come often."""
    sys.path.insert(0, str(FOLDER / "nvml"))
    sys.modules.pop("pynvml", None)
    os.environ["FAKE_NVML"] = json.dumps({"gpus": GPUS})
    patch = pytest.MonkeyPatch()  # of a process of its own
    for module in (heartbeat, sampler):
        patch.setattr(module, "HEARTBEAT_S", 0.05)
    uuid = str(GPUS[world.rank]["uuid"]).removeprefix("GPU-")

    def with_gpu(*args: Any, **kwargs: Any) -> MachineSampler:
        return MachineSampler(*args, **{**kwargs, "gpu_uuids": [uuid]})

    patch.setattr(build, "MachineSampler", with_gpu)
    patch.setattr(build, "peak_share_of_sample", lambda *_: SECONDS_OF_SAMPLE)
    run = RunDirectory(folder)
    run.create()
    profile = Profile(launcher="inprocess", device="cpu", processes=world.size, threads=1)
    world.barrier()
    with RankMonitor(run, world.rank) as monitor:
        assert trainer.train(load_recipe("digits", overrides=RECIPE), profile, run, world, monitor)
        world.barrier()


def test_records_have_the_figures_of_both_gpus_and_the_hot_one_is_named(tmp_path: Path) -> None:
    run_ranks(train, tmp_path, 2, tmp_path / "run")
    found: dict[str, float] = {}
    for record in metrics(tmp_path / "run"):
        assert record["train/mfu"] == record["train/samples_per_s"] * SECONDS_OF_SAMPLE
        found |= {name: value for name, value in record.items() if name.startswith("gpu/")}
    assert found == {
        "gpu/0/utilization": 0.9,
        "gpu/0/memory_used_gib": 1.0,
        "gpu/0/power_w": 500.0,
        "gpu/0/temperature_c": 60.0,
        "gpu/0/sm_clock_mhz": 1755.0,
        "gpu/0/memory_clock_mhz": 2619.0,
        "gpu/0/throttled_power": 1.0,
        "gpu/0/throttled_thermal": 0.0,
        "gpu/0/throttled_hardware": 0.0,
        "gpu/1/utilization": 0.99,
        "gpu/1/memory_used_gib": 2.0,
        "gpu/1/power_w": 400.0,
        "gpu/1/temperature_c": 87.0,
        "gpu/1/sm_clock_mhz": 900.0,
        "gpu/1/memory_clock_mhz": 2619.0,
        "gpu/1/throttled_power": 0.0,
        "gpu/1/throttled_thermal": 1.0,
        "gpu/1/throttled_hardware": 0.0,
    }
    (sentence,) = status(tmp_path / "run")["diagnosis"]
    assert sentence.startswith("GPU 1 (rank 1 on node ")
    assert sentence.endswith(") is throttled by temperature (87 C): look at its cooling")
