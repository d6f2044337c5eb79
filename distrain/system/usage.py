"""Reads how busy this machine and this process are: CPUs, memory, and the file system of a folder."""

import time
from contextlib import suppress
from pathlib import Path

import psutil

from distrain.system.memory import available_memory_bytes

GIBIBYTE = 2**30  # bytes
_NUM_KINDS = 8  # of CPU time; the rest, that of virtual machines, is counted in these as well


class NodeUsage:
    """Reads the figures of this machine; of the CPUs the mean since the reading before."""

    def __init__(self, folder: Path) -> None:
        """`folder` is on the file system whose space is read."""
        self._folder = folder
        self._times = _cpu_times()

    def read(self) -> dict[str, float]:
        """Return the figures by name, without those that the system does not report."""
        before, self._times = self._times, _cpu_times()
        (busy_s, all_s) = (now - then for now, then in zip(self._times, before, strict=True))
        memory = psutil.virtual_memory()
        available = available_memory_bytes()  # within the limit of a container, too
        found = {
            "memory_used_gib": (memory.total - memory.available) / GIBIBYTE,
            "memory_available_gib": (memory.available if available is None else available) / GIBIBYTE,
        }
        if all_s > 0:
            found["cpu_utilization"] = min(1.0, max(0.0, busy_s / all_s))
        with suppress(OSError):
            disk = psutil.disk_usage(str(self._folder))
            found |= {"disk_used": disk.percent / 100, "disk_free_gib": disk.free / GIBIBYTE}
        return found


class ProcessUsage:
    """Reads the figures of this process; of the CPUs the mean since the reading before."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._times = time.process_time(), time.monotonic()

    def read(self) -> dict[str, float]:
        """Return the CPUs that its threads have kept busy, and its memory; not those of its loader processes."""
        before, self._times = self._times, (time.process_time(), time.monotonic())
        cpu_s, wall_s = (now - then for now, then in zip(self._times, before, strict=True))
        return {
            "cpus_used": cpu_s / max(wall_s, 1e-9),
            "memory_used_gib": self._process.memory_info().rss / GIBIBYTE,
        }


def _cpu_times() -> tuple[float, float]:
    """Return the seconds that the CPUs of this machine were busy since its start, and all their seconds."""
    times = psutil.cpu_times()
    total = sum(times[:_NUM_KINDS])
    return total - times.idle - getattr(times, "iowait", 0.0), total
