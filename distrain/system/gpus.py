"""Counts the GPUs that training processes started here would see, without importing torch.

The number comes from NVML. Where NVML is not available but something suggests that there is a GPU, torch is asked in a
separate process. This takes seconds, so it is not done on a machine without any sign of a GPU.
"""

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from distrain.errors import LaunchError
from distrain.system.nvml import Gpu, MigDevice, Nvml, has_gpus_of_others, nvidia_files, read_nvml

log = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"
_UNNAMED = "cuda-"  # before the entry of a GPU whose UUID is not known
_TORCH_TIMEOUT_S = 180.0  # for its import from a busy file system
_COUNT_BY_TORCH = """
import json
import torch
count, reason = torch.cuda.device_count(), None
if not count:
    try:
        torch.cuda.init()
    except Exception as error:
        reason = str(error)
print(json.dumps({"count": count, "version": torch.__version__, "cuda": torch.version.cuda, "reason": reason}))
"""


@dataclass(frozen=True)
class Gpus:
    """The GPUs that a process started here sees; `str` also says where the number comes from."""

    count: int
    origin: str = "this machine shows"  # the text before the number

    def __str__(self) -> str:
        return f"{self.origin} {_gpus(self.count)}"


def find_gpus() -> Gpus:
    """Find the GPUs that a process started here sees.

    Raises `LaunchError` where there seems to be a GPU that cannot be used, and where CUDA_VISIBLE_DEVICES selects none
    of the existing ones: the user does not want to train on the CPU then.
    """
    visible = os.environ.get(VISIBLE)
    if visible is not None and not is_naming(visible):
        return Gpus(0, f"this machine with {VISIBLE}={visible!r} shows")
    nvml = read_nvml()
    if nvml.driver is None:
        return _find_by_torch(nvml, visible)
    if nvml.fault is not None:
        _note(f"{nvml.fault}; training starts without it")
    count = len(select_visible(nvml.gpus, visible))
    if visible is not None and not count:
        raise LaunchError(
            f"{VISIBLE}={visible} selects no usable GPU of the {len(nvml.gpus)} here: an entry is wrong or given "
            "twice; correct it, or train on the CPU with --device cpu"
        )
    if not count:
        return _none()
    with_list = "" if visible is None else f" with {VISIBLE}={visible}"
    as_mig = " (a process uses one MIG device)" if any(gpu.is_mig for gpu in nvml.gpus) else ""
    return Gpus(count, f"this machine{with_list}{as_mig} shows")


def count_gpus() -> int:
    """Return how many GPUs a process started here sees; raises as `find_gpus` does."""
    return find_gpus().count


def is_naming(visible: str) -> bool:
    """Whether a value of CUDA_VISIBLE_DEVICES begins with a device; `-1`, `NoDevFiles` and similar hide all."""
    first = visible.split(",")[0].strip()
    return first.startswith(("GPU-", "MIG-")) or _index(first) >= 0


def select_visible(gpus: tuple[Gpu, ...], visible: str | None) -> list[Gpu | MigDevice]:
    """Return the devices that CUDA shows to a process with this value of CUDA_VISIBLE_DEVICES, in its order.

    A list ends before the first entry that is not a device, and shows nothing where it names a device twice. Where an
    instance of a GPU in MIG mode is visible, CUDA shows only the first one.
    https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/environment-variables.html
    https://docs.nvidia.com/datacenter/tesla/mig-user-guide/
    """
    found = list_devices(gpus, visible)
    instances = [device for device in found if isinstance(device, MigDevice)]
    return [instances[0]] if instances else found


def list_devices(gpus: tuple[Gpu, ...], visible: str | None) -> list[Gpu | MigDevice]:
    """Return the GPUs and MIG devices that a value of CUDA_VISIBLE_DEVICES names, in its order."""
    everything = [device for gpu in gpus for device in _devices(gpu)]
    return everything if visible is None else _read_list(gpus, visible)


def list_visible_devices() -> list[Gpu | MigDevice]:
    """Return the devices of this machine that CUDA_VISIBLE_DEVICES allows here; empty without NVML."""
    return list_devices(read_nvml().gpus, os.environ.get(VISIBLE))


def unnamed_devices() -> list[str]:
    """Return a name for each GPU that torch sees on a machine without NVML, by its entry in CUDA_VISIBLE_DEVICES."""
    if read_nvml().driver is not None:
        return []
    count, visible = find_gpus().count, os.environ.get(VISIBLE)
    entries = map(str, range(count)) if visible is None else visible.split(",")[:count]
    return [f"{_UNNAMED}{entry.strip()}" for entry in entries]


def show_only(devices: Iterable[str]) -> dict[str, str]:
    """Return the environment variables that show only these devices to a process that uses CUDA."""
    return {VISIBLE: ",".join(device.removeprefix(_UNNAMED) for device in devices)}


def ask_torch() -> tuple[int, str]:
    """Return how many GPUs torch sees in a process started here, and the reason if it sees none."""
    return _ask_torch(os.environ.get(VISIBLE))


def first_sentence(text: str) -> str:
    """Return the first sentence of an error's text, without its full stop; those of CUDA have many lines."""
    return re.split(r"\.\s", " ".join(text.split()) + " ")[0].strip()


def _find_by_torch(nvml: Nvml, visible: str | None) -> Gpus:
    signs = [f"{path} exists" for path in nvidia_files()[:1]] + ([f"{VISIBLE}={visible}"] if visible else [])
    if not signs:
        return _none()
    count, reason = ask_torch()
    if not count:
        raise LaunchError(
            f"this machine seems to have a GPU ({', '.join(signs)}) that cannot be used: {nvml.fault}; {reason}. "
            "`distrain doctor` shows details; to train on the CPU: --device cpu"
        )
    _note(f"NVML is not available ({nvml.fault}); torch sees {_gpus(count)} here, and training uses what torch sees")
    return Gpus(count, "torch on this machine sees")


def _none() -> Gpus:
    if has_gpus_of_others():
        _note(
            "this machine has NVIDIA GPUs, but none is available to this process (a container needs "
            "docker run --gpus all)"
        )
    return Gpus(0)


@cache  # logged once, however often GPUs are counted
def _note(text: str) -> None:
    log.warning("note: %s", text)


@cache  # by the variable's value, which decides the answer
def _ask_torch(_visible: str | None) -> tuple[int, str]:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _COUNT_BY_TORCH],
            capture_output=True,
            text=True,
            check=False,
            timeout=_TORCH_TIMEOUT_S,
        )
        answer = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return 0, f"torch did not answer in {_TORCH_TIMEOUT_S:.0f} s"
    except (IndexError, ValueError):
        return 0, f"torch cannot be imported: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
    if not answer["count"] and answer["cuda"] is None:
        return 0, f"torch {answer['version']} is a CPU-only build"
    return answer["count"], f"torch {answer['version']}: {first_sentence(answer['reason'] or 'it finds none')}"


def _read_list(gpus: tuple[Gpu, ...], visible: str) -> list[Gpu | MigDevice]:
    entries = visible.split(",")
    is_numbers = not entries[0].strip().startswith(("GPU-", "MIG-"))
    found: list[Gpu | MigDevice] = []
    named: list[str] = []
    for entry in entries:
        if is_numbers:
            index = _index(entry)
            devices, name = (_devices(gpus[index]), gpus[index].uuid) if 0 <= index < len(gpus) else ([], "")
        else:
            devices, name = _by_name(gpus, entry.strip())
        if not name:
            break
        if name in named:
            return []
        named.append(name)
        found += devices
    return found


def _by_name(gpus: tuple[Gpu, ...], name: str) -> tuple[list[Gpu | MigDevice], str]:
    """Return the device of a UUID or its beginning, and the whole UUID; empty where no or several devices match."""
    if name.startswith("MIG-GPU-"):  # its older form: MIG-GPU-UUID/GPU instance/compute instance
        parent, _, place = name.removeprefix("MIG-").partition("/")
        named = [one for gpu in gpus if gpu.uuid == parent for one in gpu.instances if one.place == place]
    else:
        named = [one for gpu in gpus for one in gpu.instances if name.startswith("MIG-") and one.uuid.startswith(name)]
    if len(named) == 1:
        return [named[0]], named[0].uuid
    parents = [gpu for gpu in gpus if name.startswith("GPU-") and gpu.uuid.startswith(name)]
    return (_devices(parents[0]), parents[0].uuid) if len(parents) == 1 else ([], "")


def _devices(gpu: Gpu) -> list[Gpu | MigDevice]:
    return list(gpu.instances) if gpu.is_mig else [gpu]


def _index(entry: str) -> int:
    """Return the number at the beginning of an entry, as CUDA reads it; -1 where there is none."""
    number = re.match(r"\s*\+?(\d+)", entry)
    return int(number.group(1)) if number else -1


def _gpus(count: int) -> str:
    return {0: "no GPU", 1: "1 GPU"}.get(count, f"{count} GPUs")
