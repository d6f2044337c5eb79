"""Lists the devices of this machine, and leases those of a run: GPUs and MIG devices by UUID, or slots of the CPU."""

import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from distrain.config.profile import Profile
from distrain.errors import LaunchError, StoppedError
from distrain.messages import byte_size, joined
from distrain.service.hardware import drain_faulty
from distrain.system.gpus import list_visible_devices, show_only, unnamed_devices
from distrain.system.leases import (
    LEASED,
    LOCK_DIR,
    Drain,
    Holder,
    Lease,
    LeaseFolder,
    LeasesUnavailableError,
    assigned_devices,
    open_leases,
)
from distrain.system.nvml import GpuUse, read_gpu_use

Kind: TypeAlias = Literal["gpu", "cpu"]

_FILLED_SHARE = 0.1  # of a GPU's memory, if processes compute on it
_FILLED_WITHOUT_PROCESS = 0.5  # where NVML names no process, as in containers
_TRIES = 5
_WAIT_S = 1.0


@dataclass(frozen=True)
class DeviceState:
    """A device, and what keeps a run from using it."""

    id: str
    kind: Kind
    name: str
    memory_bytes: int = 0
    holder: Holder | None = None  # the run that has leased it
    drain: Drain | None = None
    filled_by: str | None = None  # the other programs that use its memory

    @property
    def is_free(self) -> bool:
        """Whether a run can lease it now."""
        return self.holder is None and not self.is_out

    @property
    def is_out(self) -> bool:
        """Whether it is out of service, or in use by programs that take no leases."""
        return self.drain is not None or self.filled_by is not None

    @property
    def state(self) -> str:
        """What it does, as one word."""
        if self.holder is not None:
            return "leased"
        return "drained" if self.drain is not None else "filled" if self.filled_by is not None else "free"

    @property
    def reason(self) -> str:
        """Who has it, or why it is out of service; empty where it is free."""
        if self.holder is not None:
            return f"leased to {self.holder}"
        return str(self.drain or self.filled_by or "")


def list_devices(kind: Kind | None = None, *, slots: int | None = None) -> list[DeviceState]:
    """Return the devices of this machine that this process may use, with their state.

    `slots` is the number of CPU slots, by default one for each core.
    """
    try:
        folder = open_leases()
    except LeasesUnavailableError:
        folder = None
    use = read_gpu_use() if kind != "cpu" else {}
    found = [*_gpus()] if kind != "cpu" else []
    if kind != "gpu":
        found += [(name, "cpu", "CPU slot", 0) for name in slot_names(slots)]
    return [_look(folder, *device, use=use.get(device[0])) for device in found]


def slot_names(slots: int | None = None) -> list[str]:
    """Return the names of the CPU slots; by default there is one for each core of the machine."""
    return [f"cpu-{number}" for number in range(slots or os.cpu_count() or 1)]


def has_gpus() -> bool:
    """Whether this machine has GPUs that this process may use."""
    return bool(list_visible_devices())


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
    off, nothing is leased.
    """
    folder = _find_folder(profile, notify)
    if folder is None:
        yield {}
        return
    leases = _wait_for_leases(folder, profile, run, wait=wait, is_over=is_over, notify=notify)
    devices = [lease.device for lease in leases]
    try:
        with drain_faulty(folder, devices, notify):
            yield _variables(profile, devices)
    finally:
        for lease in leases:
            lease.release()


def _find_folder(profile: Profile, notify: Callable[[str], None]) -> LeaseFolder | None:
    if profile.launcher == "slurm":
        return None
    try:
        return open_leases()
    except LeasesUnavailableError as error:
        if profile.device == "cuda":
            notify(f"note: devices are not leased, so another run may choose the same GPU: {error}")
        return None


def _wait_for_leases(
    folder: LeaseFolder,
    profile: Profile,
    run: Path,
    *,
    wait: bool,
    is_over: Callable[[], bool],
    notify: Callable[[str], None],
) -> list[Lease]:
    is_reported = False
    while True:
        leases, states = _try_to_lease(folder, profile, run)
        if leases is not None:
            _report_skipped(states, notify)
            return leases
        fault = _describe_shortage(profile, states)
        if not wait:
            raise LaunchError(f"{fault}; wait with --wait, or queue the run with --queue")
        if is_over():
            raise StoppedError
        if not is_reported:
            notify(f"waiting: {fault}")
            is_reported = True
        time.sleep(_WAIT_S)


def _try_to_lease(folder: LeaseFolder, profile: Profile, run: Path) -> tuple[list[Lease] | None, list[DeviceState]]:
    """Lease as many devices as the profile needs, all or none; also returns the states of the candidates.

    Two runs that take the last devices at the same time may each get some of them: both give them back, and try again
    after a random pause.
    """
    for number in range(_TRIES):
        time.sleep(number * random.uniform(0.01, 0.05))
        states = _candidates(profile)
        wanted = _count(profile, states)
        leases: list[Lease] = []
        for state in states:
            if len(leases) < wanted and not state.is_out and (lease := folder.acquire(state.id, run)) is not None:
                leases.append(lease)
        if len(leases) == wanted:
            return leases, states
        for lease in leases:
            lease.release()
        if profile.device == "cpu" and _is_shared_with_itself(states, run, wanted):
            return [], states
        if len([state for state in states if state.is_free]) < wanted:
            break
    return None, states


def _candidates(profile: Profile) -> list[DeviceState]:
    """Return the devices that the run may use: those assigned by the queue, or all that it sees."""
    assigned = assigned_devices()
    if profile.device == "cpu" and assigned:
        folder = open_leases()
        return [_look(folder, name, "cpu", "CPU slot", 0) for name in assigned]
    states = list_devices("gpu" if profile.device == "cuda" else "cpu")
    return [state for state in states if not assigned or state.id in assigned]


def _count(profile: Profile, states: list[DeviceState]) -> int:
    """Return how many devices the run needs; more CPU processes than there are slots share all of them."""
    needed = profile.processes * profile.devices
    return min(needed, len(states)) if profile.device == "cpu" else needed


def _is_shared_with_itself(states: list[DeviceState], run: Path, wanted: int) -> bool:
    """Whether the slots that are missing are those of the same run, of which several nodes are this machine."""
    own = [state for state in states if state.holder is not None and state.holder.run == str(run)]
    return len(own) + len([state for state in states if state.is_free]) >= wanted and bool(own)


def _report_skipped(states: list[DeviceState], notify: Callable[[str], None]) -> None:
    for state in states:
        if state.kind == "gpu" and state.is_out:
            notify(f"note: {state.name} {state.id} is skipped: {state.reason}")


def _describe_shortage(profile: Profile, states: list[DeviceState]) -> str:
    wanted, free = _count(profile, states), len([state for state in states if state.is_free])
    noun = "GPU" if profile.device == "cuda" else "CPU slot"
    needed = f"1 {noun} is needed" if wanted == 1 else f"{wanted} {noun}s are needed"
    available = f"{free or 'none'} of {len(states)} {'is' if free < 2 else 'are'} free"
    by_reason: dict[str, list[str]] = {}
    for state in states:
        if not state.is_free:
            by_reason.setdefault(state.reason, []).append(state.id)
    users = [f"{joined(names, last='and')} {reason}" for reason, names in by_reason.items()]
    return f"{needed}, and {available} ({'; '.join(users)})"


def _variables(profile: Profile, devices: list[str]) -> dict[str, str]:
    if not devices:
        return {}
    visible = show_only(devices) if profile.device == "cuda" else {}
    return {LEASED: ",".join(devices), **visible}


def _gpus() -> Iterable[tuple[str, Kind, str, int]]:
    for device in list_visible_devices():
        yield device.uuid, "gpu", device.name, device.memory_bytes
    for name in unnamed_devices():
        yield name, "gpu", "GPU", 0


def _look(
    folder: LeaseFolder | None, name: str, kind: Kind, title: str, memory: int, *, use: GpuUse | None = None
) -> DeviceState:
    holder = None if folder is None else folder.find_holder(name)
    drain = None if folder is None else folder.find_drain(name)
    filled_by = None if holder is not None or use is None else _describe_filling(use, memory)
    return DeviceState(name, kind, title, memory, holder, drain, filled_by)


def _describe_filling(use: GpuUse, memory: int) -> str | None:
    """Return what fills a GPU that no run has leased; None where nothing does."""
    share = use.used_bytes / memory if memory else 0.0
    if share < (_FILLED_SHARE if use.pids else _FILLED_WITHOUT_PROCESS):
        return None
    by = f"process {', '.join(map(str, use.pids))}" if use.pids else "another program"
    return f"filled by {by} ({byte_size(use.used_bytes)} of its memory)"
