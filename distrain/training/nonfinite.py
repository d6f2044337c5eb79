"""Handles a step with values that are not finite: resumes from the newest checkpoint without its batch."""

import logging
from collections.abc import Sequence

import torch

from distrain.data.sources.base import Source, is_read_in_order
from distrain.errors import DataError, TrainingError
from distrain.runs.status import SkippedBatch
from distrain.training.session import Session
from distrain.training.skipped_steps import SkippedSteps

MAX_NAMED = 16  # samples in a message; `status.json` has the numbers of all
MIN_BATCHES = 3  # with a single sample in common, from which on it counts as the cause, not as chance

log = logging.getLogger(__name__)


class NotFiniteError(Exception):
    """A step produced values that are not finite, so that the weights after it are useless.

    `step` counts from 0, `cause` names what was not finite, and `micro_batches` has the indices of the micro-batches in
    which it may have begun. Without a cause, it was this step or one shortly before it. All ranks raise it together.
    """

    def __init__(self, step: int, cause: str = "", micro_batches: Sequence[int] = ()) -> None:
        super().__init__(step, cause)
        self.step = step
        self.cause = cause
        self.micro_batches = micro_batches


def roll_back(session: Session, error: NotFiniteError) -> None:
    """Prepare the return to the newest checkpoint: skip the step that is the cause, or find it first.

    All ranks must call it together. Raises `TrainingError` if too many steps have been skipped, or all of the run.
    """
    session.state.must_watch_steps = True
    if error.cause:
        _skip_step(session, error)
    else:
        log.warning(
            "values that are not finite appeared by step %d: training resumes from the newest checkpoint and checks "
            "every step to find the one that caused them",
            error.step + 1,
        )


def _skip_step(session: Session, error: NotFiniteError) -> None:
    """Skip the batch of this step from now on: training resumes from the newest checkpoint without it.

    All ranks call it together. Raises `TrainingError` where that has been done too often, or leaves no step to train.
    """
    source, most = session.train_reader.source, session.recipe.train.max_rollbacks
    before = session.state.skipped_batches
    batch = SkippedBatch(
        step=error.step + 1,
        cause=error.cause,
        samples=session.sampler.samples(error.step, error.micro_batches).tolist(),
        bad_samples=_find_bad_images(session, error),
    )
    found = f"{error.cause} is not finite in step {batch.step}"
    if batch.bad_samples:
        hint = f"in the pixels of {name_samples(source, batch.bad_samples)} there are values that are not finite"
    else:
        unexplained = [*(earlier for earlier in before if earlier.samples and not earlier.bad_samples), batch]
        common = sorted(set.intersection(*(set(each.samples) for each in unexplained)))
        hint = f"its samples: {name_samples(source, batch.samples)}"
        if len(unexplained) > 1 and common:
            steps = ", ".join(str(each.step) for each in unexplained)
            hint = f"the skipped batches (steps {steps}) have in common: {name_samples(source, common)}"
            if len(unexplained) >= MIN_BATCHES and len(common) == 1:
                batch.bad_samples = common
    if not _has_steps_left(session, batch):
        session.state.step = batch.step
        seen = f"; {hint}" if batch.bad_samples else ""
        raise TrainingError(
            f"{found}, and no batch of the run gave finite values{seen}; check the loss, the network and the data, or "
            f"lower optimizer.lr"
        )
    if len(before) >= most:
        session.state.step = batch.step  # the run failed there, though it took more steps
        raise TrainingError(
            f"{found}, and train.max_rollbacks={most} allows no further rollback; {hint}; correct or remove a sample "
            f"that is the cause, lower optimizer.lr, or set train.clip_norm"
        )
    log.warning(
        "%s: training resumes from the newest checkpoint without this batch (rollback %d of at most %d); %s",
        *(found, len(before) + 1, most, hint),
    )
    if batch.bad_samples and not is_read_in_order(source):
        log.warning("later batches with %s are skipped, too", name_samples(source, batch.bad_samples))
    session.state.skip(batch)
    session.monitor.report()  # written now, so that a kill does not lose it


def _has_steps_left(session: Session, batch: SkippedBatch) -> bool:
    """Whether the run has a step to train, from its start on, when `batch` is skipped, too."""
    skipped = SkippedSteps([*session.state.skipped_batches, batch], session.sampler)
    return any(True for _ in skipped.others(range(session.total_steps)))


def _find_bad_images(session: Session, error: NotFiniteError) -> list[int]:
    """Return the samples of the batch whose images are not finite, after reading its micro-batches again on each rank.

    A stream is not read again, since that would have to start at the beginning of the epoch.
    """
    global_batch = session.sampler.global_batch(error.step)
    is_bad = torch.zeros(global_batch.num_samples, dtype=torch.int64)
    if not is_read_in_order(session.train_reader.source):
        for index, micro_batch in zip(global_batch.local, session.sampler.micro_batches([error.step]), strict=True):
            if index not in error.micro_batches:
                continue
            batch = session.train_reader.read(micro_batch)
            session.state.progress += 1
            if isinstance(batch, DataError) or not batch[0].is_floating_point():
                break  # bytes are always finite
            is_bad[slice(*global_batch.ranges[index])] = ~batch[0].flatten(1).isfinite().all(dim=1).cpu()
    places = session.world.all_reduce(is_bad).nonzero().flatten().numpy()
    return sorted(set(session.sampler.samples(error.step)[places].tolist()))


def name_samples(source: Source, samples: Sequence[int], *, rest: str = " (status.json has their numbers)") -> str:
    """Return the names of the first samples, and how many more there are, with `rest` on these."""
    names = [source.describe(sample) for sample in samples[:MAX_NAMED]]
    more = len(samples) - len(names)
    return ", ".join(names) + (f" and {more} more{rest}" if more else "")
