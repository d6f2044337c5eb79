"""What the batch script asks before and after a training: `python -m distrain.launchers.slurm.requeue`, and its rule.

A job is queued again only if the time limit or a preemption has stopped its run, and the run got on: a checkpoint is
newer than those that the job began with. What fails at its first step therefore never comes back.
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


def decide(code: int, *, signal: str, made_progress: bool, facts: JobInfo | None, earlier_restarts: int) -> Verdict:
    """Return what becomes of a job whose training has ended with `code`, after the batch script heard `signal`.

    SLURM queues a job again by itself after most preemptions and after the failure of a node: `requeued`. A job that
    someone has cancelled is no longer running, as SLURM says, and stays away.
    """
    if facts is not None and facts.restarts > earlier_restarts:
        return "requeued"
    if code != ExitCode.STOPPED or not made_progress or facts is None or facts.state != "RUNNING":
        return "over"
    return "requeue" if signal == "USR1" or (signal == "TERM" and facts.is_preempted) else "over"


def begin(run: RunDirectory, environment: Mapping[str, str]) -> tuple[str, int, int]:
    """Write down whose job this is; returns its id, how often it was queued again, and the newest checkpoint's step."""
    if not run.exists:
        raise RunError(f"{run.path} holds no run; `distrain submit` makes one, and so does `distrain fit`")
    job_id, restarts = slurm.read_own_job(environment)
    job = run.read_job() or Job()
    run.write_job(job.model_copy(update={"id": job_id}))
    return job_id, restarts, newest_step(run.checkpoints)


def end(run: RunDirectory, code: int, signal: str, *, job_id: str, restarts: int, first_step: int) -> int:
    """Queue the job again if the rule says so; returns the code that the job ends with."""
    step = newest_step(run.checkpoints)
    verdict = decide(
        code,
        signal=signal,
        made_progress=step > first_step,
        facts=slurm.read_jobs([job_id]).get(job_id),
        earlier_restarts=restarts,
    )
    if verdict == "over":
        if code == ExitCode.STOPPED and signal != "none":
            print(f"job {job_id} is not queued again: it was cancelled, or has no checkpoint after step {first_step}")
        return code
    status = run.read_status()
    status.state = "preempted"
    if status.attempts:
        status.attempts[-1].state = "preempted"
    run.write_status(status)
    print(f"job {job_id} is queued again, and goes on from step {step}", flush=True)
    if verdict == "requeue":
        slurm.requeue(job_id)
    return code


def exclude(environment: Mapping[str, str], *, job_id: str, restarts: int) -> None:
    """Where SLURM has queued the job again since a node failed: have it not come back to that node."""
    facts = slurm.read_jobs([job_id]).get(job_id)
    if facts is None or facts.restarts <= restarts:
        return
    if failed := slurm.failed_nodes(environment["SLURM_JOB_NODELIST"]):
        slurm.exclude_nodes(job_id, failed)
        print(f"node {', '.join(failed)} failed: job {job_id} goes on without it", flush=True)


def main() -> None:
    """Do what the batch script asks for.

    That is `begin RUN`, which prints JOB_ID RESTARTS FIRST_STEP, `end RUN CODE SIGNAL` with these three after it, or
    `exclude RUN JOB_ID RESTARTS`.
    """
    word, path, *rest = sys.argv[1:]
    run = RunDirectory(Path(path))
    try:
        run.check_format()
        if word == "begin":
            print(*begin(run, os.environ))
        elif word == "exclude":
            exclude(os.environ, job_id=rest[0], restarts=int(rest[1]))
        else:
            code, signal, job_id, restarts, first_step = rest
            begun = {"restarts": int(restarts), "first_step": int(first_step)}
            sys.exit(end(run, int(code), signal, job_id=job_id, **begun))
    except LaunchError as error:
        print_error(str(error))
        sys.exit(int(rest[0]) if word == "end" else ExitCode.FAILED)
    except RunError as error:
        print_error(str(error))
        sys.exit(ExitCode.BAD_INPUT)


if __name__ == "__main__":
    main()
