"""Prints the checkpoint from which an ended run resumes, and the command that resumes it."""

from rich.console import Console

from distrain.runs.checkpoints import final_path, newest_step
from distrain.runs.directory import RunDirectory
from distrain.runs.query import resume_command


def print_resume_hint(console: Console, run: RunDirectory) -> None:
    """Print the newest checkpoint of a run that has failed, and the command that resumes it."""
    console.print(f"checkpoint    {_newest_checkpoint(run)}", markup=False, soft_wrap=True)
    print_resume(console, run)


def print_resume(console: Console, run: RunDirectory) -> None:
    """Print the command that resumes a run."""
    console.print(f"resume with   {resume_command(run)}", markup=False, soft_wrap=True)


def _newest_checkpoint(run: RunDirectory) -> str:
    step = newest_step(run.checkpoints)
    return str(final_path(run.checkpoints, step)) if step else "none yet: it starts again at step 0"
