"""Runs the torch profiler for a few steps: writes a Chrome trace, and a table of the slowest operators."""

import logging
from types import TracebackType
from typing import Self

from torch.profiler import ProfilerActivity, profile

from distrain.distributed.world import World
from distrain.runs.directory import RunDirectory
from distrain.training.train_state import TrainState

WARMUP_STEPS = 3  # an attempt's first steps choose kernels and fill caches
TRACED_STEPS = 5
NUM_OPERATORS = 10

log = logging.getLogger(__name__)


class Profiler:
    """Traces some steps of every rank, once per attempt; does nothing unless it is enabled."""

    def __init__(self, run: RunDirectory, world: World, state: TrainState, *, is_enabled: bool) -> None:
        self._run = run
        self._world = world
        self._state = state
        self._is_enabled = is_enabled
        self._begin_at: int | None = None
        self._first_step = 0
        self._profile: profile | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self._profile is not None:
            self._finish(self._profile)
        elif self._is_enabled and kind is None and self._world.is_rank_zero:
            log.warning("--profile skips the first %d steps, and the run took no more: there is no trace", WARMUP_STEPS)

    def advance(self, step: int, boundary: int) -> int:
        """Begin or end the trace before `step` if it is due, and return the next step at which to call this."""
        if not self._is_enabled:
            return boundary
        self._begin_at = step + WARMUP_STEPS if self._begin_at is None else self._begin_at
        if step < self._begin_at:
            return min(boundary, self._begin_at)
        if self._profile is None:
            self._first_step = step
            self._profile = profile(activities=self._activities())
            self._profile.start()
        elif step >= self._first_step + TRACED_STEPS:
            self._finish(self._profile)
            return boundary
        return min(boundary, self._first_step + TRACED_STEPS)

    def _activities(self) -> list[ProfilerActivity]:
        is_cuda = self._world.device.type == "cuda"
        return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]

    def _finish(self, traced: profile) -> None:
        """Write the trace; rank 0 also logs the slowest operators."""
        self._is_enabled, self._profile = False, None
        traced.stop()  # waits for the device
        path = self._run.trace(self._world.rank)
        try:
            path.parent.mkdir(exist_ok=True)
            traced.export_chrome_trace(str(path))
        except (OSError, RuntimeError) as error:  # a full disk does not end the training
            log.warning("the trace could not be written to %s: %s", path, error)
        if self._world.is_rank_zero:
            log.info("%s", self._table(traced, self._state.step))
            log.info("trace %s (one file per rank; open it at https://ui.perfetto.dev or in chrome://tracing)", path)

    def _table(self, traced: profile, last_step: int) -> str:
        """Return a table of the operators with the most self time, on the GPU if there is one."""
        is_cuda = self._world.device.type == "cuda"
        times_us = {
            event.key: (event.self_device_time_total if is_cuda else event.self_cpu_time_total, event.count)
            for event in traced.key_averages()
        }
        total_us = sum(time_us for time_us, _ in times_us.values()) or 1.0
        top = sorted(times_us.items(), key=lambda item: -item[1][0])[:NUM_OPERATORS]
        width = max((len(name[:60]) for name, _ in top), default=8)
        where = "GPU" if is_cuda else "CPU"
        lines = [f"steps {self._first_step + 1} to {last_step}, operators by their own {where} time:"]
        lines.append(f"{'operator':<{width}}  {'ms':>9}  {'share':>6}  {'calls':>7}")
        for name, (time_us, count) in top:
            lines.append(f"{name[:60]:<{width}}  {time_us / 1000:>9.2f}  {time_us / total_us:>6.1%}  {count:>7}")
        return "\n".join(lines)
