"""NVML as nvidia-ml-py shows it, for the GPUs that FAKE_NVML describes."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

NVML_ERROR_NOT_FOUND = 6
NVML_ERROR_TIMEOUT = 10
NVML_ERROR_GPU_IS_LOST = 15
NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
NVML_VOLATILE_ECC = 0
nvmlEventTypeXidCriticalError = 8  # noqa: N816 - NVML's name


class NVMLError(Exception):
    def __init__(self, message, value=999):
        super().__init__(message)
        self.value = value


def _spec():
    return json.loads(os.environ["FAKE_NVML"])


def nvmlInit():
    if os.environ.get("FAKE_NVML", "missing") == "missing":
        raise NVMLError("NVML Shared Library Not Found")
    if (fault := _spec().get("fault")) is not None:
        raise NVMLError(fault)


def nvmlShutdown():
    pass


def nvmlSystemGetDriverVersion():
    return _spec().get("driver", "580.82.07")


def nvmlSystemGetCudaDriverVersion():
    return _spec().get("cuda", 13000)


def nvmlDeviceGetCount():
    return len(_spec()["gpus"])


def nvmlDeviceGetHandleByIndex(index):
    gpu = _spec()["gpus"][index]
    if "lost" in gpu:
        raise NVMLError("GPU is lost")
    return gpu


def nvmlDeviceGetUUID(handle):
    return handle["uuid"]


def nvmlDeviceGetName(handle):
    return handle.get("name", "NVIDIA H100 80GB HBM3 MIG 1g.10gb")


def nvmlDeviceGetMemoryInfo(handle):
    return SimpleNamespace(total=handle["memory"], used=handle.get("used", 0))


def _now(handle, name):
    """What the GPU is doing: a number, or one for each look, of which the last one stays."""
    if name not in handle:
        raise NVMLError("Not Supported")
    value = handle[name]
    if not isinstance(value, list):
        return value
    return value.pop(0) if len(value) > 1 else value[0]


def nvmlDeviceGetUtilizationRates(handle):
    return SimpleNamespace(gpu=_now(handle, "utilization"), memory=0)


def nvmlDeviceGetPowerUsage(handle):
    return _now(handle, "milliwatts")


def nvmlDeviceGetTemperature(handle, sensor):
    assert sensor == 0
    return _now(handle, "celsius")


def nvmlDeviceGetClockInfo(handle, kind):
    return _now(handle, {1: "sm_mhz", 2: "memory_mhz"}[kind])


def nvmlDeviceGetCurrentClocksThrottleReasons(handle):
    return _now(handle, "reasons")


def nvmlDeviceGetCudaComputeCapability(handle):
    return tuple(handle["capability"])


def nvmlDeviceGetMigMode(handle):
    if "mig" not in handle:
        raise NVMLError("Not Supported")
    return [int(handle["mig"]), int(handle["mig"])]


def nvmlDeviceGetMaxMigDeviceCount(handle):
    return 7


def nvmlDeviceGetMigDeviceHandleByIndex(handle, index):
    if index >= len(handle["instances"]):
        raise NVMLError("Not Found")
    return handle["instances"][index]


def nvmlDeviceGetGpuInstanceId(handle):
    return int(handle["place"].split("/")[0])


def nvmlDeviceGetComputeInstanceId(handle):
    return int(handle["place"].split("/")[1])


def nvmlDeviceGetComputeRunningProcesses(handle):
    """Those of the GPU, or the processes in a file, a number a line: each look takes the first line away."""
    if "pids" in handle:
        return [SimpleNamespace(pid=pid) for pid in handle["pids"]]
    path = os.environ.get("FAKE_NVML_PROCESSES")
    if path is None:
        return []
    lines = Path(path).read_text().splitlines()
    Path(path).write_text("\n".join(lines[1:]))
    return [SimpleNamespace(pid=int(pid)) for pid in (lines[0].split() if lines else [])]


def nvmlDeviceGetHandleByUUID(uuid):
    for gpu in _spec()["gpus"]:
        for device in [gpu, *gpu.get("instances", [])]:
            if device["uuid"] == uuid and "lost" not in device:
                return device
    raise NVMLError("Not Found", NVML_ERROR_NOT_FOUND)


def nvmlDeviceGetTotalEccErrors(handle, kind, counter):
    if "errors" not in handle:
        raise NVMLError("Not Supported")
    return handle["errors"]


def nvmlEventSetCreate():
    return []


def nvmlDeviceRegisterEvents(handle, kinds, events):
    if "without_events" in handle:
        raise NVMLError("Not Supported")
    events.append(handle["uuid"])


def nvmlEventSetFree(events):
    events.clear()


def nvmlEventSetWait_v2(events, timeout_ms):
    """The Xid errors in a file, each once: on a line the UUID of the GPU, the number, and maybe the MIG device."""
    path = Path(os.environ["FAKE_NVML_EVENTS"])
    lines = path.read_text().splitlines()
    for line in lines:
        uuid, xid, *place = line.split()
        if uuid in events:
            draft = path.with_suffix(".draft")
            draft.write_text("\n".join(other for other in lines if other is not line))
            draft.replace(path)
            if xid == "lost":
                raise NVMLError("GPU is lost", NVML_ERROR_GPU_IS_LOST)
            gi, ci = map(int, place[0].split("/")) if place else (0xFFFFFFFF, 0xFFFFFFFF)
            return SimpleNamespace(eventData=int(xid), gpuInstanceId=gi, computeInstanceId=ci)
    time.sleep(timeout_ms / 1000)
    raise NVMLError("Timeout", NVML_ERROR_TIMEOUT)
