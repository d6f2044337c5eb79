"""Samples what each rank sees of its machine in a thread, and gathers the figures of all ranks on rank 0.

Each rank publishes its figures in its heartbeat, and rank 0 reads those files: no step waits, and no collective call
is made. What the keys mean is in `distrain/training/metrics/README.md`.
"""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

from distrain.runs.directory import RunDirectory
from distrain.runs.status import Heartbeat
from distrain.system.gpu_readings import GpuReader
from distrain.system.loop_guard import LoopGuard
from distrain.system.usage import NodeUsage, ProcessUsage
from distrain.training.heartbeat import HEARTBEAT_S
from distrain.training.machine.diagnosis import SlowRanks
from distrain.training.meters import Pace
from distrain.training.monitor import RankMonitor

READING_S = 1.0  # between two readings of the GPUs, whose figures change quickly
_DIGITS = 5  # of a figure in a record
_JOIN_S = 5.0  # a call of NVML or of a file system may hang; the thread ends with the process

Figures = dict[str, float]

log = logging.getLogger(__name__)


class MachineSampler:
    """The figures of this rank and, on rank 0, those of all ranks; the context manager runs its thread."""

    def __init__(
        self,
        run: RunDirectory,
        monitor: RankMonitor,
        *,
        rank: int,
        world_size: int,
        is_first_of_node: bool,
        gpu_uuids: Sequence[str],
        pace: Callable[[], Pace],
        every_s: float | None,
    ) -> None:
        """Publish figures every `every_s` seconds, or never with None.

        The first rank of a node samples the node as well. `pace` returns the totals of this rank's steps.
        """
        self._run = run
        self._monitor = monitor
        self._rank = rank
        self._world_size = world_size
        self._is_first_of_node = is_first_of_node
        self._gpu_uuids = gpu_uuids
        self._pace = pace
        self._every_s = every_s
        self._gathered: list[Figures] = []  # since the last record
        self._slow = SlowRanks()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="distrain-machine", daemon=True)

    def __enter__(self) -> Self:
        if self._every_s is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._over.set()
        if self._every_s is not None:
            self._thread.join(_JOIN_S)

    def pop(self) -> Figures:
        """Return the figures of all ranks, means since the last call; empty if there are no new ones.

        They are rounded, since many ranks would otherwise fill `metrics.jsonl` with digits.
        """
        with self._lock:
            gathered, self._gathered = self._gathered, []
        return {name: float(f"{value:.{_DIGITS}g}") for name, value in mean_of(gathered).items()}

    def _sample(self) -> None:
        """Sample until the end, in the thread."""
        assert self._every_s is not None
        guard = LoopGuard("sampling the machine")
        node = NodeUsage(self._run.path) if self._is_first_of_node else None
        window = _Window(GpuReader(self._gpu_uuids), node, self._pace)
        reading_s = min(READING_S, self._every_s)
        due_s, gather_s = 0.0, float("inf")  # at once: a short run has figures, too
        while not self._over.wait(reading_s):
            now = time.monotonic()
            with guard:
                window.read_gpus()
            if now >= due_s:
                due_s = now + self._every_s
                # The heartbeats of the other ranks hold their figures a little later.
                gather_s = min(gather_s, now if self._world_size == 1 else now + 1.5 * HEARTBEAT_S)
                with guard:
                    self._monitor.heartbeat.figures = window.close()
            if now >= gather_s and self._rank == 0:
                gather_s = float("inf")
                with guard:
                    self._gather()
        window.gpus.close()

    def _gather(self) -> None:
        """Keep the newest figures of all ranks for the next record, and report ranks that are slower than others."""
        own = self._monitor.heartbeat.current()
        others = [] if self._world_size == 1 else self._run.read_heartbeats()
        ranks = [own, *(beat for beat in others if 0 < beat.rank < self._world_size)]
        with self._lock:
            self._gathered.append(name_figures(ranks))
        for sentence in self._slow.find(ranks):
            log.warning("%s", sentence)
            self._monitor.state.keep_diagnosis(sentence)


class _Window:
    """The readings of this rank since its last figures."""

    def __init__(self, gpus: GpuReader, node: NodeUsage | None, pace: Callable[[], Pace]) -> None:
        self.gpus = gpus
        self._node = node
        self._process = ProcessUsage()
        self._pace = pace
        self._before = pace()
        self._readings: list[Figures] = []

    def read_gpus(self) -> None:
        """Read the GPUs of this rank once."""
        figures = enumerate(self.gpus.read())
        self._readings.append({f"gpu/{number}/{name}": value for number, of in figures for name, value in of.items()})

    def close(self) -> Figures:
        """Return the figures, and begin the next window; those of steps only if some were finished."""
        figures = mean_of(self._readings) | self._process.read()
        self._readings = []
        if self._node is not None:
            figures |= {f"node/{name}": value for name, value in self._node.read().items()}
        before, now = self._before, self._pace()
        if now.steps > before.steps:
            self._before, seconds = now, max(now.seconds - before.seconds, 1e-9)
            figures["step_s"] = seconds / (now.steps - before.steps)
            figures["data_wait"] = (now.waited_s - before.waited_s) / seconds
        return figures


def name_figures(ranks: Iterable[Heartbeat]) -> Figures:
    """Return the figures of ranks, in their order, under the names that they have in records.

    GPUs are numbered over the run, so that a rank's only GPU has its number; nodes in the order of their ranks.
    """
    named: Figures = {}
    nodes: dict[str, int] = {}
    for beat in ranks:
        node = nodes.setdefault(beat.host, len(nodes))
        for name, value in beat.figures.items():
            kind, _, rest = name.partition("/")
            if kind == "gpu":
                number, _, rest = rest.partition("/")
                named[f"gpu/{beat.rank + int(number)}/{rest}"] = value
            elif kind == "node":
                named[f"node/{node}/{rest}"] = value
            else:
                named[f"rank/{beat.rank}/{name}"] = value
    return named


def mean_of(readings: Sequence[Mapping[str, float]]) -> Figures:
    """Return the mean of each figure over the readings that have it."""
    values: dict[str, list[float]] = defaultdict(list)
    for reading in readings:
        for name, value in reading.items():
            values[name].append(value)
    return {name: sum(all_of) / len(all_of) for name, all_of in values.items()}
