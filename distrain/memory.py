"""Owns the memory of this process: how freed memory is kept for what comes next, and how much there is and was."""

import ctypes
import gc
from contextlib import suppress
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # mallopt(3)
_TOP_PAD = 64 * 2**20  # bytes asked of the kernel beyond what is needed, at each time


def keep_freed() -> None:
    """Have the C library keep what is freed, to the end of this process: training on a CPU asks for the same again.

    By default glibc maps large blocks of memory anew each time, and the kernel clears their pages one by one: up to
    half of the time of a step whose activations are large. `forget_peak` still gives everything back. Other C libraries
    are left as they are.
    """
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, _TOP_PAD)):
            mallopt(parameter, value)


def forget_peak(device: torch.device) -> None:
    """Give back what is held and not used, so that it does not hide what a pass takes, and measure from now on."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(AttributeError):  # a C library other than glibc
            ctypes.CDLL(None).malloc_trim(0)
        with suppress(OSError):  # where that is not allowed, the peak of the whole process is an upper bound
            (_PROCESS / "clear_refs").write_text("5")  # proc_pid_clear_refs(5): resets VmHWM


def resident_bytes(field: str) -> int:
    """Return what of this process is in memory now (VmRSS), or was at its peak (VmHWM): proc_pid_status(5)."""
    lines = (_PROCESS / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
