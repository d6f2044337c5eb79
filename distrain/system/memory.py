"""Reads how much memory is available on this host and in the control groups of this process."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def available_memory_bytes(system: Path = Path("/")) -> int | None:
    """Return the memory still available, on the machine and in the control groups of this process; None if unknown.

    Reads /proc/meminfo (proc_meminfo(5)) and the memory controllers of control groups, versions 1 and 2.
    """
    available: list[int] = []
    with suppress(OSError, ValueError, StopIteration):
        lines = (system / "proc/meminfo").read_text(encoding="utf-8").splitlines()
        available.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")))
    with suppress(OSError):
        for line in (system / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                available += _available_in_groups(system / "sys/fs/cgroup", path, "memory.max", "memory.current")
            elif "memory" in controllers.split(","):
                root = system / "sys/fs/cgroup/memory"
                available += _available_in_groups(root, path, "memory.limit_in_bytes", "memory.usage_in_bytes")
    return min(available, default=None)


def _available_in_groups(root: Path, path: str, limit: str, usage: str) -> Iterator[int]:
    """Yield the memory available in a control group and each of its parents; reclaimable page cache counts."""
    group = root / path.lstrip("/")
    for folder in (group, *group.parents):
        with suppress(OSError, ValueError):  # no such group in this container, or a limit of `max`
            statistics = dict(
                line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
            )
            cached = int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
            yield (
                int((folder / limit).read_text(encoding="utf-8"))
                - int((folder / usage).read_text(encoding="utf-8"))
                + cached
            )
        if folder == root:
            return
