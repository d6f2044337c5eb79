"""Finds out why training cannot use the GPUs of a machine, from the reports of NVML and torch."""

from dataclasses import dataclass, field

from distrain.system.nvml import Gpu, Nvml


@dataclass(frozen=True)
class TorchGpus:
    """The GPUs that torch was built for, and those that it sees."""

    version: str
    cuda: str | None  # the CUDA version of the build; None for a build without it
    names: list[str] = field(default_factory=list)
    reason: str | None = None  # torch's message on why it sees none
    has_nccl: bool = False
    architectures: list[str] = field(default_factory=list)  # sm_90 for kernels, compute_90 for PTX


def find_gpu_faults(nvml: Nvml, torch: TorchGpus, *, num_visible: int, files: list[str]) -> list[str]:
    """Return a sentence with advice for each fault; NVML shows `num_visible` GPUs, and `files` are device files."""
    found = []
    if nvml.driver is None and torch.names:
        found.append(
            f"torch sees {_count(len(torch.names))}, but {nvml.fault}: GPUs are used, but not checked; install "
            "nvidia-ml-py, and in a container enable the utility capability "
            "(NVIDIA_DRIVER_CAPABILITIES=compute,utility)"
        )
    elif nvml.driver is None and files:
        found.append(
            f"{files[0]} exists, but {nvml.fault}, and torch sees no GPU: {_why(torch)}; check that a driver is loaded"
        )
    elif nvml.fault is not None and nvml.driver is not None:
        found.append(f"{nvml.fault}; see nvidia-smi for details; often only a reboot helps")
    if num_visible and not torch.names:
        found.append(
            f"the driver shows {_count(num_visible)}, but torch sees none: {_why(torch)}; {_advice(nvml, torch)}"
        )
    elif nvml.driver is not None and torch.names and num_visible != len(torch.names):
        found.append(f"NVML shows {_count(num_visible)}, but torch sees {len(torch.names)}; check CUDA_VISIBLE_DEVICES")
    if max(num_visible, len(torch.names)) > 1 and not torch.has_nccl:
        found.append("this torch has no NCCL, so several GPUs cannot train together; install a CUDA build of torch")
    unsupported = sorted({_described(gpu) for gpu in nvml.gpus if not _has_kernels(gpu, torch.architectures)})
    if torch.names and unsupported:
        found.append(
            f"torch {torch.version} has no kernels for {', '.join(unsupported)}, only for "
            f"{', '.join(torch.architectures)}; install a build of torch for an older CUDA version"
        )
    return found


def _why(torch: TorchGpus) -> str:
    if torch.cuda is None:
        return f"torch {torch.version} is a CPU-only build"
    return torch.reason or f"torch {torch.version} is built for CUDA {torch.cuda} and does not say why"


def _advice(nvml: Nvml, torch: TorchGpus) -> str:
    if torch.cuda is None:
        return "install a CUDA build of torch"
    if nvml.cuda is not None and _major(nvml.cuda) < _major(torch.cuda):
        return (
            f"driver {nvml.driver} supports CUDA {nvml.cuda}, but torch is built for {torch.cuda}: update the driver, "
            f"or install a build of torch for CUDA {_major(nvml.cuda)}"
        )
    return "check the driver"


def _has_kernels(gpu: Gpu, architectures: list[str]) -> bool:
    """Whether a build runs on a GPU: by kernels of its major version, or by PTX of any earlier one.

    https://docs.nvidia.com/cuda/cuda-programming-guide/01-introduction/cuda-platform.html
    """
    major, minor = map(int, gpu.capability.split("."))
    for architecture in architectures:
        kind, _, number = architecture.partition("_")
        digits = "".join(char for char in number if char.isdigit())
        built = int(digits[:-1]), int(digits[-1])
        if (kind == "compute" and built <= (major, minor)) or (built[0] == major and built[1] <= minor):
            return True
    return not architectures


def _described(gpu: Gpu) -> str:
    return f"{gpu.name} (compute capability {gpu.capability})"


def _count(number: int) -> str:
    return "1 GPU" if number == 1 else f"{number} GPUs"


def _major(version: str) -> int:
    return int(version.partition(".")[0])
