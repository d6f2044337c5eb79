"""The program of each rank: every launcher starts `python -m distrain.worker RUN_DIR`.

torchrun's ranks are forks of a process that has imported torch (`distrain.fork_server`), and run this file.
"""

import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distrain.config import Recipe, read_recipe
from distrain.config.profile import Profile, read_profile
from distrain.errors import DistrainError, ExitCode
from distrain.launchers.abort import end_at_once
from distrain.launchers.watchdog import collective_timeout_s
from distrain.messages import print_error
from distrain.preload import preload
from distrain.runs.consequences import is_secondary
from distrain.runs.directory import RANK_EXIT_TIMEOUT_S, RunDirectory
from distrain.runs.flight_recorder import FlightRecorder
from distrain.runs.log_file import open_log
from distrain.runs.objects import provide_objects
from distrain.runs.stacks import answer_requests
from distrain.runs.stop_requests import fetch_signals, stop_on_signal
from distrain.runs.task import BenchmarkRequest, EvaluationRequest, Task, TaskName, read_task
from distrain.runs.user_errors import describe_user_error, find_mistake
from distrain.system.caches import provide_caches
from distrain.system.display import Line, stream_width
from distrain.system.exits import describe_end, exits_raised
from distrain.system.leases import share_leases
from distrain.system.process import die_with_parent, hold_signals, is_orphan
from distrain.system.signals import StopRequest
from distrain.system.terminal import guard_output, logged_already, tolerating_loss, write_last_words
from distrain.training.monitor import RankMonitor

if TYPE_CHECKING:
    from distrain.distributed.world import World

log = logging.getLogger("distrain.worker")  # this module is run as __main__


def main() -> None:
    """Run this process as one of the ranks that the launcher has started."""
    hold_signals()  # first of all: the imports of training take seconds
    die_with_parent()
    if is_orphan():
        sys.exit(ExitCode.FAILED)
    share_leases()
    guard_output()
    provide_caches()
    with tolerating_loss():
        code = run_worker(RunDirectory(Path(sys.argv[1])), stop=StopRequest(), owns_process=True)
    sys.exit(code)


def run_worker(
    run: RunDirectory,
    *,
    stop: StopRequest,
    owns_process: bool = False,
    on_error: Callable[[BaseException], None] | None = None,
) -> ExitCode:
    """Run the task of the run directory, and write its outcome there.

    Returns the exit code of the process. `stop` requests a stop. With `owns_process`, signals that are held become such
    requests, and ranks other than 0 print to their logs. `on_error` is called with the exception that ended the task,
    after everything is shut down.
    """
    preload()  # takes seconds: signals and the parent are taken care of before
    from distrain.distributed.world import join_world, rank_from_environment, size_from_environment
    from distrain.training.device.allocator import MallocRetention

    rank = rank_from_environment()
    task = read_task(run)
    is_shown = rank == 0 and task.task != "benchmark"  # a benchmark's results have the terminal to themselves
    handlers = _start_log(run.log(rank), is_shown=is_shown)
    if owns_process and not is_shown:
        _redirect_output(run.log(rank))
    monitor = RankMonitor(run, rank, stop=stop)
    recipe = None
    try:
        _answer_stack_requests(run, rank, owns_process=owns_process)
        run.check_format()
        provide_objects(run)
        recipe, profile = read_recipe(run.recipe), read_profile(run.profile)
        if profile.device == "cpu":
            monitor.heartbeat.on_beat = MallocRetention().look
        elif size_from_environment() > 1:
            monitor.heartbeat.on_beat = FlightRecorder(run, rank).look
        with (
            tolerating_loss(run.log(rank)),
            exits_raised(lambda error: _report_end(run, rank, monitor, error)),
            _take_held_signals(run, stop, is_alone=size_from_environment() == 1) if owns_process else nullcontext(),
            monitor,
            join_world(
                device=profile.resolved_device,
                processes=profile.world_size,
                threads=profile.threads,
                num_devices=profile.devices,
                timeout_s=collective_timeout_s(profile.stall_timeout_s),
            ) as world,
            run.hold_trainer_lock(patience_s=RANK_EXIT_TIMEOUT_S) if world.is_rank_zero else nullcontext(),
        ):
            is_complete = TASKS[task.task](_Job(recipe, profile, run, task, world, monitor))
        return ExitCode.FINISHED if is_complete else ExitCode.STOPPED
    except BaseException as error:  # noqa: BLE001 - it is reported whole, and the exit code says that the run failed
        if isinstance(error, KeyboardInterrupt) and stop.is_set() and task.task != "train":
            return ExitCode.STOPPED
        mistake = None if recipe is None else find_mistake(error, recipe, run, step=monitor.state.step)
        sentence = str(error) if isinstance(error, DistrainError) else mistake
        if owns_process and sentence is not None:  # distrain's launcher prints it too; another launcher would not
            print_error(sentence)
        code = error.exit_code if isinstance(error, DistrainError) else ExitCode.FAILED
        code = code if mistake is None else ExitCode.BAD_INPUT
        own = None if recipe is None else describe_user_error(error, recipe)
        message = mistake or describe_end(error) or own
        _report(run, rank, monitor.state.step, error, code, message=message, is_mistake=mistake is not None)
        if on_error is not None:
            on_error(error)
        return code
    finally:
        for handler in handlers:
            logging.getLogger("distrain").removeHandler(handler)
            handler.close()


@dataclass(frozen=True)
class _Job:
    """What a task needs on this rank."""

    recipe: Recipe
    profile: Profile
    run: RunDirectory
    task: Task
    world: "World"
    monitor: RankMonitor


def _train(job: _Job) -> bool:
    from distrain.training.trainer import train

    return train(job.recipe, job.profile, job.run, job.world, job.monitor)


def _evaluate(job: _Job) -> bool:
    from distrain.evaluation.worker import evaluate_checkpoint

    assert isinstance(job.task, EvaluationRequest)
    return evaluate_checkpoint(job.recipe, job.run, job.task, job.world, job.monitor)


def _benchmark(job: _Job) -> bool:
    from distrain.benchmark.worker import run_benchmark

    assert isinstance(job.task, BenchmarkRequest)
    return run_benchmark(job.recipe, job.profile, job.run, job.task, job.world, job.monitor)


# Each returns whether the task is complete; False after a stop.
TASKS: dict[TaskName, Callable[[_Job], bool]] = {"train": _train, "evaluate": _evaluate, "benchmark": _benchmark}


@contextmanager
def _take_held_signals(run: RunDirectory, stop: StopRequest, *, is_alone: bool) -> Iterator[None]:
    """Turn signals into stop requests: in a thread for several ranks, by handlers for a single one, which pdb needs."""
    if is_alone:
        earlier = run.read_status().mark
        with stop_on_signal(run, kill=lambda: end_at_once(run, earlier=earlier), requested=stop, is_last=True):
            yield
    else:
        fetch_signals(run, stop)
        yield


def _answer_stack_requests(run: RunDirectory, rank: int, *, owns_process: bool) -> None:
    try:
        answer_requests(run, rank, owns_process=owns_process)
    except OSError as error:
        log.warning("this process cannot write its stack on request: %s", error)


class _Terminal(logging.Handler):
    """Prints log messages to the current standard output, which a live display may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message below the level of errors; the launcher prints those, once."""
        if record.levelno < logging.ERROR:
            prefix = "warning: " if record.levelno == logging.WARNING else ""
            text = record.getMessage()
            if isinstance(record.msg, Line):  # a narrow terminal shows fewer of its columns than the log
                text = record.msg.within(stream_width(sys.stdout))
            with logged_already():
                print(f"{prefix}{text}", flush=True)


def _start_log(path: Path, *, is_shown: bool) -> list[logging.Handler]:
    """Append log messages to the log of this rank, and with `is_shown` print them on the terminal as well."""
    file = open_log(path)
    handlers = [file, _Terminal()] if is_shown else [file]
    logger = logging.getLogger("distrain")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in handlers:
        logger.addHandler(handler)
    return handlers


def _redirect_output(path: Path) -> None:
    with suppress(OSError), path.open("ab") as file:  # on an error, output goes where the launcher's goes
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)


def _report_end(run: RunDirectory, rank: int, monitor: RankMonitor, error: BaseException) -> None:
    """Report that a thread of the user's code is ending this process: no later code can."""
    _report(run, rank, monitor.state.step, error, ExitCode.FAILED, message=describe_end(error))
    monitor.report("failed")
    if rank == 0:
        write_last_words(f"failed at step {monitor.state.step}: {describe_end(error)}; log {run.log(rank)}\n")


def _report(
    run: RunDirectory,
    rank: int,
    step: int,
    error: BaseException,
    code: ExitCode,
    *,
    message: str | None,
    is_mistake: bool = False,
) -> None:
    """Write the error that ended this rank for the launcher, with `message` in place of the error's own.

    `is_mistake` says that it is an error of the user's code before the first step.
    """
    text = "".join(traceback.format_exception(error))
    log.error("%s", text)
    report = {
        "time": time.time(),
        "rank": rank,
        "host": socket.gethostname(),
        "step": step,
        "type": type(error).__name__,
        "message": message or str(error).strip() or type(error).__name__,
        "exit_code": int(code),
        "is_secondary": is_secondary(error),  # of another rank's end
        # An error raised by distrain itself is not retried.
        "is_final": isinstance(error, DistrainError) or is_mistake,
        "is_mistake": is_mistake,
        "traceback": text,
    }
    try:
        run.write_error(report)
    except OSError as cause:  # the log and the exit code must suffice
        log.error("%s could not be written: %s", run.error(rank), cause.strerror)


if __name__ == "__main__":
    main()
