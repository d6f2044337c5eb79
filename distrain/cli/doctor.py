"""`distrain doctor`: reports the software and devices of this machine, and what is missing for training."""

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import typer

from distrain.cli.json_output import print_json
from distrain.cli.options import AsJson
from distrain.messages import first_line

GIBIBYTE = 2**30
_SEPARATE_ROWS = {"devices", "cuda_fault"}


def doctor(as_json: AsJson = False) -> None:
    """Report versions, devices and problems; exit code 1 if there is a problem.

    Example: `distrain doctor --json`
    """
    from distrain.runs.environment import describe_environment

    facts = describe_environment()
    facts["free_disk_gib"] = round(shutil.disk_usage(Path.cwd()).free / GIBIBYTE, 1)
    facts["shared_memory_gib"] = _shared_memory_gib()
    facts["torch"] = _describe_torch()
    facts["problems"] = _problems(facts)
    if as_json:
        print_json(facts)
    else:
        _print(facts)
    raise typer.Exit(1 if facts["problems"] else 0)


def _describe_torch() -> dict[str, Any] | str:
    """Import torch, as training does, and return its devices and backends; the error's text if it fails."""
    try:
        import torch
        import torch.distributed as dist
        import torchvision  # noqa: F401

        from distrain.data.sources.decoders import png_decoder
    except (ImportError, OSError, RuntimeError) as error:
        return first_line(error)
    from distrain.system.gpus import first_sentence

    count, fault = torch.cuda.device_count(), None
    if not count:
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except (RuntimeError, AssertionError) as error:
            fault = first_sentence(str(error))
    return {
        "version": torch.__version__,
        "cuda_build": torch.version.cuda,
        "cuda_fault": fault,
        "devices": [torch.cuda.get_device_name(index) for index in range(count)],
        "architectures": torch.cuda.get_arch_list() if count else [],
        "threads": torch.get_num_threads(),
        "gloo": dist.is_available() and dist.is_gloo_available(),
        "nccl": dist.is_available() and dist.is_nccl_available(),
        "png": "torchcodec" if png_decoder() else "pillow",
    }


def _problems(facts: dict[str, Any]) -> list[str]:
    found = [f"{name} is not installed: python -m pip install {name}" for name, v in facts["versions"].items() if not v]
    torch_facts = facts["torch"]
    if isinstance(torch_facts, str):
        return [*found, f"torch or torchvision cannot be imported ({torch_facts}); install both from the same index"]
    if not torch_facts["gloo"]:
        found.append("this torch has no gloo, so several CPU processes cannot train together")
    found += _gpu_problems(torch_facts)
    if facts["free_disk_gib"] < 1:
        found.append(f"only {facts['free_disk_gib']} GiB of disk is free here; checkpoints may not fit")
    memory = facts["shared_memory_gib"]
    if len(facts["gpus"]) > 1 and memory is not None and memory < 1:
        found.append(f"/dev/shm has {memory} GiB free, but NCCL may need more between GPUs (docker run --shm-size)")
    return found


def _gpu_problems(torch_facts: dict[str, Any]) -> list[str]:
    from distrain.system.gpu_faults import TorchGpus, find_gpu_faults
    from distrain.system.gpus import VISIBLE, is_naming, select_visible
    from distrain.system.nvml import nvidia_files, read_nvml

    nvml, visible = read_nvml(), os.environ.get(VISIBLE)
    seen = TorchGpus(
        version=torch_facts["version"],
        cuda=torch_facts["cuda_build"],
        names=torch_facts["devices"],
        reason=torch_facts["cuda_fault"],
        has_nccl=torch_facts["nccl"],
        architectures=torch_facts["architectures"],
    )
    files = [] if visible is not None and not is_naming(visible) else nvidia_files()
    return find_gpu_faults(nvml, seen, num_visible=len(select_visible(nvml.gpus, visible)), files=files)


def _shared_memory_gib() -> float | None:
    path = Path("/dev/shm")
    return round(shutil.disk_usage(path).free / GIBIBYTE, 1) if path.is_dir() else None


def _print(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)
    torch_facts, driver = facts["torch"], facts["driver"]
    rows = {
        "python": f"{facts['python']} on {facts['platform']}",
        "packages": ", ".join(f"{name} {version or 'MISSING'}" for name, version in facts["versions"].items()),
        "cpus": str(facts["cpus"]),
        "gpus": _describe_gpus(facts["gpus"]),
        "driver": f"{driver['version']}, CUDA {driver['cuda']}" if driver["version"] else "none",
        "free disk": f"{facts['free_disk_gib']} GiB",
        "/dev/shm": "none" if facts["shared_memory_gib"] is None else f"{facts['shared_memory_gib']} GiB free",
    }
    if isinstance(torch_facts, dict):
        rows["torch"] = ", ".join(f"{key} {value}" for key, value in torch_facts.items() if key not in _SEPARATE_ROWS)
        rows["devices"] = ", ".join(torch_facts["devices"]) or "cpu"
    for name, value in rows.items():
        console.print(f"[bold]{name:<10}[/bold]", end="")
        console.print(value, markup=False, soft_wrap=True)
    for problem in facts["problems"]:
        console.print(f"[bold red]missing[/bold red]   {escape(problem)}", soft_wrap=True)
    if not facts["problems"]:
        console.print("[bold green]ready[/bold green]     nothing is missing")


def _describe_gpus(gpus: list[dict[str, Any]]) -> str:
    counted = Counter(f"{gpu['name']}, {gpu['memory_gib']} GiB, compute capability {gpu['capability']}" for gpu in gpus)
    return "; ".join(f"{count} x {gpu}" for gpu, count in counted.items()) or "none"
