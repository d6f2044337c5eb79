"""Runs the `distrain` command, and turns errors into one sentence, and signals and lost output into an exit code."""

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType

from distrain.errors import DistrainError, ExitCode
from distrain.messages import print_error
from distrain.system import filesystem
from distrain.system.caches import provide_caches
from distrain.system.signals import ignore_signals
from distrain.system.terminal import guard_output


def main() -> None:
    """Run the command line; a `DistrainError` is printed on standard error, and sets the exit code.

    So is a file system error; DISTRAIN_TRACEBACK=1 adds the traceback. Ctrl-C ends a command with one line and exit
    code 130, unless it is training: then the run saves and stops.
    """
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)  # first of all: the imports take some time
    guard_output()
    provide_caches()
    code = _run()
    ignore_signals()
    if code == ExitCode.INTERRUPTED:
        print_error("interrupted")
    sys.exit(code)


def _run() -> int:
    code = int(ExitCode.FINISHED)
    try:
        from distrain.cli.app import build_command
        from distrain.cli.usage import UsageError, explain, is_request_for_help

        try:
            code = build_command()(standalone_mode=False) or ExitCode.FINISHED
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else ExitCode.FINISHED
        except UsageError as error:
            if not is_request_for_help(error):
                code = _report([explain(error)], ExitCode.BAD_INPUT)
        sys.stdout.flush()  # here and not at Python's exit, so that an error sets the exit code
    except SystemExit as end:  # the reader of the output has exited (`distrain runs | head`), or Ctrl-C
        code = end.code if isinstance(end.code, int) and end.code else code
    except DistrainError as error:
        code = _report(error.lines, error.exit_code)
    except OSError as error:
        if (sentence := filesystem.explain(error)) is None:
            raise
        code = _report([sentence], filesystem.exit_code(error))
    return code


def _report(lines: Sequence[str], code: ExitCode) -> ExitCode:
    if os.environ.get("DISTRAIN_TRACEBACK"):
        traceback.print_exc()
    for line in lines:
        print_error(line)
    return code


def _interrupt(_: int, __: FrameType | None) -> None:
    raise SystemExit(ExitCode.INTERRUPTED)
