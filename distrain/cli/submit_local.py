"""Submits runs to the queue of this machine, for `distrain submit` and `distrain fit --queue`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from distrain.cli import output
from distrain.cli.json_output import print_json
from distrain.config.profile import LaunchOptions
from distrain.errors import LaunchError
from distrain.launchers.prepare import RUNS
from distrain.runs.local_job import LocalJob, counted_devices
from distrain.service.queue import QueueOptions, is_served, read_time_limit, resolve
from distrain.service.queue import submit as put


@contextmanager
def suggested() -> Iterator[None]:
    """Have an error of SLURM name the queue of this machine, for a machine with sbatch that is in no cluster."""
    try:
        yield
    except LaunchError as error:
        raise LaunchError(f"{error}; to use the queue of this machine instead, add --queue local") from None


def read_queue_options(
    options: LaunchOptions,
    *,
    root: Path | None = None,
    priority: int | None = None,
    after: list[str] | None = None,
    time: str | None = None,
    requeue: bool = True,
) -> QueueOptions:
    """Return the options of the queue; raises `LaunchError` for a time limit that cannot be read."""
    return QueueOptions(
        options=options,
        root=root or RUNS,
        priority=priority or 0,
        after=tuple(after or ()),
        time_limit_s=None if time is None else read_time_limit(time),
        requeue=requeue,
    )


def _describe(job: LocalJob) -> str:
    return f"{counted_devices(job.devices, job.kind)}, priority {job.priority}"


def submit(
    *,
    references: list[str],
    tasks: list[str],
    overrides: list[str],
    data: str | None,
    run: Path | None,
    options: QueueOptions,
    is_snapshot: bool = True,
    extras: list[Path] | None = None,
    dry_run: bool = False,
    as_json: bool = False,
) -> None:
    """Queue a run for each recipe with each of `tasks`, and print them; with `dry_run` print the first one's recipe."""
    found = resolve(references=references, tasks=tasks, overrides=overrides, data=data, run=run, options=options)
    console = Console(highlight=False, soft_wrap=True)
    if dry_run:
        output.print_event(console, found[0].recipe.to_yaml().rstrip())
        jobs = [f"{one.run.path.name}: {_describe(one.job)}" for one in found]
        output.print_event(console, "\n".join(["", f"would be queued in {options.root.absolute()}", *jobs]))
        return
    put(found, is_snapshot=is_snapshot, extras=extras or [])
    runs = [one.run for one in found]
    if as_json:
        printed = [{"run": run.path.name, "path": str(run.path), "queue": "local"} for run in runs]
        print_json(printed if len(printed) > 1 else printed[0])
        return
    output.print_queued(console, runs, is_served=is_served(options.root.absolute()))
    for note in dict.fromkeys(note for one in found for note in one.notes):
        output.print_event(console, f"note: {note}")
