"""Reads the NVIDIA GPUs and the driver of this machine from NVML, without importing torch."""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

_RELEASE_TIMEOUT_S = 30.0  # how long to wait until the driver has freed the memory of a process
_POLL_S = 0.1
_NO_INSTANCE = 0xFFFFFFFF  # of an error that is not attributed to one MIG device
_OFF_THE_BUS = 79  # the Xid of a GPU that has fallen off the bus, of which NVML can then read nothing


@dataclass(frozen=True)
class MigDevice:
    """One compute instance of a GPU in MIG mode; CUDA shows it as a separate device."""

    uuid: str  # MIG-...
    name: str
    memory_bytes: int
    place: str  # GPU instance/compute instance, such as 1/0, the end of the older form of its name


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine. In MIG mode it is usable only through its instances."""

    uuid: str  # GPU-...
    name: str
    memory_bytes: int
    capability: str  # compute capability, such as 9.0
    is_mig: bool = False
    instances: tuple[MigDevice, ...] = ()


@dataclass(frozen=True)
class Nvml:
    """What NVML reports about this machine; `fault` says why this is nothing or incomplete."""

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: str | None = None  # the newest version that the driver supports
    fault: str | None = None


@cache  # without a persistence daemon the driver may take seconds to start
def read_nvml() -> Nvml:
    """Query NVML for the GPUs that this process may use, in the order of their indices."""
    try:
        import pynvml
    except ImportError:
        return Nvml(fault="package nvidia-ml-py is not installed")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Nvml(fault=_message(error))
    try:
        driver, version = pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlSystemGetCudaDriverVersion()
        found, fault = [], None
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                found.append(_read_gpu(pynvml, index))
            except pynvml.NVMLError as error:  # for example a GPU that has fallen off the bus
                fault = f"GPU {index}: {_message(error)}"
        return Nvml(tuple(found), driver=driver, cuda=f"{version // 1000}.{version % 1000 // 10}", fault=fault)
    except pynvml.NVMLError as error:
        return Nvml(fault=_message(error))
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


@dataclass(frozen=True)
class GpuUse:
    """The memory of a GPU or MIG device that is in use, the processes that compute on it, and its hardware errors."""

    used_bytes: int = 0
    pids: tuple[int, ...] = ()
    uncorrected_errors: int = 0  # of its memory, since the driver was loaded


def read_gpu_use() -> dict[str, GpuUse]:
    """Return the use of each GPU and MIG device by its UUID; empty without NVML."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - the module or the driver may be missing
        return {}
    found: dict[str, GpuUse] = {}
    try:
        for gpu in read_nvml().gpus:
            for uuid in [gpu.uuid, *(instance.uuid for instance in gpu.instances)]:
                with suppress(pynvml.NVMLError):
                    found[uuid] = _read_use(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid))
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    return found


class XidListener:
    """Waits for the errors that the driver reports of some GPUs and MIG devices; without NVML there are none."""

    _WAIT_MS = 500

    def __init__(self, devices: Iterable[str]) -> None:
        self._devices = tuple(devices)
        self._pynvml: Any = None
        self._watched: list[tuple[Any, dict[str, str]]] = []  # for each GPU its events, and the places of its devices

    def __enter__(self) -> Self:
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception:  # noqa: BLE001 - the module or the driver may be missing
            return self
        self._pynvml = pynvml
        for gpu in read_nvml().gpus:
            places = {gpu.uuid: "", **{instance.uuid: instance.place for instance in gpu.instances}}
            if watched := {uuid: place for uuid, place in places.items() if uuid in self._devices}:
                with suppress(pynvml.NVMLError):  # a GPU without these events
                    handle, events = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid), pynvml.nvmlEventSetCreate()
                    pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, events)
                    self._watched.append((events, watched))
        return self

    def __exit__(self, *_: object) -> None:
        if self._pynvml is not None:
            with suppress(self._pynvml.NVMLError):
                for events, _devices in self._watched:
                    self._pynvml.nvmlEventSetFree(events)
                self._pynvml.nvmlShutdown()

    def wait(self) -> list[tuple[str, int]]:
        """Return devices and the numbers of their errors, after at most half a second; empty where there was none.

        An error in a MIG device is only its own, unless the driver does not say in which one it was.
        """
        found: list[tuple[str, int]] = []
        for events, watched in self._watched:
            try:
                event = self._pynvml.nvmlEventSetWait_v2(events, self._WAIT_MS // len(self._watched))
                place = f"{event.gpuInstanceId}/{event.computeInstanceId}"
                of_all = event.gpuInstanceId == _NO_INSTANCE
                found += [(uuid, int(event.eventData)) for uuid, of in watched.items() if of_all or of in {"", place}]
            except self._pynvml.NVMLError as error:
                if error.value == self._pynvml.NVML_ERROR_GPU_IS_LOST:
                    found += [(uuid, _OFF_THE_BUS) for uuid in watched]
                if error.value != self._pynvml.NVML_ERROR_TIMEOUT:
                    time.sleep(self._WAIT_MS / 1000)
        if not self._watched:
            time.sleep(self._WAIT_MS / 1000)
        return found


def processes_on_gpus() -> set[int]:
    """Return the processes that hold memory of a GPU according to NVML; an empty set without NVML."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - the module or the driver may be missing: then there is no GPU to wait for
        return set()
    found: set[int] = set()
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            with suppress(pynvml.NVMLError):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                found |= {process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    except pynvml.NVMLError:
        return found
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    return found


def wait_for_release(pids: set[int]) -> set[int]:
    """Wait, up to a time limit, until none of these ended processes holds memory of a GPU.

    Returns those that still do. In a container NVML may report process ids of the host: then none is found.
    """
    deadline = time.monotonic() + _RELEASE_TIMEOUT_S
    while (remaining := pids & processes_on_gpus()) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return remaining


def nvidia_files() -> list[str]:
    """Return the device files of NVIDIA GPUs, and of WSL's, on this machine."""
    try:
        names = os.listdir("/dev")  # noqa: PTH208 - only names are needed
    except OSError:
        return []
    return sorted(f"/dev/{name}" for name in names if name == "dxg" or name.removeprefix("nvidia").isdecimal())


def has_gpus_of_others() -> bool:
    """Whether the kernel's driver has GPUs, which may not be available in this container."""
    try:
        return any(Path("/proc/driver/nvidia/gpus").iterdir())
    except OSError:
        return False


def _message(error: Exception) -> str:
    return str(error) if str(error).startswith("NVML") else f"NVML: {error}"


def _read_gpu(pynvml: Any, index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    instances: list[MigDevice] = []
    is_mig = False
    with suppress(pynvml.NVMLError):  # this GPU does not support MIG
        is_mig = pynvml.nvmlDeviceGetMigMode(handle)[0] == 1
    for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle) if is_mig else 0):
        with suppress(pynvml.NVMLError):  # numbers without an instance, and those of other users
            instances.append(_read_instance(pynvml, pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)))
    return Gpu(
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        name=pynvml.nvmlDeviceGetName(handle),
        memory_bytes=_memory_bytes(pynvml, handle),
        capability=f"{major}.{minor}",
        is_mig=is_mig,
        instances=tuple(instances),
    )


def _read_instance(pynvml: Any, handle: Any) -> MigDevice:
    return MigDevice(
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        name=pynvml.nvmlDeviceGetName(handle),
        memory_bytes=_memory_bytes(pynvml, handle),
        place=f"{pynvml.nvmlDeviceGetGpuInstanceId(handle)}/{pynvml.nvmlDeviceGetComputeInstanceId(handle)}",
    )


def _read_use(pynvml: Any, handle: Any) -> GpuUse:
    used, pids, errors = 0, set[int](), 0
    with suppress(pynvml.NVMLError):
        used = int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
    with suppress(pynvml.NVMLError):
        pids = {process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    with suppress(pynvml.NVMLError):  # a GPU without error correction
        kinds = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
        errors = int(pynvml.nvmlDeviceGetTotalEccErrors(handle, *kinds))
    return GpuUse(used, tuple(sorted(pids)), errors)


def _memory_bytes(pynvml: Any, handle: Any) -> int:
    """Return the memory of a device; 0 for integrated GPUs, which share that of the machine."""
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    except pynvml.NVMLError:
        return 0
