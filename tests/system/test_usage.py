"""CPUs, memory and disk of this machine and process, against the kernel's own numbers and work that is done here."""

import os
import time
from pathlib import Path

import pytest

from distrain.system import usage
from distrain.system.usage import NodeUsage, ProcessUsage


def work(seconds: float) -> None:
    """Use one CPU for so many seconds of it."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_memory_and_disk_are_those_of_the_kernel(tmp_path: Path) -> None:
    found = NodeUsage(tmp_path).read()
    space = os.statvfs(tmp_path)
    assert found["disk_free_gib"] == pytest.approx(space.f_bavail * space.f_frsize / 2**30, rel=0.05)
    assert 0 <= found["disk_used"] <= 1
    total_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    assert 0 < found["memory_used_gib"] < total_gib
    assert 0 < found["memory_available_gib"] <= total_gib


def test_cpu_utilization_is_the_busy_share_since_the_reading_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    times = iter([(10.0, 100.0), (13.0, 104.0), (13.0, 104.0), (14.0, 114.0)])
    monkeypatch.setattr(usage, "_cpu_times", lambda: next(times))
    node = NodeUsage(tmp_path)
    assert node.read()["cpu_utilization"] == 0.75
    assert "cpu_utilization" not in node.read()  # no time has passed
    assert node.read()["cpu_utilization"] == pytest.approx(0.1)


def test_busy_machine_is_seen(tmp_path: Path) -> None:
    node = NodeUsage(tmp_path)
    work(0.5)
    assert node.read()["cpu_utilization"] > 0.5 / (os.cpu_count() or 1) / 2


def test_missing_folder_costs_its_figures_alone(tmp_path: Path) -> None:
    found = NodeUsage(tmp_path / "gone").read()
    assert "memory_used_gib" in found
    assert "disk_free_gib" not in found


def test_process_that_computes_uses_a_cpu_and_one_that_sleeps_none() -> None:
    process = ProcessUsage()
    begun_s, used_s = time.monotonic(), time.process_time()
    work(0.3)
    expected = (time.process_time() - used_s) / (time.monotonic() - begun_s)
    found = process.read()
    assert found["cpus_used"] == pytest.approx(expected, rel=0.2)
    assert 0.01 < found["memory_used_gib"] < 100
    time.sleep(0.3)
    assert process.read()["cpus_used"] < 0.1
