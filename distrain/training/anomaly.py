"""Turns what torch reports under `train.detect_anomaly` into one sentence: the step, the operation, and its line."""

import re
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distrain.errors import TrainingError
from distrain.system.exits import innermost_user_frame, place_of
from distrain.training.train_state import TrainState

_FOUND = re.compile(r"Function '(\w+)' returned nan values")
FORWARD_STACK = "Error detected in "  # how torch's warning begins that holds the stack of the forward call
_FRAME = re.compile(r'File "(.+)", line (\d+), in (\S+)')


@contextmanager
def describe_anomalies(state: TrainState) -> Iterator[None]:
    """Raise `TrainingError` in place of torch's error for a gradient that is NaN; torch's warning of it is not shown.

    https://docs.pytorch.org/docs/stable/autograd.html#torch.autograd.detect_anomaly
    """
    forward_stacks: list[str] = []
    show = warnings.showwarning

    def keep_or_show(message: Warning | str, *others: Any, **more: Any) -> None:
        if str(message).startswith(FORWARD_STACK):
            forward_stacks.append(str(message))
        else:
            show(message, *others, **more)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", FORWARD_STACK)
        warnings.showwarning = keep_or_show
        try:
            yield
        except RuntimeError as error:
            if (found := _FOUND.match(str(error))) is None:
                raise
            raise TrainingError(
                f"a gradient is NaN in the backward pass after step {state.step}: {found[1]} made it"
                f"{_find_line(forward_stacks)}; keep the input of this operation where its gradient is finite, or "
                f"lower optimizer.lr"
            ) from error


def _find_line(forward_stacks: list[str]) -> str:
    """Return a phrase with the innermost line of the user's code that called the operation; empty if there is none."""
    frames = [
        traceback.FrameSummary(file, int(line), name)
        for stack in forward_stacks[:1]
        for file, line, name in _FRAME.findall(stack)
    ]
    frame = innermost_user_frame(frames)
    return "" if frame is None else f" for the operation {place_of(frame)}"
