"""Keeps the memory that this process frees for its next use, and reads its current and peak memory."""

import ctypes
import gc
import logging
import math
from contextlib import suppress
from pathlib import Path

import torch

from distrain.messages import MEBIBYTE
from distrain.system.memory import available_memory_bytes

MAX_MORE = 0.5  # of the memory that is needed, to be kept for what comes next
_STEPS_TO_LEARN = 3  # looks at which another step had been reached: by then the largest has been
_PROCESS = Path("/proc/self")
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # mallopt(3)
_BY_DEFAULT = {_M_MMAP_MAX: 65536, _M_TRIM_THRESHOLD: 128 * 2**10, _M_TOP_PAD: 128 * 2**10}
_TO_KEEP = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: 64 * 2**20}

log = logging.getLogger(__name__)


class MallocRetention:
    """Has the C library keep what training on a CPU frees for its next step, while that needs little more memory.

    By default glibc maps large blocks of memory afresh each time, and the kernel clears their pages one by one: up to
    half of the time of a step whose activations are large. Kept blocks are divided among what comes next, and where
    that fits badly, several times the memory is taken. So the first steps show what is needed without it, and it ends
    for good once that and `MAX_MORE` of it are taken. `forget_peak` gives everything back in between.
    """

    def __init__(self) -> None:
        self._step = 0
        self._changes = 0
        self._limit = math.inf  # bytes, once it is known
        self._is_over = False

    def look(self, step: int) -> None:
        """Read the current and peak memory at `step`; called occasionally, from any one thread."""
        self._changes += step != self._step
        self._step = step
        if self._is_over or self._changes < _STEPS_TO_LEARN:
            return
        peak = resident_bytes("VmHWM")
        if self._limit == math.inf:
            free = available_memory_bytes()
            self._is_over = free is not None and free < MAX_MORE * peak
            self._limit = (1 + MAX_MORE) * peak
            if not self._is_over:
                retain_freed()
        elif peak > self._limit:
            self._is_over = True
            release_retained()
            log.info(
                "this process took %s MiB, half as much again as a step needs; from now on it returns what steps free "
                "to the system, so they may take longer",
                f"{peak / MEBIBYTE:,.0f}",
            )


def retain_freed() -> None:
    """Have the C library keep what is freed, whatever its size; other libraries than glibc are left as they are."""
    _set_malloc(_TO_KEEP)


def release_retained() -> None:
    """Have the C library give back what is freed, as it does by default, and what it has kept."""
    _set_malloc(_BY_DEFAULT)
    _trim()


def release_unused(device: torch.device) -> None:
    """Free what only refers to itself, as networks with hooks do, and give a GPU back what torch keeps of it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def forget_peak(device: torch.device) -> None:
    """Give back what is reserved and not used, so that it does not hide what a pass uses, and measure from now on."""
    release_unused(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _trim()
        with suppress(OSError):  # where that is not allowed, the peak of the whole process is an upper bound
            (_PROCESS / "clear_refs").write_text("5", encoding="utf-8")  # proc_pid_clear_refs(5): resets VmHWM


def resident_bytes(field: str) -> int:
    """Return what of this process is in memory now (VmRSS), or was at its peak (VmHWM): proc_pid_status(5)."""
    lines = (_PROCESS / "status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _set_malloc(options: dict[int, int]) -> None:
    with suppress(AttributeError):  # a C library other than glibc
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in options.items():
            mallopt(parameter, value)


def _trim() -> None:
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
