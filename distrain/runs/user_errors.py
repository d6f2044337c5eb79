"""Tells an error of the user's own code from one of distrain or the machine, and where in their code it is."""

import traceback

from distrain.config import Recipe
from distrain.config.user_code import is_reference
from distrain.errors import DistrainError
from distrain.runs.checkpoints import newest_step
from distrain.runs.consequences import is_secondary
from distrain.runs.directory import RunDirectory
from distrain.system.exits import describe_end, own_frame, place_of

_MAX_CHARACTERS = 300  # of the error's own text: torch lists every weight that does not fit
_OUT_OF_MEMORY = ("outofmemoryerror", "memoryerror", "out of memory", "can't allocate memory", "cannot allocate memory")
_OF_A_DEVICE = ("acceleratorerror", "cuda error", "cublas_status", "cudnn_status", "nccl", "hip error")
_OF_PATHS = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)  # and not of a disk or network
_LIBRARIES = {"distrain", "torch", "torchvision", "timm"}


def find_mistake(error: BaseException, recipe: Recipe, run: RunDirectory, *, step: int) -> str | None:
    """Return what the user's own code raised, and where, where that ended a run that had not trained yet; else None.

    `step` is where this rank stands. What another attempt or another machine may not meet is not a mistake: too little
    memory, a device that fails, a network or a disk that does not answer, the end of another rank.
    """
    if isinstance(error, DistrainError) or not isinstance(error, Exception | SystemExit):
        return None
    if is_secondary(error) or _is_of_the_machine(error) or _has_trained(run, step):
        return None
    if (frame := _find_frame(error, recipe)) is None:
        return None
    if (words := describe_end(error)) is not None:
        return words
    text = _in_one_line(error)
    return f"{type(error).__name__} before the first step, {place_of(frame)}" + (f": {text}" if text else "")


def describe_own_error(error: BaseException, recipe: Recipe) -> str | None:
    """Return what an error of the user's own code says, and where that is, on one line; None for any other error."""
    if isinstance(error, DistrainError) or is_secondary(error) or (frame := _find_frame(error, recipe)) is None:
        return None
    return ", ".join(filter(None, (_in_one_line(error), place_of(frame))))


def is_out_of_memory(kind: str, message: str) -> bool:
    """Whether an error, by the name of its type and its message, says that there is too little memory."""
    return any(words in f"{kind}: {message}".lower() for words in _OUT_OF_MEMORY)


def _find_frame(error: BaseException, recipe: Recipe) -> traceback.FrameSummary | None:
    packages = _packages(recipe)
    frame = own_frame(error, packages)
    return frame if frame is not None or error.__cause__ is None else own_frame(error.__cause__, packages)


def _in_one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}..."


def _is_of_the_machine(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return not isinstance(error, _OF_PATHS)
    kind, text = type(error).__name__, str(error)
    return is_out_of_memory(kind, text) or any(words in f"{kind}: {text}".lower() for words in _OF_A_DEVICE)


def _has_trained(run: RunDirectory, step: int) -> bool:
    if step > 0 or newest_step(run.checkpoints) > 0:
        return True
    try:
        return any(attempt.last_step > 0 for attempt in run.read_status().attempts)
    except (DistrainError, OSError):  # it cannot be read
        return True


def _packages(recipe: Recipe) -> set[str]:
    """Return the packages that the recipe names code of: they may be installed, as libraries are."""
    names = [recipe.model.name, recipe.loss.name, *(part.source for part in recipe.data.parts)]
    names += [transform.name for transform in (*recipe.augment.train, *recipe.augment.eval)]
    return {name.partition(":")[0].partition(".")[0] for name in names if is_reference(name)} - _LIBRARIES
