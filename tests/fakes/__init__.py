"""Stand-ins for what a machine without GPUs lacks, found before the real modules by PYTHONPATH."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from distrain.system.nvml import read_nvml

FOLDER = Path(__file__).parent


def gpu(number: int, **changes: Any) -> dict[str, Any]:
    """One GPU as the stand-in for NVML reports it."""
    return {
        "uuid": f"GPU-{number}1112222-3333-4444-5555-666677778888",
        "name": "NVIDIA H100 80GB HBM3",
        "memory": 80 * 2**30,
        "capability": [9, 0],
        **changes,
    }


def mig(number: int, *places: str) -> dict[str, Any]:
    """One GPU in MIG mode, with instances at these places, such as 1/0."""
    instances = [
        {"uuid": f"MIG-{number}{place[0]}aaaaaa-bbbb", "memory": 10 * 2**30, "place": place} for place in places
    ]
    return gpu(number, mig=True, instances=instances)


def nvml_environment(*gpus: dict[str, Any], **more: Any) -> dict[str, str]:
    """What makes a program find these GPUs by NVML."""
    return {"PYTHONPATH": _path("nvml"), "FAKE_NVML": json.dumps({"gpus": gpus, **more})}


def torch_environment(**answers: Any) -> dict[str, str]:
    """What makes a program find no NVML, and a torch that answers so: `version`, `cuda`, `count`, `reason`."""
    return {"PYTHONPATH": _path("torch"), "FAKE_TORCH": json.dumps(answers), "FAKE_NVML": "missing"}


def use_nvml(monkeypatch: pytest.MonkeyPatch, *found: dict[str, Any], **more: Any) -> None:
    """Have this process find these GPUs by NVML."""
    monkeypatch.syspath_prepend(str(FOLDER / "nvml"))
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.setenv("FAKE_NVML", json.dumps({"gpus": found, **more}))
    read_nvml.cache_clear()


def _path(*names: str) -> str:
    root = FOLDER.parents[1]
    return ":".join([*(str(FOLDER / name) for name in {"nvml", *names}), str(root)])
