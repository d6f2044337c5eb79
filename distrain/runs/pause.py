"""Pauses a run at a step that is known before: the run trains up to it, saves, and ends as stopped.

Unlike a stop request, which is answered at whatever step the ranks have reached, a pause is exact. A sweep uses it to
compare its trials after the same number of epochs or steps.
"""

import json
from typing import Literal

from pydantic import BaseModel, Field

from distrain.runs.directory import RunDirectory
from distrain.system.files import read_whole, to_json, write_atomically

Unit = Literal["epochs", "steps"]


class Pause(BaseModel):
    """Where a run pauses: after `at` epochs or steps. A run that is there already does not train further."""

    at: int = Field(gt=0)
    unit: Unit = "epochs"

    def step(self, steps_per_epoch: int) -> int:
        """Return the number of steps after which the run pauses."""
        return self.at * steps_per_epoch if self.unit == "epochs" else self.at


def write_pause(run: RunDirectory, pause: Pause | None) -> None:
    """Set where the next attempt of a run pauses; None: nowhere."""
    if pause is None:
        run.pause.unlink(missing_ok=True)
    else:
        write_atomically(run.pause, to_json(pause))


def read_pause(run: RunDirectory) -> Pause | None:
    """Return where a run pauses, None where it does not; raises `RunError` for a damaged file."""
    return read_whole(run.pause, lambda text: Pause.model_validate(json.loads(text)))
