"""Says which steps are skipped: those that caused a rollback, and later ones with a sample known to be the cause."""

from collections.abc import Iterable, Sequence
from functools import lru_cache

from distrain.data.loading.sampler import TrainSampler
from distrain.runs.status import SkippedBatch


class SkippedSteps:
    """The steps, counted from 0, whose batch is skipped; a function of the batches alone, so that a resume agrees."""

    def __init__(self, batches: Sequence[SkippedBatch], sampler: TrainSampler) -> None:
        self.batches = list(batches)
        self._sampler = sampler
        self._in_epoch = lru_cache(maxsize=None)(self._find)

    def __contains__(self, step: int) -> bool:
        """Whether step `step` is skipped."""
        return bool(self.batches) and step in self._in_epoch(step // self._sampler.steps_per_epoch)

    def others(self, steps: range) -> Iterable[int]:
        """Return those of `steps` that are not skipped; it does not go through them at once."""
        return (step for step in steps if step not in self) if self.batches else steps

    def between(self, first: int, stop: int) -> list[int]:
        """Return the steps from `first` up to, not including, `stop` that are skipped."""
        if not self.batches:
            return []
        first = max(first, min(batch.step for batch in self.batches) - 1)
        epochs = range(first // self._sampler.steps_per_epoch, -(-stop // self._sampler.steps_per_epoch))
        return [step for epoch in epochs for step in sorted(self._in_epoch(epoch)) if first <= step < stop]

    def _find(self, epoch: int) -> frozenset[int]:
        steps_per_epoch = self._sampler.steps_per_epoch
        steps = {batch.step - 1 for batch in self.batches if (batch.step - 1) // steps_per_epoch == epoch}
        for batch in self.batches:
            if batch.bad_samples and (epoch + 1) * steps_per_epoch > batch.step:
                found = self._sampler.steps_with(batch.bad_samples, epoch)
                steps |= {step for step in found if step >= batch.step}
        return frozenset(steps)
