"""Distinguishes an error of the user's code from one of distrain or the machine, and finds its place in their code."""

import traceback
from collections.abc import Iterable

from distrain.config import Recipe
from distrain.config.user_code import is_reference
from distrain.errors import DistrainError
from distrain.runs.checkpoints import newest_step
from distrain.runs.consequences import is_secondary
from distrain.runs.directory import RunDirectory
from distrain.system.exits import describe_end, place_of, user_frame

_MAX_CHARACTERS = 300  # of the error's own text: torch lists every weight that does not fit
_OUT_OF_MEMORY = ("outofmemoryerror", "memoryerror", "out of memory", "can't allocate memory", "cannot allocate memory")
_OF_A_DEVICE = (
    "acceleratorerror",
    "cuda error",
    "cublas_status",
    "cudnn_status",
    "nccl",
    "hip error",
    "unable to find an engine",
)
_OF_PATHS = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)  # and not of a disk or network
_LIBRARIES = {"distrain", "torch", "torchvision", "timm"}


def find_mistake(error: BaseException, recipe: Recipe, run: RunDirectory, *, step: int) -> str | None:
    """Describe the error, with its place, if the user's code raised it before the run had trained; else return None.

    `step` is the step of this rank. An error that may not occur in another attempt or on another machine is not a
    mistake: too little memory, a failing device, a network or disk that does not answer, the end of another rank.
    """
    if isinstance(error, DistrainError) or not isinstance(error, Exception | SystemExit):
        return None
    if is_secondary(error) or is_of_the_machine(error) or _has_trained(run, step):
        return None
    if (frame := _find_frame(error, recipe)) is None:
        return None
    if (sentence := describe_end(error)) is not None:
        return sentence
    text = _in_one_line(error)
    return f"{type(error).__name__} before the first step, {place_of(frame)}" + (f": {text}" if text else "")


def describe_user_error(error: BaseException, recipe: Recipe) -> str | None:
    """Return message and place of an error of the user's code on one line; None for any other error."""
    if isinstance(error, DistrainError) or is_secondary(error) or (frame := _find_frame(error, recipe)) is None:
        return None
    return ", ".join(filter(None, (_in_one_line(error), place_of(frame))))


def is_out_of_memory(kind: str, message: str) -> bool:
    """Whether an error, by the name of its type and its message, means that memory ran out."""
    return any(words in f"{kind}: {message}".lower() for words in _OUT_OF_MEMORY)


def is_of_the_machine(error: BaseException) -> bool:
    """Whether an error may not occur on another machine: too little memory, a failing device, disk or network."""
    if isinstance(error, OSError):
        return not isinstance(error, _OF_PATHS)
    kind, text = type(error).__name__, str(error)
    return is_out_of_memory(kind, text) or any(words in f"{kind}: {text}".lower() for words in _OF_A_DEVICE)


def packages_of(names: Iterable[str]) -> set[str]:
    """Return the packages of the user's code that `names` refer to: they may be installed like libraries."""
    return {name.partition(":")[0].partition(".")[0] for name in names if is_reference(name)} - _LIBRARIES


def _find_frame(error: BaseException, recipe: Recipe) -> traceback.FrameSummary | None:
    packages = _packages(recipe)
    frame = user_frame(error, packages)
    return frame if frame is not None or error.__cause__ is None else user_frame(error.__cause__, packages)


def _in_one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}..."


def _has_trained(run: RunDirectory, step: int) -> bool:
    if step > 0 or newest_step(run.checkpoints) > 0:
        return True
    try:
        return any(attempt.last_step > 0 for attempt in run.read_status().attempts)
    except (DistrainError, OSError):  # the status cannot be read
        return True


def _packages(recipe: Recipe) -> set[str]:
    names = [recipe.task.name, recipe.model.name, recipe.loss.name, *(part.source for part in recipe.data.parts)]
    return packages_of([*names, *(transform.name for transform in (*recipe.augment.train, *recipe.augment.eval))])
