"""Starts the launcher of a run in the background, in a session of its own: it outlives the process that starts it."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from distrain.config.profile import Profile
from distrain.errors import ExitCode, RunError
from distrain.messages import PREFIX
from distrain.runs.directory import RunDirectory
from distrain.runs.local_job import LocalJob, is_frozen
from distrain.system.leases import ASSIGNED

START = "DISTRAIN_START"  # the number of the start that the queue has ordered
_SECRETS = Path("~/.config/distrain/secrets.env")
_OF_A_NOTEBOOK = {"FORCE_COLOR", "CLICOLOR_FORCE", "MPLBACKEND"}
_PRIVATE = 0o077  # nobody else may read it


def start_job(run: RunDirectory, job: LocalJob, profile: Profile) -> subprocess.Popen[bytes]:
    """Start the launcher of a job on the devices that are assigned to it, with what was frozen when it was submitted.

    Raises `RunError` where its folder or its Python is gone, and for a file of secrets that others can read.
    """
    for what, needed in (("working directory", job.cwd), ("Python", job.python)):
        if not Path(needed).exists():
            raise RunError(f"its {what} {needed} is gone")
    mine = {name: value for name, value in os.environ.items() if not is_frozen(name)}
    env = {**mine, **job.env, **read_secrets(), START: str(job.starts), ASSIGNED: ",".join(job.assigned)}
    if run.code.is_dir():  # has precedence over any other folder, and over the working directory
        path = f"{run.code}:{env['PYTHONPATH']}" if env.get("PYTHONPATH") else str(run.code)
        env |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": path}
    return start_launcher(run, profile, python=job.python, cwd=Path(job.cwd), env=env)


def start_launcher(
    run: RunDirectory,
    profile: Profile,
    more: Sequence[str] = (),
    *,
    python: str = sys.executable,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `distrain fit` for a run that exists; its output is appended to the run's `console_log`."""
    argv = [python, "-m", "distrain", "fit", "--run", str(run.path), *_arguments(profile), *more]
    run.logs.mkdir(exist_ok=True)
    with run.console_log.open("ab") as log:
        return subprocess.Popen(
            argv,
            cwd=cwd,
            env=without_terminal(os.environ if env is None else env),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def without_terminal(env: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what a notebook sets for programs in its cells: colours, and where plots go.

    The output of a program in the background goes to a file or to another program.
    """
    return {name: value for name, value in env.items() if name not in _OF_A_NOTEBOOK}


def is_from_queue() -> bool:
    """Whether the queue has started this launcher."""
    return START in os.environ


def check_start(run: RunDirectory) -> None:
    """End this process with 75 where the queue has meanwhile started this run again, or dropped it."""
    job = run.read_local_job()
    if is_from_queue() and (job is None or os.environ[START] != str(job.starts)):
        raise SystemExit(ExitCode.STOPPED)


def read_secrets(path: Path = _SECRETS) -> dict[str, str]:
    """Return the variables in the user's file of secrets, NAME=VALUE on each line; empty where there is none.

    Raises `RunError` where others can read it.
    """
    file = path.expanduser()
    try:
        with file.open(encoding="utf-8") as text:
            status = os.fstat(text.fileno())
            if status.st_mode & _PRIVATE or status.st_uid != os.geteuid():
                raise RunError(f"{file} holds secrets, and others could read it; make it yours alone: chmod 600 {file}")
            lines = [line.strip() for line in text]
    except FileNotFoundError:
        return {}
    pairs = [line.removeprefix("export ").partition("=") for line in lines if line and not line.startswith("#")]
    return {name.strip(): value.strip().strip("\"'") for name, _, value in pairs}


def last_sentence(run: RunDirectory) -> str:
    """Return why the launcher of a run could not start, from its last sentence."""
    lines: list[str] = []
    with suppress(OSError):
        lines = run.console_log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    sentences = [line.removeprefix(PREFIX) for line in lines if line.startswith(PREFIX)]
    return (sentences or lines or ["its launcher ended without a message"])[-1]


def _arguments(profile: Profile) -> list[str]:
    """Return the options of `distrain fit` that give this profile."""
    options = profile.as_options()
    count = ["--gpus" if profile.device == "cuda" else "--procs", str(options.processes)]
    device = ["--device", "cpu"] if profile.device == "cpu" else []
    config = [] if options.accelerate_config is None else ["--accelerate-config", options.accelerate_config]
    faults = ["--restarts", str(options.restarts), "--stall-timeout", str(options.stall_timeout_s)]
    return [*count, *device, "--launcher", str(options.launcher), *config, *faults]
