"""Decides after which steps the run logs, evaluates and saves, as functions of the step alone."""

import math
from dataclasses import dataclass

from distrain.config import Recipe


@dataclass(frozen=True)
class Intervals:
    """The recipe's intervals, in steps. After the last step the run logs, evaluates and saves."""

    recipe: Recipe
    steps_per_epoch: int
    total_steps: int

    def next_boundary(self, step: int) -> int:
        """Return the next step after which the run logs, evaluates or saves; up to it, the loop does not check."""
        recipe = self.recipe
        intervals = [
            *self._intervals(recipe.log.every_steps, None),
            *self._intervals(recipe.eval.every_steps, recipe.eval.every_epochs),
            *self._intervals(recipe.checkpoint.every_steps, recipe.checkpoint.every_epochs),
        ]
        return min(self.total_steps, *((step // interval + 1) * interval for interval in intervals))

    def should_log(self, step: int) -> bool:
        """Whether to log a line of metrics after `step` steps."""
        return self._is_boundary(step, self.recipe.log.every_steps, None)

    def should_evaluate(self, step: int) -> bool:
        """Whether to evaluate after `step` steps."""
        if step == 0:
            return self.recipe.eval.at_start
        return self._is_boundary(step, self.recipe.eval.every_steps, self.recipe.eval.every_epochs)

    def num_evaluations(self, first_step: int, last_step: int) -> int:
        """Count the evaluations after `first_step` and up to `last_step`, both before the last step of the run."""
        config = self.recipe.eval

        def until(step: int) -> int:
            intervals = self._intervals(config.every_steps, config.every_epochs)
            common = step // math.lcm(*intervals) if len(intervals) == 2 else 0
            return sum(step // interval for interval in intervals) - common

        return until(last_step) - until(first_step)

    def should_save(self, step: int) -> bool:
        """Whether to save a checkpoint after `step` steps, by the number of steps or epochs."""
        return self._is_boundary(step, self.recipe.checkpoint.every_steps, self.recipe.checkpoint.every_epochs)

    def _is_boundary(self, step: int, every_steps: int | None, every_epochs: int | None) -> bool:
        if step == 0:
            return False
        return step == self.total_steps or any(step % n == 0 for n in self._intervals(every_steps, every_epochs))

    def _intervals(self, every_steps: int | None, every_epochs: int | None) -> list[int]:
        by_epochs = [] if every_epochs is None else [every_epochs * self.steps_per_epoch]
        return by_epochs if every_steps is None else [every_steps, *by_epochs]
