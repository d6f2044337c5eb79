"""The page of the queue and the devices."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from distrain.errors import UserError
from distrain.messages import byte_size
from distrain.runs.directory import RunDirectory
from distrain.runs.local_job import counted_devices
from distrain.service.devices import DeviceState, list_devices
from distrain.service.queue import is_served
from distrain.service.table import read_queue
from distrain.service.web.rendering import render
from distrain.service.web.site import TheSite
from distrain.system.display import duration

router = APIRouter()


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device as the page shows it; `run` is the run of this folder that has it, and `use` what that run measures."""

    state: DeviceState
    memory: str
    run: str | None
    use: str


@router.get("/queue")
def show_queue(request: Request, site: TheSite) -> HTMLResponse:
    """Show the devices with who has them, and the queue in its order."""
    fault, rows = None, list[dict[str, Any]]()
    try:
        rows = read_queue(site.root, now=time.time())
    except UserError as error:
        fault = str(error)
    return render(
        request,
        "queue.html",
        devices=list_own_devices(list_devices(slots=site.slots), site.root),
        rows=rows,
        needs=describe_needs,
        fault=fault,
        is_served=is_served(site.root),
        now=time.time(),
        duration=duration,
    )


def list_own_devices(states: Iterable[DeviceState], root: Path) -> list[Device]:
    """Return the devices of this machine; of the runs below `root`, also their use."""
    return [
        Device(
            state=state,
            memory=byte_size(state.memory_bytes) if state.memory_bytes else "",
            run=(name := find_own_run(state, root)),
            use="" if name is None else describe_use(RunDirectory(root / name), state),
        )
        for state in states
    ]


def find_own_run(state: DeviceState, root: Path) -> str | None:
    """Return the name of the run below `root` that has a device."""
    if state.holder is None or not state.holder.run:
        return None
    path = Path(state.holder.run)
    return path.name if path.parent == root and RunDirectory(path).exists else None


def describe_use(run: RunDirectory, state: DeviceState) -> str:
    """Return the newest figures of a run about the device that it has, from the heartbeats of its ranks."""
    beats = run.read_heartbeats()
    if state.kind == "cpu":
        used = [beat.figures["cpus_used"] for beat in beats if "cpus_used" in beat.figures]
        return f"{sum(used):.1f} CPUs used by the run" if used else ""
    job = run.read_local_job()
    if job is None or state.id not in job.assigned:
        return ""
    gpus = [figures for beat in beats for figures in _split_gpus(beat.figures)]
    number = job.assigned.index(state.id)
    return _describe_gpu(gpus[number]) if number < len(gpus) else ""


def describe_needs(row: Mapping[str, Any]) -> str:
    """Return which devices a job has, or how many it needs."""
    if "devices" not in row:
        return ""
    return ", ".join(row["assigned"]) or counted_devices(row["devices"], row["kind"])


def _split_gpus(figures: Mapping[str, float]) -> list[dict[str, float]]:
    """Return the figures of each GPU of a rank, in the order of their numbers."""
    gpus: dict[int, dict[str, float]] = {}
    for key, value in figures.items():
        kind, _, rest = key.partition("/")
        number, _, name = rest.partition("/")
        if kind == "gpu" and number.isdecimal():
            gpus.setdefault(int(number), {})[name] = value
    return [gpus[number] for number in sorted(gpus)]


def _describe_gpu(figures: Mapping[str, float]) -> str:
    formats = {"utilization": "{:.0%} busy", "memory_used_gib": "{:.1f} GiB used", "temperature_c": "{:.0f} °C"}
    return ", ".join(text.format(figures[name]) for name, text in formats.items() if name in figures)
