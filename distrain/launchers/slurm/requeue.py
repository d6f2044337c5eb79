"""Decides whether a job is requeued; the batch script calls `python -m distrain.launchers.slurm.requeue`.

A job is requeued only if the time limit or a preemption has stopped its run, and the run has made progress: there is a
newer checkpoint than at the start of the job. A run that fails at its first step is therefore never requeued.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from distrain.errors import ExitCode, LaunchError, RunError
from distrain.messages import print_error
from distrain.runs import slurm
from distrain.runs.checkpoints import newest_step
from distrain.runs.directory import RunDirectory
from distrain.runs.slurm import JobInfo
from distrain.runs.status import Job

Verdict = Literal["over", "requeue", "requeued"]


def decide(code: int, *, signal: str, made_progress: bool, info: JobInfo | None, earlier_restarts: int) -> Verdict:
    """Return whether to requeue a job whose training ended with `code`, after the batch script received `signal`.

    SLURM itself requeues a job after most preemptions and after the failure of a node: `requeued`. A cancelled job is
    no longer RUNNING in SLURM, and is not requeued.
    """
    if info is not None and info.restarts > earlier_restarts:
        return "requeued"
    if code != ExitCode.STOPPED or not made_progress or info is None or info.state != "RUNNING":
        return "over"
    return "requeue" if signal == "USR1" or (signal == "TERM" and info.is_preempted) else "over"


def begin(run: RunDirectory, environment: Mapping[str, str]) -> tuple[str, int, int]:
    """Save the job's id in the run; returns the id, the number of requeues, and the newest checkpoint's step."""
    if not run.exists:
        raise RunError(f"{run.path} is not a run; create one with `distrain submit` or `distrain fit`")
    job_id, restarts = slurm.read_own_job(environment)
    job = run.read_job() or Job()
    run.write_job(job.model_copy(update={"id": job_id}))
    return job_id, restarts, newest_step(run.checkpoints)


def end(run: RunDirectory, code: int, signal: str, *, job_id: str, restarts: int, first_step: int) -> int:
    """Requeue the job if `decide` says so; returns the exit code of the job."""
    step = newest_step(run.checkpoints)
    verdict = decide(
        code,
        signal=signal,
        made_progress=step > first_step,
        info=slurm.read_jobs([job_id]).get(job_id),
        earlier_restarts=restarts,
    )
    if verdict == "over":
        if code == ExitCode.STOPPED and signal != "none":
            print(f"job {job_id} is not requeued: it was cancelled, or has no checkpoint after step {first_step}")
        return code
    status = run.read_status()
    status.state = "preempted"
    if status.attempts:
        status.attempts[-1].state = "preempted"
    run.write_status(status)
    print(f"job {job_id} is requeued, and will resume from step {step}", flush=True)
    if verdict == "requeue":
        slurm.requeue(job_id)
    return code


def exclude(environment: Mapping[str, str], *, job_id: str, restarts: int) -> None:
    """If SLURM has requeued the job because a node failed, exclude that node from the job."""
    info = slurm.read_jobs([job_id]).get(job_id)
    if info is None or info.restarts <= restarts:
        return
    if failed := slurm.failed_nodes(environment["SLURM_JOB_NODELIST"]):
        slurm.exclude_nodes(job_id, failed)
        print(f"node {', '.join(failed)} failed: job {job_id} continues without it", flush=True)


def main() -> None:
    """Run a command of the batch script.

    It is `begin RUN`, which prints JOB_ID RESTARTS FIRST_STEP, `end RUN CODE SIGNAL` followed by these three, or
    `exclude RUN JOB_ID RESTARTS`.
    """
    command, path, *rest = sys.argv[1:]
    run = RunDirectory(Path(path))
    try:
        run.check_format()
        if command == "begin":
            print(*begin(run, os.environ))
        elif command == "exclude":
            exclude(os.environ, job_id=rest[0], restarts=int(rest[1]))
        else:
            code, signal, job_id, restarts, first_step = rest
            begun = {"restarts": int(restarts), "first_step": int(first_step)}
            sys.exit(end(run, int(code), signal, job_id=job_id, **begun))
    except LaunchError as error:
        print_error(str(error))
        sys.exit(int(rest[0]) if command == "end" else ExitCode.FAILED)
    except RunError as error:
        print_error(str(error))
        sys.exit(ExitCode.BAD_INPUT)


if __name__ == "__main__":
    main()
