"""Lists the devices of this machine, and leases those of a run: GPUs and MIG devices by UUID, or slots of the CPU."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from distrain.config.profile import Profile
from distrain.errors import LaunchError, StoppedError
from distrain.messages import byte_size, joined
from distrain.runs.local_job import DeviceKind, counted_devices
from distrain.service.hardware import drain_faulty
from distrain.system.gpus import list_visible_devices, show_only, unnamed_devices
from distrain.system.leases import (
    LEASED,
    LOCK_DIR,
    Drain,
    Holder,
    Lease,
    LeaseFolder,
    assigned_devices,
    open_leases,
)
from distrain.system.nvml import GpuUse, read_gpu_use
from distrain.system.shared_locks import LeasesUnavailableError, LockFileError

_FILLED_SHARE = 0.1  # of a GPU's memory, if processes compute on it
_FILLED_WITHOUT_PROCESS = 0.5  # where NVML names no process, as in containers
_WAIT_S = 1.0


class DevicesTakenError(LaunchError):
    """Too few devices are free now."""


@dataclass(frozen=True)
class DeviceState:
    """A device, and what keeps a run from using it."""

    id: str
    kind: DeviceKind
    name: str
    memory_bytes: int = 0
    holder: Holder | None = None  # the run that has leased it
    drain: Drain | None = None
    filled_by: str | None = None  # the other programs that use its memory
    fault: str | None = None  # why it cannot be leased

    @property
    def is_free(self) -> bool:
        """Whether a run can lease it now."""
        return self.holder is None and not self.is_out

    @property
    def is_out(self) -> bool:
        """Whether it is out of service, in use by programs that take no leases, or cannot be leased."""
        return self.drain is not None or self.filled_by is not None or self.fault is not None

    @property
    def state(self) -> str:
        """What it does, as one word."""
        if self.holder is not None:
            return "leased"
        if self.drain is not None:
            return "drained"
        return "filled" if self.filled_by is not None else "faulty" if self.fault is not None else "free"

    @property
    def reason(self) -> str:
        """Who has it, or why it is out of service; empty where it is free."""
        if self.holder is not None:
            return f"leased to {self.holder}{f'; {self.drain}' if self.drain is not None else ''}"
        return str(self.drain or self.filled_by or self.fault or "")

    def as_json(self) -> dict[str, Any]:
        """Return the device as a JSON object."""
        return {**asdict(self), "state": self.state, "is_free": self.is_free}


def list_devices(kind: DeviceKind | None = None, *, slots: int | None = None) -> list[DeviceState]:
    """Return the devices of this machine that this process may use, with their state.

    `slots` is the number of CPU slots, by default one for each core.
    """
    try:
        folder = open_leases()
    except LeasesUnavailableError:
        folder = None
    gpus = _list_gpus(folder) if kind != "cpu" else []
    return gpus + (_list_slots(folder, slot_names(slots)) if kind != "gpu" else [])


def slot_names(slots: int | None = None) -> list[str]:
    """Return the names of the CPU slots; by default there is one for each core of the machine."""
    return [f"cpu-{number}" for number in range(slots or os.cpu_count() or 1)]


def require_leases() -> LeaseFolder:
    """Return the folder of leases; raises `LaunchError` where it cannot be used."""
    try:
        folder = open_leases()
    except LeasesUnavailableError as error:
        raise LaunchError(f"devices cannot be leased: {error}") from None
    if folder is None:
        raise LaunchError(f"{LOCK_DIR} is empty, so no devices are leased; name a folder, or unset it")
    return folder


@contextmanager
def lease_devices(
    profile: Profile,
    run: Path,
    *,
    wait: bool,
    is_over: Callable[[], bool],
    notify: Callable[[str], None],
) -> Iterator[dict[str, str]]:
    """Lease the devices of a run while the block runs; yields the environment variables of its processes.

    With `wait`, waits until enough are free, or until `is_over`. Raises `LaunchError` where too few are free, which
    says who has the others. In an allocation of SLURM, which has assigned the devices, and where leases are turned
    off, nothing is leased. Where the folder of leases cannot be used, those that no program fills count as free.
    """
    is_leased = profile.launcher != "slurm"
    folder: LeaseFolder | None = None
    try:
        if is_leased:
            folder = open_leases()
            is_leased = folder is not None
    except LeasesUnavailableError as error:
        if profile.device == "cuda":
            notify(f"note: devices are not leased, so another run may choose the same GPU: {error}")
    if not is_leased:
        yield {}
        return
    devices, leases = _wait_for_devices(folder, profile, run, wait=wait, is_over=is_over, notify=notify)
    try:
        with nullcontext() if folder is None else drain_faulty(folder, devices, notify):
            leased = {LEASED: ",".join(devices)} if leases else {}
            yield {**leased, **(show_only(devices) if profile.device == "cuda" else {})}
    finally:
        for lease in leases:
            lease.release()


def _wait_for_devices(
    folder: LeaseFolder | None,
    profile: Profile,
    run: Path,
    *,
    wait: bool,
    is_over: Callable[[], bool],
    notify: Callable[[str], None],
) -> tuple[list[str], list[Lease]]:
    is_reported = False
    while True:
        devices, leases, states = _choose(folder, profile, run)
        if devices is not None:
            _report_skipped(states, notify)
            return devices, leases
        fault = _describe_shortage(profile, states)
        if _count(profile, states) > len(states):
            raise LaunchError(fault)
        if not wait:
            raise DevicesTakenError(f"{fault}; wait with --wait, or queue the run with --queue")
        if not is_reported:
            notify(f"waiting: {fault}")
            is_reported = True
        next_s = time.monotonic() + _WAIT_S
        while time.monotonic() < next_s:
            if is_over():
                raise StoppedError
            time.sleep(_WAIT_S / 20)


def _choose(
    folder: LeaseFolder | None, profile: Profile, run: Path
) -> tuple[list[str] | None, list[Lease], list[DeviceState]]:
    """Choose and lease as many devices as the profile needs, all or none; also returns the states of the candidates."""
    with nullcontext() if folder is None else folder.choosing():
        states = _candidates(folder, profile)
        wanted = _count(profile, states)
        free = [state.id for state in states if state.is_free]
        if folder is None:
            return (free[:wanted] if len(free) >= wanted else None), [], states
        leases: list[Lease] = []
        for device in free:
            if len(leases) < wanted and (lease := _acquire(folder, device, run)) is not None:
                leases.append(lease)
        if len(leases) == wanted:
            return [lease.device for lease in leases], leases, states
        for lease in leases:
            lease.release()
    return ([] if _is_shared_with_itself(profile, states, run) else None), [], states


def _acquire(folder: LeaseFolder, device: str, run: Path) -> Lease | None:
    try:
        return folder.acquire(device, run)
    except LockFileError:
        return None


def _candidates(folder: LeaseFolder | None, profile: Profile) -> list[DeviceState]:
    """Return the devices that the run may use: those assigned by the queue, or all that it sees."""
    assigned = assigned_devices()
    if profile.device == "cpu":
        return _list_slots(folder, assigned or slot_names())
    return [state for state in _list_gpus(folder) if not assigned or state.id in assigned]


def _count(profile: Profile, states: list[DeviceState]) -> int:
    """Return how many devices the run needs; more CPU processes than there are slots share all of them."""
    needed = profile.processes * profile.devices
    return min(needed, len(states)) if profile.device == "cpu" else needed


def _is_shared_with_itself(profile: Profile, states: list[DeviceState], run: Path) -> bool:
    """Whether the CPU slots that are missing are those of the same run, of which several nodes are this machine."""
    own = [state for state in states if state.holder is not None and state.holder.run == str(run)]
    free = [state for state in states if state.is_free]
    return profile.device == "cpu" and bool(own) and len(own) + len(free) >= _count(profile, states)


def _report_skipped(states: list[DeviceState], notify: Callable[[str], None]) -> None:
    for state in states:
        if state.kind == "gpu" and state.is_out:
            notify(f"note: {state.name} {state.id} is skipped: {state.reason}")


def _describe_shortage(profile: Profile, states: list[DeviceState]) -> str:
    wanted, free = _count(profile, states), len([state for state in states if state.is_free])
    kind: DeviceKind = "gpu" if profile.device == "cuda" else "cpu"
    needed = f"{counted_devices(wanted, kind)} {'is' if wanted == 1 else 'are'} needed"
    available = f"{free or 'none'} of {len(states)} {'is' if free < 2 else 'are'} free"
    by_reason: dict[str, list[str]] = {}
    for state in states:
        if not state.is_free:
            by_reason.setdefault(state.reason, []).append(state.id)
    users = [f"{joined(names, last='and')} {reason}" for reason, names in by_reason.items()]
    return f"{needed}, and {available}{' (' + '; '.join(users) + ')' if users else ''}"


def _list_slots(folder: LeaseFolder | None, names: list[str]) -> list[DeviceState]:
    return [_look(folder, DeviceState(name, "cpu", "CPU slot")) for name in names]


def _list_gpus(folder: LeaseFolder | None) -> list[DeviceState]:
    use = read_gpu_use()
    found = [DeviceState(one.uuid, "gpu", one.name, one.memory_bytes) for one in list_visible_devices()]
    found += [DeviceState(name, "gpu", "GPU") for name in unnamed_devices()]
    return [_look(folder, state, use.get(state.id)) for state in found]


def _look(folder: LeaseFolder | None, device: DeviceState, use: GpuUse | None = None) -> DeviceState:
    """Return the device with what keeps a run from using it; only programs without a lease fill it."""
    holder = drain = fault = None
    if folder is not None:
        try:
            holder, drain = folder.find_holder(device.id), folder.find_drain(device.id)
        except LeasesUnavailableError as error:
            fault = str(error)
    filled_by = None if holder is not None or use is None else _describe_filling(use, device.memory_bytes)
    return replace(device, holder=holder, drain=drain, filled_by=filled_by, fault=fault)


def _describe_filling(use: GpuUse, memory: int) -> str | None:
    """Return what fills a GPU that no run has leased; None where nothing does."""
    share = use.used_bytes / memory if memory else 0.0
    if share < (_FILLED_SHARE if use.pids else _FILLED_WITHOUT_PROCESS):
        return None
    by = f"process {', '.join(map(str, use.pids))}" if use.pids else "another program"
    return f"filled by {by} ({byte_size(use.used_bytes)} of its memory)"
