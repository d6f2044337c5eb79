"""Gives figures of the runs, the queue and the devices in Prometheus' text format."""

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from distrain.errors import RunError
from distrain.runs.liveness import LIVE_STATES
from distrain.runs.overview import Overview
from distrain.service.devices import list_devices
from distrain.service.table import read_queue
from distrain.service.web.run_list import TheRunList
from distrain.service.web.site import TheSite

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

router = APIRouter(tags=["events"])

_Labels = Mapping[str, str]


@dataclass
class Family:
    """A metric with its values by labels."""

    name: str
    help: str
    kind: str = "gauge"
    samples: list[tuple[_Labels, float]] = field(default_factory=list)

    def add(self, value: Any, **labels: str) -> None:
        """Add a value, if there is one, and it is a number."""
        with suppress(TypeError, ValueError, OverflowError):
            self.samples.append((labels, float(value)))


@router.get(
    "/metrics",
    response_class=Response,
    operation_id="scrape",
    responses={200: {"description": "Figures", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def scrape(site: TheSite, run_list: TheRunList) -> Response:
    """Read figures in Prometheus' text format: runs, queue, devices, and what the runs that train report."""
    found = run_list.read()
    families = [*_count_runs(found), *_read_queue(site), *_list_devices(site)]
    families += _describe_runs([overview for overview in found if overview.state in LIVE_STATES])
    return Response(render(families), media_type=MEDIA_TYPE)


def render(families: Iterable[Family]) -> bytes:
    """Return metrics as text; those without a value are left out."""
    lines = []
    for family in families:
        if family.samples:
            lines += [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}"]
            lines += [f"{family.name}{_labels(labels)} {_number(value)}" for labels, value in family.samples]
    return "".join(f"{line}\n" for line in lines).encode(errors="replace")


def _labels(labels: _Labels) -> str:
    pairs = [f'{name}="{_escaped(value)}"' for name, value in labels.items()]
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def _count_runs(found: list[Overview]) -> Iterator[Family]:
    runs = Family("distrain_runs", "Runs in the folder by state")
    for state, number in sorted(Counter(overview.state for overview in found).items()):
        runs.add(number, state=state)
    yield runs


def _read_queue(site: TheSite) -> Iterator[Family]:
    now = time.time()
    waiting = [row for row in read_queue(site.root, now=now) if row["state"] in {"queued", "preempted"}]
    yield Family("distrain_queue_waiting_runs", "Runs that wait for devices", samples=[({}, len(waiting))])
    wait = Family("distrain_queue_wait_seconds", "Time since the submission of a run that waits")
    for row in waiting:
        wait.add(max(0.0, now - row["submitted_at"]), run=row["run"], kind=row["kind"])
    yield wait


def _list_devices(site: TheSite) -> Iterator[Family]:
    devices = Family("distrain_device", "1 for the state of a device, with the run that has it")
    for device in list_devices(slots=site.slots):
        holder = device.holder
        run = "" if holder is None else holder.run.rpartition("/")[2]
        user = "" if holder is None else holder.user
        devices.add(1, device=device.id, kind=device.kind, name=device.name, state=device.state, run=run, user=user)
    yield devices


def _describe_runs(live: list[Overview]) -> list[Family]:
    step = Family("distrain_run_step", "Steps that a run has taken")
    total = Family("distrain_run_target_steps", "Steps that a run will have taken at its end")
    epoch = Family("distrain_run_epoch", "Epochs that a run has finished, with the fraction of this one")
    loss = Family("distrain_run_train_loss", "Newest training loss")
    speed = Family("distrain_run_samples_per_second", "Newest speed of training")
    attempts = Family("distrain_run_attempts_total", "Starts of a run", "counter")
    skipped = Family("distrain_run_skipped_batches_total", "Batches whose values were not finite", "counter")
    age = Family("distrain_run_heartbeat_age_seconds", "Time since the heartbeat of a rank")
    figures = Family("distrain_run_figure", "Newest figure of the machine that a rank reports")
    now = time.time()
    for overview in live:
        with suppress(RunError, OSError):  # it was deleted meanwhile
            name, status, newest = overview.name, overview.status, overview.run.read_newest_metrics()
            step.add(status.step, run=name)
            total.add(status.total_steps, run=name)
            epoch.add(status.epoch, run=name)
            attempts.add(len(status.attempts), run=name)
            skipped.add(len(status.skipped_batches), run=name)
            loss.add(newest.get("train/loss"), run=name)
            speed.add(newest.get("train/samples_per_s"), run=name)
            for heartbeat in overview.run.read_heartbeats():
                rank = str(heartbeat.rank)
                age.add(max(0.0, now - heartbeat.time), run=name, rank=rank, host=heartbeat.host)
                for figure, value in heartbeat.figures.items():
                    figures.add(value, run=name, rank=rank, figure=figure)
    return [step, total, epoch, loss, speed, attempts, skipped, age, figures]
