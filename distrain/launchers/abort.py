"""Kills a run at once, on a second Ctrl-C: without a save, and without an orderly shutdown that could take a minute."""

import io
import os
import subprocess
import sys
from contextlib import suppress

from rich.console import Console

from distrain.errors import ExitCode
from distrain.runs.directory import RunDirectory
from distrain.runs.log_file import append_to_log
from distrain.runs.resume_hint import print_resume_hint
from distrain.runs.status import AttemptMark
from distrain.system.exits import end_process
from distrain.system.live_line import erase_line
from distrain.system.process import children, kill_below
from distrain.system.terminal import write_last_words


def end_at_once(run: RunDirectory, *, earlier: AttemptMark, cleanup: tuple[str, ...] = ()) -> None:
    """Kill all child processes, run the command `cleanup` for each, report it, and exit with code 130.

    A signal handler calls this. It returns only where an attempt after the `earlier` one has saved and ended by itself:
    then its exit code is used.
    """
    if run.has_ended(earlier):
        return
    started = children()
    kill_below(os.getpid())
    if run.has_ended(earlier):
        return
    if not run.exists:
        write_last_words("interrupted before anything was started\n")
        end_process(ExitCode.INTERRUPTED)
    with suppress(OSError):
        if cleanup:
            for pid in started:
                subprocess.run([*cleanup, str(pid)], check=False)
        text = io.StringIO()  # the handler may have interrupted a write to the terminal, so it writes without buffers
        console = Console(file=text, force_terminal=sys.stdout.isatty(), highlight=False, soft_wrap=True, record=True)
        erase_line(console)
        console.print("[bold red]killed[/bold red]", highlight=False)
        print_resume_hint(console, run)
        write_last_words(text.getvalue())
        append_to_log(run.terminal_log, console.export_text())
        if run.node_rank == 0:
            status = run.read_status()
            status.close("failed")
            run.write_status(status)  # last: until then the heartbeat may overwrite it
    end_process(ExitCode.INTERRUPTED)


def end_with_children() -> None:
    """Kill all child processes, and exit with code 130."""
    kill_below(os.getpid())
    write_last_words("interrupted\n")
    end_process(ExitCode.INTERRUPTED)
