"""Finds settings of a recipe, and properties of its data, that will not have the effect that a user expects."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from distrain.config import Recipe
from distrain.data.sources.base import Source
from distrain.messages import counted, joined

MAX_NAMED = 3


def warn_early(recipe: Recipe, sources: Mapping[str, Source], *, steps_per_epoch: int, total_steps: int) -> list[str]:
    """Return one sentence per warning for the start of a run; most runs have none."""
    return [
        *find_schedule_faults(recipe, steps_per_epoch=steps_per_epoch, total_steps=total_steps),
        *find_class_faults(sources),
        *find_double_weights(recipe),
    ]


def find_schedule_faults(recipe: Recipe, *, steps_per_epoch: int, total_steps: int) -> list[str]:
    """Return a sentence for each part of the learning-rate schedule that is after the last of `total_steps`."""
    schedule, faults = recipe.schedule, list[str]()
    end = f"train.max_steps={total_steps}" if recipe.train.max_steps == total_steps else counted(total_steps, "step")
    warmup_steps = round(schedule.warmup_epochs * steps_per_epoch)
    if warmup_steps > 0 and total_steps <= warmup_steps:
        top = recipe.base_lr * total_steps / (warmup_steps + 1)
        faults.append(
            f"schedule.warmup_epochs={schedule.warmup_epochs:g} ({counted(warmup_steps, 'step')}) is not over before "
            f"the end ({end}): the learning rate rises to {top:.3g} of {recipe.base_lr:g} and no further; "
            f"--set schedule.warmup_epochs=0 trains without it"
        )
    drops = {"step": (schedule.step_epochs,), "multistep": schedule.milestones_epochs}.get(schedule.name) or ()
    late = [epoch for epoch in drops if epoch is not None and math.ceil(epoch * steps_per_epoch) >= total_steps]
    if late:
        key = "step_epochs" if schedule.name == "step" else "milestones_epochs"
        epochs = joined([f"{epoch:g}" for epoch in late], last="and")
        noun = "epoch" if len(late) == 1 else "epochs"
        faults.append(
            f"schedule.{key}: the learning rate would drop at {noun} {epochs}, but the run ends after epoch "
            f"{total_steps / steps_per_epoch:.4g}"
        )
    decay_steps = round((schedule.decay_epochs or 0) * steps_per_epoch)
    if schedule.decay_epochs is not None and decay_steps > total_steps - warmup_steps:
        faults.append(
            f"schedule.decay_epochs={schedule.decay_epochs:g} ({counted(decay_steps, 'step')}) is more than the run "
            f"has after its warm-up: the learning rate decays in all of these steps"
        )
    swa_start = recipe.train.swa_start_epochs
    if swa_start is not None and round(swa_start * steps_per_epoch) > total_steps:
        faults.append(f"train.swa_start_epochs={swa_start:g} is after the end ({end}): no weights are averaged")
    return faults


def find_class_faults(sources: Mapping[str, Source]) -> list[str]:
    """Return a sentence for each split that has classes or labels without samples, and if there is only one class.

    Targets that are unknown before the samples are read are not checked.
    """
    train = sources["train"]
    if train.target in {"values", "mask"}:
        return []
    kind = "class" if train.target == "class" else "label"
    faults = []
    if kind == "class" and len(train.classes) == 1:
        faults.append(
            f"the data has a single class, {train.classes[0]!r}: every answer is right, and there is nothing to learn; "
            f"add samples of another one"
        )
    consequences = {"train": "the network does not learn it", "val": "the validation says nothing about it"}
    for split, consequence in consequences.items():
        counts = known_counts(sources[split])
        empty = [] if counts is None else [train.classes[int(number)] for number in np.flatnonzero(counts == 0)]
        if empty:
            names = _name(empty, kind)
            consequence = consequence if len(empty) == 1 else consequence.removesuffix("it") + "them"
            faults.append(f"{names} no {'training' if split == 'train' else 'validation'} samples: {consequence}")
    return faults


def find_double_weights(recipe: Recipe) -> list[str]:
    """Return a sentence if two keys of the recipe both compensate for rare classes."""
    if recipe.data.sampling != "balanced" or recipe.loss.class_weights != "balanced":
        return []
    return [
        "data.sampling=balanced and loss.class_weights=balanced both make up for rare classes, which so count twice "
        "over; remove one of the two"
    ]


def known_counts(source: Source) -> NDArray[np.int64] | None:
    """Return the number of samples of each class or label, int64 [outputs]; None if that needs reading the samples."""
    if not source.has_known_targets:
        return None
    targets = source.targets
    if source.target == "labels":
        return targets.count_nonzero(dim=0).numpy()
    return np.bincount(targets.numpy(), minlength=len(source.classes))


def _name(names: Sequence[str], kind: str) -> str:
    if len(names) == 1:
        return f"{kind} {names[0]!r} has"
    shown = [repr(name) for name in names[:MAX_NAMED]]
    if len(names) > MAX_NAMED:
        shown.append(f"{len(names) - MAX_NAMED} more")
    return f"{len(names)} {'classes' if kind == 'class' else 'labels'} ({joined(shown, last='and')}) have"
