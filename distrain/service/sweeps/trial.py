"""Defines a trial of a sweep: a line of `trials.jsonl`."""

from typing import Any, Literal

from pydantic import BaseModel, Field

TrialState = Literal["queued", "running", "paused", "pruned", "finished", "failed"]
OVER: tuple[TrialState, ...] = ("pruned", "finished", "failed")
ACTIVE: tuple[TrialState, ...] = ("queued", "running")


class Trial(BaseModel):
    """A trial: the values that it tries, its run, and what it has reached."""

    number: int = Field(ge=0)
    params: dict[str, Any]  # by dotted key of the recipe
    run: str  # the name of its run, beside the folder of the sweep
    state: TrialState = "queued"
    value: float | None = None  # of the metric at its newest rung, or at its end
    rungs: list[float | None] = []  # the metric at each rung that it has passed; None where it is not finite
    stage: int = 0  # the rung at which it pauses, counted from 0; as many as there are rungs: it trains to its end
    reason: str = ""  # why it has failed
    seed: int | None = None  # of a repetition of a trial with another seed

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens to it."""
        return self.state in OVER

    @property
    def is_active(self) -> bool:
        """Whether its run waits for devices or trains."""
        return self.state in ACTIVE

    def has_passed(self, rung: int) -> bool:
        """Whether its value at a rung, counted from 0, is known, or will never be."""
        return len(self.rungs) > rung or self.is_over

    def value_at(self, rung: int) -> float | None:
        """Return the metric at a rung, or at the end of a run that ended before it; None where there is none."""
        if len(self.rungs) > rung:
            return self.rungs[rung]
        return self.value if self.state == "finished" else None

    def row(self) -> dict[str, Any]:
        """Return what the table of a sweep shows of it, as a JSON object."""
        return self.model_dump(exclude={"stage"} | (set() if self.seed is not None else {"seed"}))
