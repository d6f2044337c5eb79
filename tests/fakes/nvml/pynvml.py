"""NVML as nvidia-ml-py shows it, for the GPUs that FAKE_NVML describes."""

import json
import os
from pathlib import Path
from types import SimpleNamespace


class NVMLError(Exception):
    pass


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
    return SimpleNamespace(total=handle["memory"])


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
    """The processes in a file, a number a line: each look takes the first line away."""
    path = os.environ.get("FAKE_NVML_PROCESSES")
    if path is None:
        return []
    lines = Path(path).read_text().splitlines()
    Path(path).write_text("\n".join(lines[1:]))
    return [SimpleNamespace(pid=int(pid)) for pid in (lines[0].split() if lines else [])]
