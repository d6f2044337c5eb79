"""Defines the exceptions of distrain and the exit codes that they end a process with.

DistrainError             exit 1
├── UserError             exit 2: one sentence that says what is wrong, the value seen, and what to do
│   ├── RecipeError       the recipe or a --set
│   ├── DataError         a folder, an image, a label
│   ├── ModelError        a model name, its weights, its head
│   │   └── WeightsUnreachableError
│   ├── BundleError       a bundle or an export that cannot be read or made as requested
│   ├── RunError          a run directory that is missing, in use, or holds another recipe
│   ├── StorageError      a file or folder that cannot be read or written
│   ├── LaunchError       processes and devices that this machine does not have
│   └── PreflightError    all that was found to be wrong before the start, or in a table, one sentence each
├── CheckpointError       exit 1: a checkpoint that cannot be written or read
├── ExportError           exit 1: an export that does not compute what the model computes
├── RunFailedError       exit 1: a run that Python waited for has failed; the traceback of its first error is a note
├── TaskError             exit 1: a process of `eval`, `bench` or `plan` has failed
├── OutputError           exit 1: standard output cannot be written, for example because the disk is full
├── StoppedError          exit 130: a command that saves nothing was stopped
└── TrainingError         exit 1: training diverges and rolling back does not help
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """What the exit code of every distrain process means."""

    FINISHED = 0
    FAILED = 1
    BAD_INPUT = 2
    STOPPED = 75  # resumable: the same command resumes the run
    INTERRUPTED = 130  # by Ctrl-C, without a save; what a shell reports for a process killed by SIGINT


class DistrainError(Exception):
    """Anything distrain itself raises; `exit_code` is what the process ends with."""

    exit_code = ExitCode.FAILED

    @property
    def lines(self) -> tuple[str, ...]:
        """The message as it is printed: one line, unless a subclass has more."""
        return (str(self),)


class UserError(DistrainError):
    """Something the user can fix: its message is one sentence, printed without a traceback."""

    exit_code = ExitCode.BAD_INPUT


class RecipeError(UserError):
    """The recipe, or a change made to it with --set, is not valid."""


class DataError(UserError):
    """The data is missing, unreadable or contradictory."""


class ModelError(UserError):
    """The model cannot be built as the recipe says."""


class WeightsUnreachableError(ModelError):
    """Pretrained weights could not be downloaded."""


class BundleError(UserError):
    """A bundle or an export cannot be read or made as requested."""


class RunError(UserError):
    """The run directory cannot be used for what was requested."""


class StorageError(UserError):
    """A file or folder cannot be read or written: no permission, or a read-only file system."""


class LaunchError(UserError):
    """The requested processes or devices are not available."""


class PreflightError(UserError):
    """Errors that were found before anything was started, or in a table: the message has a line for each."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self._faults = tuple(faults)

    @property
    def lines(self) -> tuple[str, ...]:
        """One line for each error."""
        return self._faults


class CheckpointError(DistrainError):
    """A checkpoint could not be written or read."""


class ExportError(DistrainError):
    """A network cannot be written as a graph, or the graph does not compute what the network computes."""


class RunFailedError(DistrainError):
    """A run has failed: the message says at which step, on which rank and why, and where its log is."""


class TaskError(DistrainError):
    """A process of an evaluation or a benchmark has failed; the message ends in the traceback where no log is kept."""

    @property
    def lines(self) -> tuple[str, ...]:
        """The message, then the traceback."""
        return tuple(str(self).splitlines())


class OutputError(DistrainError):
    """Standard output cannot be written."""


class StoppedError(DistrainError):
    """A command was stopped that does not save its partial work."""

    exit_code = ExitCode.INTERRUPTED

    def __init__(self) -> None:
        super().__init__("stopped on request; nothing was saved")


class TrainingError(DistrainError):
    """The training diverges: resuming from a checkpoint again would not help."""
