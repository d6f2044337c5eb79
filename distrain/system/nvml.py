"""Reads from NVML which NVIDIA GPUs and which driver this machine has, without importing torch."""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_RELEASE_S = 30.0  # a driver that takes longer to clear up after a process is not waited for
_POLL_S = 0.1


@dataclass(frozen=True)
class MigDevice:
    """One compute instance of a GPU in MIG mode; CUDA shows it as a device of its own."""

    uuid: str  # MIG-...
    name: str
    memory_bytes: int
    place: str  # GPU instance/compute instance, as the older form of its name ends: 1/0


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine. One in MIG mode is usable through its instances alone."""

    uuid: str  # GPU-...
    name: str
    memory_bytes: int
    capability: str  # compute capability, such as 9.0
    is_mig: bool = False
    instances: tuple[MigDevice, ...] = ()


@dataclass(frozen=True)
class Nvml:
    """What NVML says of this machine; with a `fault`, why it says nothing, or not all."""

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: str | None = None  # the newest version that the driver supports
    fault: str | None = None


@cache  # the driver may take seconds to start where no persistence daemon keeps it up
def read_nvml() -> Nvml:
    """Ask NVML for the GPUs that this process may use, in the order in which indices name them."""
    try:
        import pynvml
    except ImportError:
        return Nvml(fault="package nvidia-ml-py is not installed")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Nvml(fault=_in_words(error))
    try:
        driver, version = pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlSystemGetCudaDriverVersion()
        found, fault = [], None
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                found.append(_read_gpu(pynvml, index))
            except pynvml.NVMLError as error:  # one that has fallen off the bus, for example
                fault = f"GPU {index}: {_in_words(error)}"
        return Nvml(tuple(found), driver=driver, cuda=f"{version // 1000}.{version % 1000 // 10}", fault=fault)
    except pynvml.NVMLError as error:
        return Nvml(fault=_in_words(error))
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def processes_on_gpus() -> set[int]:
    """Return the processes that hold memory of a GPU, as far as NVML knows; none where it cannot be asked."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - the module or the driver may be missing: who asks has no GPU to wait for
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
    """Wait until none of these processes, which have ended, holds memory of a GPU any more; bounded.

    Returns those that still do. In a container NVML may name processes by numbers of the host: none is found then.
    """
    deadline = time.monotonic() + _RELEASE_S
    while (held := pids & processes_on_gpus()) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return held


def nvidia_files() -> list[str]:
    """Return the device files of NVIDIA GPUs, and of WSL's, that this machine shows."""
    try:
        names = os.listdir("/dev")  # noqa: PTH208 - only names are asked for
    except OSError:
        return []
    return sorted(f"/dev/{name}" for name in names if name == "dxg" or name.removeprefix("nvidia").isdecimal())


def has_gpus_of_others() -> bool:
    """Whether the kernel's driver has GPUs, be they this process's or not: a container may not have been given any."""
    try:
        return any(Path("/proc/driver/nvidia/gpus").iterdir())
    except OSError:
        return False


def _in_words(error: Exception) -> str:
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


def _memory_bytes(pynvml: Any, handle: Any) -> int:
    """Return the memory of a device; 0 where it shares that of the machine, as integrated GPUs do."""
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    except pynvml.NVMLError:
        return 0
