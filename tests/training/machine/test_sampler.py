"""Figures of real processes come from their heartbeats to rank 0, each under the name of its rank, GPU or node."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch

from distrain.distributed.world import World
from distrain.runs.directory import RunDirectory
from distrain.runs.status import Heartbeat
from distrain.system.usage import ProcessUsage
from distrain.training.machine import sampler
from distrain.training.machine.sampler import MachineSampler, mean_of, name_figures
from distrain.training.meters import Pace
from distrain.training.monitor import RankMonitor
from tests.cli_runner import wait_until
from tests.fakes import FOLDER, gpu
from tests.processes import run_ranks

NODE = {"cpu_utilization", "memory_used_gib", "memory_available_gib", "disk_used", "disk_free_gib"}
RANK = {"cpus_used", "memory_used_gib", "step_s", "data_wait"}


def beat(rank: int, host: str, **figures: float) -> Heartbeat:
    named = {name.replace("__", "/"): value for name, value in figures.items()}
    return Heartbeat(rank=rank, host=host, pid=1, time=0.0, step=1, phase="data", progress=1, figures=named)


def test_names_number_gpus_over_the_run_and_nodes_by_their_first_rank() -> None:
    ranks = [
        beat(0, "b", data_wait=0.1, gpu__0__power_w=1, node__disk_free_gib=7),
        beat(1, "b", data_wait=0.2, gpu__0__power_w=2),
        beat(2, "a", gpu__0__power_w=3, node__disk_free_gib=8),
        beat(3, "a"),
    ]
    assert name_figures(ranks) == {
        "rank/0/data_wait": 0.1,
        "gpu/0/power_w": 1,
        "node/0/disk_free_gib": 7,
        "rank/1/data_wait": 0.2,
        "gpu/1/power_w": 2,
        "gpu/2/power_w": 3,
        "node/1/disk_free_gib": 8,
    }
    in_one_process = name_figures([beat(0, "a", gpu__0__power_w=1, gpu__1__power_w=2)])
    assert in_one_process == {"gpu/0/power_w": 1, "gpu/1/power_w": 2}


def test_mean_is_over_the_readings_that_have_a_figure() -> None:
    assert mean_of([{"a": 1.0, "b": 2.0}, {"a": 3.0}, {}]) == {"a": 2.0, "b": 2.0}
    assert mean_of([]) == {}


def sample(world: World, folder: Path, gpus: list[dict[str, object]]) -> None:
    """Take steps of 0.1 s, in which rank 1 waits for 0.06 s; the ranks see one of the GPUs each."""
    sys.path.insert(0, str(FOLDER / "nvml"))
    sys.modules.pop("pynvml", None)
    os.environ["FAKE_NVML"] = json.dumps({"gpus": gpus})
    pace = [Pace()]
    run = RunDirectory(folder / "run")
    run.path.mkdir(exist_ok=True)
    monitor = RankMonitor(run, world.rank)
    machine = MachineSampler(
        run,
        monitor,
        rank=world.rank,
        world_size=world.size,
        is_first_of_node=world.local_rank == 0,
        gpu_uuids=[str(gpus[world.rank]["uuid"]).removeprefix("GPU-")] if gpus else [],
        pace=lambda: pace[0],
        every_s=0.2,
    )
    with monitor, machine:
        monitor.state.begin_attempt(world_size=world.size)
        found: dict[str, float] = {}
        deadline = time.monotonic() + 60
        while not (folder / "done").exists():
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
            before = pace[0]
            pace[0] = Pace(before.steps + 1, before.seconds + 0.1, before.waited_s + (0.06 if world.rank == 1 else 0.0))
            found = machine.pop() or found
            if all(f"rank/{rank}/data_wait" in found for rank in range(world.size)):
                (folder / "done").touch()
        world.barrier()
    assert not machine._thread.is_alive()
    if world.rank > 0:
        assert found == {}  # rank 0 alone gathers
        return
    expected = {f"node/0/{name}" for name in NODE}
    expected |= {f"rank/{rank}/{name}" for rank in range(world.size) for name in RANK}
    expected |= {f"gpu/{rank}/temperature_c" for rank in range(len(gpus))}
    expected |= {f"gpu/{rank}/memory_used_gib" for rank in range(len(gpus))}
    assert found.keys() - {"node/0/cpu_utilization"} == expected - {"node/0/cpu_utilization"}
    for rank in range(world.size):
        assert found[f"rank/{rank}/step_s"] == pytest.approx(0.1)
        assert found[f"rank/{rank}/data_wait"] == pytest.approx(0.6 if rank == 1 else 0.0)
        assert not gpus or found[f"gpu/{rank}/temperature_c"] == 40.0 + rank


@pytest.mark.parametrize("with_gpus", [False, True])
@pytest.mark.parametrize("world_size", [1, 2])
def test_rank_zero_gathers_the_figures_of_all_ranks(tmp_path: Path, world_size: int, *, with_gpus: bool) -> None:
    gpus = [gpu(rank, celsius=40 + rank) for rank in range(world_size)] if with_gpus else []
    if world_size == 1:  # in a process of its own, as the module of the real NVML may be loaded here
        run_ranks(sample_alone, tmp_path, 2, tmp_path, gpus)
    else:
        run_ranks(sample, tmp_path, world_size, tmp_path, gpus)


def sample_alone(world: World, folder: Path, gpus: list[dict[str, object]]) -> None:
    if world.is_rank_zero:
        sample(World(0, 1, 0, torch.device("cpu")), folder, gpus)


def alone(run: RunDirectory, monitor: RankMonitor, every_s: float | None) -> MachineSampler:
    return MachineSampler(
        run,
        monitor,
        rank=0,
        world_size=1,
        is_first_of_node=True,
        gpu_uuids=[],
        pace=Pace,
        every_s=every_s,
    )


def test_without_an_interval_nothing_is_sampled(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    monitor = RankMonitor(run, 0)
    with alone(run, monitor, None) as machine:
        assert not machine._thread.is_alive()
    assert machine.pop() == {}
    assert monitor.heartbeat.figures == {}


def test_short_run_has_figures_though_the_interval_is_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "READING_S", 0.01)
    run = RunDirectory(tmp_path)
    with alone(run, RankMonitor(run, 0), 1e6) as machine:
        found: dict[str, float] = {}
        wait_until(lambda: bool(found.update(machine.pop()) or found), "figures")
        assert "rank/0/cpus_used" in found
        assert "rank/0/data_wait" not in found  # no step was taken


def test_sampling_outlives_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "READING_S", 0.01)
    calls: list[int] = []

    def broken_once(self: object) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("lost for a moment")
        return {"cpus_used": 1.0}

    monkeypatch.setattr(ProcessUsage, "read", broken_once)
    run = RunDirectory(tmp_path)
    with alone(run, RankMonitor(run, 0), 0.02) as machine:
        wait_until(lambda: "rank/0/cpus_used" in machine.pop(), "figures")


def test_figures_of_a_record_are_means_to_five_digits(tmp_path: Path) -> None:
    machine = alone(RunDirectory(tmp_path), RankMonitor(RunDirectory(tmp_path), 0), None)
    machine._gathered = [{"rank/0/step_s": 0.1}, {"rank/0/step_s": 0.1 + 0.1 / 3, "node/0/disk_free_gib": 123456.7}]
    assert machine.pop() == {"rank/0/step_s": 0.11667, "node/0/disk_free_gib": 123460.0}
    assert machine.pop() == {}
