"""Watches the leased GPUs of a run for hardware errors, and takes those that have one out of service."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from distrain.messages import counted
from distrain.system.leases import LeaseFolder
from distrain.system.loop_guard import LoopGuard
from distrain.system.nvml import XidListener, read_gpu_use

# Errors that a program causes, not the GPU: https://docs.nvidia.com/deploy/xid-errors/
_OF_PROGRAMS = {13, 31, 43, 45, 68, 109}


@contextmanager
def drain_faulty(folder: LeaseFolder, devices: Sequence[str], notify: Callable[[str], None]) -> Iterator[None]:
    """Drain each of these GPUs that reports an Xid or uncorrected memory errors while the block runs.

    The run that has it continues on it; runs that start later get other GPUs, until somebody returns it to service.
    """
    if not any(device.startswith(("GPU-", "MIG-")) for device in devices):
        yield
        return
    before = read_gpu_use()
    over = threading.Event()

    def drain(device: str, reason: str) -> None:
        if device in devices and folder.find_drain(device) is None:
            with suppress(OSError):
                folder.drain(device, reason)
                notify(f"{device} has been taken out of service ({reason}); `distrain devices undrain` returns it")

    thread = threading.Thread(target=_listen, args=(devices, drain, over), name="distrain-xid", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for device, use in read_gpu_use().items():
            if device in before and (new := use.uncorrected_errors - before[device].uncorrected_errors) > 0:
                drain(device, f"{counted(new, 'uncorrected memory error')} during a run")


def _listen(devices: Sequence[str], drain: Callable[[str, str], None], over: threading.Event) -> None:
    guard = LoopGuard("the thread that waits for errors of GPUs")
    with guard, XidListener(devices) as listener:
        while not over.is_set():
            for device, xid in listener.wait():
                if xid not in _OF_PROGRAMS:
                    drain(device, f"Xid {xid}")
