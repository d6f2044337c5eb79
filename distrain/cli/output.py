"""Prints a run for people: its header, its summary, and its first failure."""

import math
import shlex
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from distrain.benchmark.reproducibility import Finding
from distrain.config import Recipe, read_recipe
from distrain.config.batching import Batching, solve_batching
from distrain.config.metrics import ALWAYS_MEASURED, format_metric, format_value, title_of
from distrain.config.profile import Profile, read_profile
from distrain.config.recipe_text import describe_training
from distrain.launchers.plan import Plan
from distrain.messages import counted
from distrain.runs.attempts import describe_changes, describe_preemptions, end_of
from distrain.runs.checkpoints import committed, newest_step
from distrain.runs.directory import RunDirectory
from distrain.runs.error_reports import describe_failure, read_errors
from distrain.runs.labels import describe_labels, read_labels
from distrain.runs.liveness import read_states
from distrain.runs.local_job import LocalJob, counted_devices
from distrain.runs.query import best_checkpoint, describe_continuations
from distrain.runs.resume_hint import print_resume, print_resume_hint
from distrain.runs.stacks import MAIN_THREAD, RankStack
from distrain.runs.status import Changes, Status
from distrain.runs.user_errors import is_out_of_memory
from distrain.system.display import console_width, duration
from distrain.system.process import STATE_TEXTS

_BARS = "▁▂▃▄▅▆▇█"
_MAX_BARS = 100
_OF_CLASS = "val/top1/"
_MAX_CLASSES = 20  # in a summary


def print_header(console: Console, recipe: Recipe, profile: Profile, batching: Batching, run: RunDirectory) -> None:
    """Print what will be trained, on which devices, and the run directory."""
    text = describe_training(recipe, profile)
    console.print(f"[bold]{escape(recipe.name)}[/bold]: {escape(text)}", soft_wrap=True)
    if recipe.train.micro_batch_size == "auto":
        text = f"global batch {batching.global_batch_size}, with a micro-batch size found when training starts"
        console.print(text, soft_wrap=True)
    else:
        console.print(f"{batching}", soft_wrap=True)
    if recipe.optimizer.lr_per is not None:
        sizes = f"{recipe.data.batch_size}/{recipe.optimizer.lr_per}"
        console.print(f"learning rate {recipe.optimizer.lr:g} x {sizes} = {recipe.base_lr:g}", soft_wrap=True)
    console.print(f"run directory {run.path}", soft_wrap=True, markup=False)


def print_changes(console: Console, changes: list[str]) -> None:
    """Print the changes to the recipe besides --set, if there are any."""
    if changes:
        console.print("changed in the recipe: " + ", ".join(changes), markup=False, soft_wrap=True)


def print_plan(console: Console, recipe: Recipe, plan: Plan) -> None:
    """Print the resolved recipe and the exact command, for `--dry-run`."""
    console.print(recipe.to_yaml().rstrip(), markup=False, soft_wrap=True)
    console.print()
    if plan.in_process:
        console.print("in this process; the command for a new process:", markup=False)
    console.print(str(plan), markup=False, soft_wrap=True)
    for path, text in plan.files.items():
        console.print(f"\n{path} will contain\n{text.rstrip()}", markup=False, soft_wrap=True)


def print_extension(console: Console, run: RunDirectory, changes: Changes) -> None:
    """Print what changes in the recipe of an existing run, and from which step on, for `--dry-run`."""
    if changes:
        step = newest_step(run.checkpoints)
        console.print(f"\nfrom step {step} on: {describe_changes(changes)}", markup=False, soft_wrap=True)


def print_summary(console: Console, run: RunDirectory, status: Status) -> None:
    """Print the results of a finished run, its folder, and what to do next."""
    if status.last is not None:
        by, rest = status.best_by, ""
        if status.best is not None:
            value, step = format_value(by, status.best), f"step {status.best['step']:.0f}"
            is_kept = best_checkpoint(run, status) is not None
            rest = f" (best {value} at {step})" if is_kept else f" ({value} at {step}, which has no checkpoint)"
        if by != ALWAYS_MEASURED:
            rest += f", validation loss {format_value(ALWAYS_MEASURED, status.last)}"
        console.print(
            f"[bold green]finished[/bold green]  {title_of(by)} [bold]{format_value(by, status.last)}[/bold]{rest}",
            soft_wrap=True,
        )
        _print_classes(console, status.last)
    console.print(f"trained   {counted(status.step, 'step')} in {duration(status.train_seconds)}", markup=False)
    console.print(f"run       {run.path}", markup=False, soft_wrap=True)
    console.print(f"weights   {status.weights_digest} (digest)", markup=False)
    console.print(f"next      distrain runs show {_quote(run)}", markup=False, soft_wrap=True)
    if run.tensorboard.is_dir():
        command = f"tensorboard --logdir {shlex.quote(str(run.tensorboard))}"
        console.print(f"          {command}", markup=False, soft_wrap=True)


def print_finished_already(console: Console, run: RunDirectory) -> None:
    """Print that there is nothing left to train, and how it trains further."""
    words = f"this run has already finished; {describe_continuations(run)}"
    console.print(words, markup=False, soft_wrap=True)


def print_stopped(console: Console, run: RunDirectory, status: Status) -> None:
    """Print that a run was stopped on request, and how it is resumed."""
    console.print(f"[bold yellow]stopped[/bold yellow] at step {status.step} of {status.total_steps}; nothing is lost")
    print_resume(console, run)


def print_submitted(console: Console, job_id: str, runs: list[RunDirectory]) -> None:
    """Print which SLURM job trains which run, and what to do next."""
    array = f", an array of {len(runs)}" if len(runs) > 1 else ""
    console.print(f"submitted     job {job_id}{array}", markup=False)
    for run in runs:
        console.print(f"run directory {run.path}", markup=False, soft_wrap=True)
    root = runs[0].path.parent
    listing = "" if root == Path("runs").absolute() else f" list --root {shlex.quote(str(root))}"
    console.print(f"next          distrain runs{listing}", markup=False, soft_wrap=True)
    console.print(f"              distrain logs -f {_quote(runs[0])}", markup=False, soft_wrap=True)


def print_queued(console: Console, runs: list[RunDirectory], *, is_served: bool) -> None:
    """Print which runs are in the queue of this machine, and what to do next."""
    root = runs[0].path.parent
    option = "" if root == Path("runs").absolute() else f" --root {shlex.quote(str(root))}"
    for run in runs:
        console.print(f"queued        {run.path.name}", markup=False, soft_wrap=True)
    if not is_served:
        console.print(f"waits for     distrain serve{option}, which is not running", markup=False, soft_wrap=True)
    console.print(f"next          distrain queue{option}", markup=False, soft_wrap=True)
    console.print(f"              distrain logs -f {_quote(runs[0])}", markup=False, soft_wrap=True)


def print_event(console: Console, message: str) -> None:
    """Print a message on an event during a run."""
    console.print(message, markup=False, highlight=False, soft_wrap=True)


def print_end(console: Console, run: RunDirectory) -> bool:
    """Print how a run that is not alive has ended; returns whether it finished or was stopped."""
    status = run.read_status()
    if status.state == "finished":
        print_summary(console, run, status)
    elif status.state == "stopped":
        print_stopped(console, run, status)
    else:
        print_failure(console, run, read_errors(run), verbose=False)
    return status.state in {"finished", "stopped"}


def print_failure(console: Console, run: RunDirectory, errors: list[dict[str, Any]], *, verbose: bool) -> None:
    """Print the first error of all ranks, with its rank, host and step, and the command that resumes the run."""
    if not errors:
        console.print("[bold red]failed[/bold red]: the processes ended without an error report", highlight=False)
        tail = (
            run.launcher_log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
            if run.launcher_log.exists()
            else []
        )
        console.print("\n".join(tail), markup=False, highlight=False)
        console.print(f"log           {run.launcher_log}", markup=False, soft_wrap=True)
    else:
        first = errors[0]
        if verbose:
            console.print(first["traceback"].rstrip(), markup=False, highlight=False)
        place = describe_failure(first).removeprefix("failed")
        console.print(f"[bold red]failed[/bold red]{escape(place)}", soft_wrap=True)
        if (advice := _advice(run, first)) is not None:
            console.print(f"out of memory: {advice}", markup=False, soft_wrap=True)
        console.print(f"log           {run.log(first['rank'])}", markup=False, soft_wrap=True)
    print_resume_hint(console, run)


def print_finding(console: Console, finding: Finding) -> None:
    """Print what is identical in one scenario and in the first one, and what is not."""
    if finding.is_identical:
        same = "weights, optimizer state, losses, evaluation"
        console.print(f"[green]identical[/green]  {finding.title}: {same}", soft_wrap=True)
        return
    found = {
        "weights": finding.has_same_weights,
        "weights with optimizer state": finding.has_same_state,
        "losses": finding.first_other_loss is None,
        "evaluation": finding.has_same_evaluation,
    }
    others = ", ".join(name for name, is_same in found.items() if not is_same)
    colour = "red" if finding.must_match else "yellow"
    losses = (
        f"; losses from step {finding.first_other_loss} on, by at most {finding.largest_loss_difference:.1e} of them"
        if finding.first_other_loss is not None
        else ""
    )
    console.print(f"[{colour}]other bits[/{colour}] {finding.title}: {others}{losses}", soft_wrap=True)


def print_stacks(console: Console, stacks: list[RankStack]) -> None:
    """Print the stack of each rank, which ranks are silent, and which did not answer."""
    for stack in stacks:
        beat = stack.heartbeat
        if beat is None or stack.age_s is None:
            console.print(f"[bold yellow]rank {stack.rank}[/bold yellow] has written no heartbeat yet")
            continue
        age = duration(stack.age_s)
        seen = f"[bold red]silent for {age}[/bold red]" if stack.is_silent else f"{age} ago"
        state = f" ({STATE_TEXTS[stack.process_state]})" if stack.process_state in STATE_TEXTS else ""
        console.print(
            f"[bold]rank {beat.rank}[/bold] ({escape(beat.host)}, process {beat.pid}) at step {beat.step}, "
            f"{beat.phase}, {seen}{state}",
            soft_wrap=True,
        )
        if not stack.threads:
            console.print("no stack: it did not answer the request", soft_wrap=True)
        for name, lines in sorted(stack.threads.items(), key=lambda item: item[0] != MAIN_THREAD):
            heading = "" if name == MAIN_THREAD else f"thread {name}\n"
            console.print(f"{heading}{lines.rstrip()}", markup=False, soft_wrap=True)


def print_run(console: Console, run: RunDirectory) -> None:
    """Print a run's state, its attempts, its evaluations and its checkpoints."""
    status = run.read_status()
    state = read_states([run])[run.path]
    left = f", {duration(status.eta_s)} left" if status.eta_s and state == "running" else ""
    console.print(f"[bold]{escape(run.path.name)}[/bold]  {state}{left}")
    if (job := run.read_job()) is not None:
        console.print(f"SLURM job   {job.id}", markup=False)
    if (local := run.read_local_job()) is not None:
        _print_local_job(console, run, local)
    console.print(f"step        {status.step}/{status.total_steps}, {duration(status.train_seconds)} of training")
    for title, metrics in (("newest", status.last), ("best", status.best)):
        if metrics is not None:
            text = f"{format_metric(status.best_by, metrics)} at step {metrics['step']:.0f}"
            is_lost = title == "best" and best_checkpoint(run, status) is None
            console.print(f"{title:<11} {f'not kept: {text} has no checkpoint' if is_lost else text}")
    if status.skipped_batches:
        steps = ", ".join(str(batch.step) for batch in status.skipped_batches)
        console.print(f"rollbacks   {status.rollbacks}, each skipping a batch: step {steps}", soft_wrap=True)
    for sentence in status.diagnosis:
        console.print(f"diagnosis   {sentence}", markup=False, soft_wrap=True)
    for number, attempt in enumerate(status.attempts, start=1):
        began = time.strftime("%F %T", time.localtime(attempt.started))
        ended = end_of(attempt, state if number == len(status.attempts) else attempt.state)
        console.print(
            f"attempt {number:<3} {ended}, steps {attempt.first_step} to {attempt.last_step}, "
            f"{counted(attempt.world_size, 'process', 'processes')} on {attempt.host}, {began}",
            markup=False,
            soft_wrap=True,
        )
        if attempt.changes:
            text = f"from step {attempt.first_step} on: {describe_changes(attempt.changes)}"
            console.print(f"{'':<11} {text}", markup=False, soft_wrap=True)
    if status.changes:
        text = f"from the next attempt on: {describe_changes(status.changes)}"
        console.print(f"recipe      {text}", markup=False, soft_wrap=True)
    key = f"val/{status.best_by}"
    values = [record[key] for record in run.read_metrics() if key in record]
    if values:
        title = f"{title_of(status.best_by):<11} "
        width = console_width(console)
        curve = _curve(status.best_by, values, width=None if width is None else width - len(title))
        console.print(f"{title}{curve}", markup=False, soft_wrap=True)
    names = ", ".join(path.name for path in committed(run.checkpoints)) or "none yet"
    console.print(f"checkpoints {names}", soft_wrap=True)
    for title, text in describe_labels(read_labels(run)):
        console.print(f"{title:<11} {text}", markup=False, soft_wrap=True)
    console.print(f"directory   {run.path}", markup=False, soft_wrap=True)


def _print_local_job(console: Console, run: RunDirectory, job: LocalJob) -> None:
    """Print a run's place in the queue, and what its interruptions mean for the result."""
    place = ", ".join(job.assigned) or counted_devices(job.devices, job.kind)
    console.print(f"queue       priority {job.priority}, on {place}", markup=False)
    if job.fault:
        console.print(f"fault       {job.fault}", markup=False, soft_wrap=True)
    if (text := describe_preemptions(run.read_status(), lambda: read_recipe(run.recipe))) is not None:
        console.print(f"preempted   {text}", markup=False, soft_wrap=True)


def _print_classes(console: Console, evaluation: dict[str, float]) -> None:
    """Print the accuracy of each class where it was measured; only the lowest ones if there are many classes."""
    found = {name.removeprefix(_OF_CLASS): value for name, value in evaluation.items() if name.startswith(_OF_CLASS)}
    if not found:
        return
    shown = found
    if len(found) > _MAX_CLASSES:
        lowest = sorted(found, key=lambda name: found[name])[:_MAX_CLASSES]
        shown = {name: found[name] for name in lowest}
    lowest_of = "" if len(shown) == len(found) else f", the {len(shown)} lowest of {len(found)}"
    console.print(f"top-1 of each class{lowest_of}", markup=False)
    width = max(len(name) for name in shown)
    for name, value in shown.items():
        console.print(f"  {name:<{width}}  {value:>7.2%}", markup=False, soft_wrap=True)


def _curve(by: str, values: list[float], *, width: int | None) -> str:
    """Return a bar for each value, and the range of the values, in `width` cells; NaN is blank.

    The lowest bar is the smallest value and the highest the largest one. Where there are more values than bars, each
    bar is the mean of several values.
    """
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=math.nan), max(finite, default=math.nan)
    ends = [format_value(by, {f"val/{by}": value}) for value in (low, high)]
    legend = f"  ({' to '.join(dict.fromkeys(ends))}, {counted(len(values), 'evaluation')})"
    count = min(len(values), _MAX_BARS, max(1, width - len(legend)) if width is not None else _MAX_BARS)
    means = [_mean(values[i * len(values) // count : (i + 1) * len(values) // count]) for i in range(count)]
    top = len(_BARS) - 1
    bars = (_BARS[round((mean - low) / (high - low or 1) * top)] if math.isfinite(mean) else " " for mean in means)
    return "".join(bars) + legend


def _mean(values: list[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def _advice(run: RunDirectory, error: dict[str, Any]) -> str | None:
    """Return what to change in a recipe that ran out of memory; None for any other failure."""
    if not is_out_of_memory(error["type"], error["message"]):
        return None
    recipe, profile = read_recipe(run.recipe), read_profile(run.profile)
    size = run.read_micro_batch_size() or recipe.train.micro_batch_size
    batching = solve_batching(recipe.data.batch_size, size, profile.world_size, is_exact=recipe.train.exact)
    precision = ", or use --set precision=bf16" if recipe.precision == "fp32" else ""
    smaller = max(1, batching.micro_batch_size // 2)
    return (
        f"lower train.micro_batch_size ({batching.micro_batch_size} now), for example --set "
        f"train.micro_batch_size={smaller}: accumulation increases, and the result stays the same{precision}"
    )


def _quote(run: RunDirectory) -> str:
    return shlex.quote(str(run.path))
