"""Finds the ranks that hold up the others, from the figures of all, and says in plain language what to look at."""

import statistics
from collections.abc import Iterator, Sequence

from distrain.runs.status import Heartbeat

NUM_WINDOWS = 3  # in a row: the first ones have the imports of loggers and empty caches, and one may be an accident
MORE_WAITING = 0.1  # of the time, than the others
THROTTLED = 0.5  # of the readings
SLOWER_CLOCK = 0.8  # of that of the others
BUSIER = 2.0  # times the CPUs of the others: these wait at least as long as they compute
_BUSY_CPU, _BUSY_GPU = 0.3, 0.5  # below it the others do not wait for it; a CPU may have other programs


class SlowRanks:
    """Reports each rank that is slow for one reason, once it has been so in `NUM_WINDOWS` windows in a row."""

    def __init__(self) -> None:
        self._num_windows: dict[str, int] = {}

    def find(self, ranks: Sequence[Heartbeat]) -> list[str]:
        """Return the sentences that are new with the figures of one more window."""
        found = dict(find_slow_ranks(ranks))
        self._num_windows = {cause: self._num_windows.get(cause, 0) + 1 for cause in found} | {
            cause: number for cause, number in self._num_windows.items() if number >= NUM_WINDOWS and cause not in found
        }
        return [found[cause] for cause in found if self._num_windows[cause] == NUM_WINDOWS]


def find_slow_ranks(ranks: Sequence[Heartbeat]) -> Iterator[tuple[str, str]]:
    """Yield for each slow rank a name of the cause, and a sentence with its figures and what to look at.

    All ranks take a step together, so that the slowest one decides its time.
    """
    for beat in ranks:
        where, others = f"rank {beat.rank} on node {beat.host}", [other for other in ranks if other is not beat]
        yield from _throttled_gpus(beat, where, others)
        wait, usual_wait = beat.figures.get("data_wait"), _median(others, "data_wait")
        if wait is not None and usual_wait is not None and wait > usual_wait + MORE_WAITING:
            yield (
                f"data {beat.rank}",
                f"{where} waits {wait:.0%} of its time for data, the others {usual_wait:.0%}: look at what slows down "
                "reading there: the disk or network file system, other programs on its CPUs, or data that takes longer",
            )
            continue
        cpus, usual_cpus = beat.figures.get("cpus_used"), _median(others, "cpus_used")
        on_cpu = not any(name.startswith("gpu/") for other in ranks for name in other.figures)
        if on_cpu and cpus is not None and usual_cpus is not None and cpus > max(_BUSY_CPU, BUSIER * usual_cpus):
            yield (
                f"cpu {beat.rank}",
                f"{where} computes with {cpus:.2g} CPUs, the others with {usual_cpus:.2g}, as they wait for it: its "
                "CPU is slower, or its part of a step takes longer",
            )


def _throttled_gpus(beat: Heartbeat, where: str, others: Sequence[Heartbeat]) -> Iterator[tuple[str, str]]:
    for number in sorted({int(name.split("/")[1]) for name in beat.figures if name.startswith("gpu/")}):
        gpu = {name.split("/")[2]: value for name, value in beat.figures.items() if name.startswith(f"gpu/{number}/")}
        name = f"GPU {beat.rank + number} ({where})"
        if gpu.get("throttled_thermal", 0) >= THROTTLED:
            degrees = f" ({gpu['temperature_c']:.0f} C)" if "temperature_c" in gpu else ""
            yield f"thermal {name}", f"{name} is throttled by temperature{degrees}: look at its cooling"
        elif gpu.get("throttled_hardware", 0) >= THROTTLED:
            yield (
                f"hardware {name}",
                f"{name} is slowed down by its hardware: look at its power supply (`nvidia-smi -q -d PERFORMANCE`)",
            )
        else:
            clock, usual = gpu.get("sm_clock_mhz"), _median(others, f"gpu/{number}/sm_clock_mhz")
            is_busy = gpu.get("utilization", 0) >= _BUSY_GPU
            if is_busy and clock is not None and usual is not None and clock < SLOWER_CLOCK * usual:
                yield (
                    f"clock {name}",
                    f"{name} runs at {clock:,.0f} MHz, the others at {usual:,.0f} MHz: look at its clocks and power "
                    "limit (`nvidia-smi -q -d CLOCK,POWER,PERFORMANCE`)",
                )


def _median(ranks: Sequence[Heartbeat], name: str) -> float | None:
    """Return the median of a figure over those ranks that have it; None if there is none."""
    values = [beat.figures[name] for beat in ranks if name in beat.figures]
    return statistics.median(values) if values else None
