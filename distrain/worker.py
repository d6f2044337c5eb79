"""The training plane's entry: every launcher starts `python -m distrain.worker RUN_DIR`, once a rank."""

import json
import logging
import os
import socket
import sys
import time
import traceback
from contextlib import nullcontext
from pathlib import Path

from distrain import engine
from distrain.errors import DistrainError, ExitCode
from distrain.launchers.plan import die_with_parent, stop_on_signal
from distrain.launchers.profile import read_profile
from distrain.recipe import read_recipe
from distrain.rundir import RunDirectory, write_atomically
from distrain.world import join_world, rank_from_environment

log = logging.getLogger(__name__)


def main() -> None:
    """Train in this process, one rank of however many the launcher has started."""
    die_with_parent()
    sys.exit(run_worker(RunDirectory(Path(sys.argv[1])), owns_process=True))


def run_worker(run: RunDirectory, *, owns_process: bool = False) -> ExitCode:
    """Train as the run directory says, and leave in it what happened; returns the code that the process ends with.

    A process of its own gives what it prints on ranks other than 0 to the rank's log.
    """
    rank = rank_from_environment()
    handlers = _start_log(run.log(rank), is_shown=rank == 0)
    if owns_process and rank > 0:
        _redirect_output(run.log(rank))
    try:
        recipe, profile = read_recipe(run.recipe), read_profile(run.profile)
        with (
            join_world(device=profile.device, processes=profile.processes, threads=profile.threads) as world,
            run.locked() if world.is_main else nullcontext(),
            stop_on_signal(run),
        ):
            is_complete = engine.train(recipe, profile, run, world)
        return ExitCode.FINISHED if is_complete else ExitCode.STOPPED
    except Exception as error:  # noqa: BLE001 - it is reported whole, and the exit code says that the run failed
        code = error.exit_code if isinstance(error, DistrainError) else ExitCode.FAILED
        _report(run, rank, error, code)
        return code
    finally:
        for handler in handlers:
            logging.getLogger("distrain").removeHandler(handler)
            handler.close()


class _Terminal(logging.Handler):
    """Prints what distrain says, to whatever standard output is at the time: a live display takes its place."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message; errors are told by the launcher, once."""
        if record.levelno < logging.ERROR:
            prefix = "warning: " if record.levelno == logging.WARNING else ""
            print(f"{prefix}{record.getMessage()}", flush=True)


def _start_log(path: Path, *, is_shown: bool) -> list[logging.Handler]:
    """Append what distrain says to the log of this rank, and show it in the terminal as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handlers: list[logging.Handler] = [file, _Terminal()] if is_shown else [file]
    logger = logging.getLogger("distrain")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in handlers:
        logger.addHandler(handler)
    return handlers


def _redirect_output(path: Path) -> None:
    with path.open("ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)


def _report(run: RunDirectory, rank: int, error: Exception, code: ExitCode) -> None:
    """Write what ended this rank where the launcher reads it."""
    text = "".join(traceback.format_exception(error))
    log.error("%s", text)
    status = run.read_status()
    report = {
        "time": time.time(),
        "rank": rank,
        "host": socket.gethostname(),
        "step": status.step,
        "type": type(error).__name__,
        "message": str(error).strip() or type(error).__name__,
        "exit_code": int(code),
        "traceback": text,
    }
    write_atomically(run.error(rank), json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
