"""Describes a recipe to people, in a phrase for each of its subjects."""

from collections.abc import Mapping
from typing import Any

from distrain.config.data import SAMPLINGS, Augment, Data
from distrain.config.model import Model
from distrain.config.optim import Optimizer, Schedule
from distrain.config.outputs import Eval
from distrain.config.parts import TransformList
from distrain.config.profile import Profile
from distrain.config.recipe import Recipe
from distrain.config.section import Section
from distrain.config.task import CLASSIFICATION, Task
from distrain.config.training import Train
from distrain.messages import counted, joined, shown

_DROP = 0.1  # schedule.gamma where it is null


def describe_training(recipe: Recipe, profile: Profile | None) -> str:
    """Return in one line what is trained on what, for how long, and on how many processes if the profile is known."""
    steps = f" ({counted(recipe.train.max_steps, 'step')} at most)" if recipe.train.max_steps is not None else ""
    text = f"{recipe.model.name} on {recipe.data.source}, {counted(recipe.train.epochs, 'epoch')}{steps}"
    return f"{text}, {recipe.precision}" + ("" if profile is None else f", on {describe_processes(profile)}")


def describe_processes(profile: Profile) -> str:
    """Return how many processes train: `4 GPUs`, `1 CPU process`."""
    names = {"cuda": ("GPU", "GPUs"), "cpu": ("CPU process", "CPU processes"), None: ("process", "processes")}
    return counted(profile.world_size, *names[profile.device])


def describe_recipe(recipe: Recipe) -> dict[str, str]:
    """Return what is trained on what and how, by subject: `network`, `data`, `augmentation`, `optimizer` and others."""
    task = {} if recipe.task.name == CLASSIFICATION else {"task": _describe_task(recipe.task)}
    return task | {
        "network": _describe_model(recipe.model),
        "data": _describe_data(recipe.data),
        "batch": _describe_batch(recipe),
        "augmentation": _describe_augment(recipe.augment),
        "loss": _with_fields(recipe.loss.name, recipe.loss, leaving_out={"name"}),
        "optimizer": _describe_optimizer(recipe.optimizer, recipe.base_lr),
        "schedule": _describe_schedule(recipe.schedule),
        "length": _describe_length(recipe.train),
        "arithmetic": _describe_arithmetic(recipe),
        "evaluation": _describe_eval(recipe.eval),
        "seed": str(recipe.train.seed),
    }


def _describe_task(task: Task) -> str:
    return _with_fields(_with_arguments(task.name, task.arguments), task, leaving_out={"name", "arguments"})


def _describe_model(model: Model) -> str:
    parts = [_with_arguments(model.name, model.arguments)]
    parts.append("random initial weights" if model.weights is None else f"initial weights from {model.weights}")
    if model.freeze:
        parts.append(f"frozen: {joined(model.freeze, last='and')}")
    return ", ".join(parts)


def _describe_data(data: Data) -> str:
    parts = []
    for part in data.parts:
        source = _with_arguments(part.source, part.arguments)
        parts.append(source if part.path is None else f"{source} in {part.path}")
    text = joined(parts, last="and")
    if data.target != "class":
        kinds = {"labels": "several labels for each sample", "values": "values to predict", "mask": "with masks"}
        text += f", {kinds[data.target]}"
    if data.val_fraction is not None:
        text += f", of which {data.val_fraction:.6g} validates"
    if data.train_samples is not None:
        text += f", {counted(data.train_samples, 'training sample')} drawn by the seed"
    if data.sampling == "balanced":
        text += ", each class drawn equally often"
    elif data.sampling not in SAMPLINGS:
        text += f", drawn by the weights of {_with_arguments(data.sampling, data.sampling_arguments)}"
    return text if data.repeats == 1 else f"{text}, each sample {data.repeats} times in a row"


def _describe_batch(recipe: Recipe) -> str:
    size = recipe.train.micro_batch_size
    text = f"{counted(recipe.data.batch_size, 'sample')} in a step, over all processes"
    if size == "auto":
        return f"{text}; the micro-batch that fits in memory"
    return text if size is None else f"{text}, in micro-batches of {size:,}"


def _describe_augment(augment: Augment) -> str:
    parts = [_describe_transforms(augment.train) or "none"]
    if augment.batch:
        parts.append(f"of a batch {_describe_transforms(augment.batch)}")
    parts += [f"{name} (alpha {alpha:g})" for name, alpha in _mixes(augment) if alpha is not None]
    if augment.sizes is not None:
        parts.append("image side " + ", ".join(f"{side} from epoch {epoch} on" for epoch, side in augment.sizes))
    if augment.eval:
        parts.append(f"for the evaluation {_describe_transforms(augment.eval)}")
    return "; ".join(parts)


def _mixes(augment: Augment) -> list[tuple[str, float | None]]:
    return [("MixUp", augment.mixup), ("CutMix", augment.cutmix)]


def _describe_transforms(transforms: TransformList) -> str:
    return ", ".join(_with_arguments(each.name, each.arguments) for each in transforms)


def _describe_optimizer(optimizer: Optimizer, base_lr: float) -> str:
    rate = f"learning rate {base_lr:.6g}"
    if optimizer.lr_per is not None:
        rate += f" (lr {optimizer.lr:g} for {counted(optimizer.lr_per, 'sample')}, scaled to the batch)"
    return _with_fields(f"{optimizer.name}, {rate}", optimizer, leaving_out={"name", "lr", "lr_per"})


def _describe_schedule(schedule: Schedule) -> str:
    text: str = schedule.name
    if schedule.name == "step":
        text = f"times {schedule.gamma or _DROP:g} every {schedule.step_epochs:g} epochs"
    elif schedule.milestones_epochs is not None:
        drops = joined([f"{epoch:g}" for epoch in schedule.milestones_epochs], last="and")
        text = f"times {schedule.gamma or _DROP:g} at epochs {drops}"
    else:
        text = _with_fields(text, schedule, leaving_out={"name", "warmup_epochs"})
    warmup = f"{schedule.warmup_epochs:g} epoch{'s' if schedule.warmup_epochs != 1 else ''} of warm-up"
    return f"{text}, after {warmup}" if schedule.warmup_epochs else text


def _describe_length(train: Train) -> str:
    text = counted(train.epochs, "epoch")
    if train.max_steps is not None:
        text += f", {counted(train.max_steps, 'step')} at most"
    if train.max_time is not None:
        text += f", {train.max_time:g} minutes at most"
    if train.patience is not None:
        text += f", ends after {counted(train.patience, 'evaluation')} without a new best one"
    return text


def _describe_arithmetic(recipe: Recipe) -> str:
    parts: list[str] = [recipe.precision]
    if recipe.train.exact:
        parts.append("the same bits on any number of processes")
    elif recipe.train.deterministic:
        parts.append("deterministic kernels")
    if recipe.compute.compile != "none":
        parts.append(f"compiled ({recipe.compute.compile})")
    if recipe.compute.recompute:
        parts.append("activations computed again")
    train = recipe.train
    limits = {"gradient norm at most": train.clip_norm, "gradients at most": train.clip_value}
    limits |= {"adaptive gradient clipping": train.agc, "moving average": train.ema_decay}
    parts += [f"{name} {value:g}" for name, value in limits.items() if value is not None]
    if train.swa_start_epochs is not None:
        parts.append(f"weights averaged from epoch {train.swa_start_epochs:g} on")
    if recipe.train.lookahead is not None:
        parts.append("Lookahead")
    return ", ".join(parts)


def _describe_eval(config: Eval) -> str:
    times = []
    if config.every_epochs is not None:
        times.append("every epoch" if config.every_epochs == 1 else f"every {config.every_epochs} epochs")
    if config.every_steps is not None:
        times.append(f"every {counted(config.every_steps, 'step')}")
    text = joined([*times, "at the end"], last="and")
    return f"{text}; the best by {config.best}" if config.best is not None else text


def _with_fields(text: str, section: Section, *, leaving_out: set[str]) -> str:
    """Return the text with the fields of a section that differ from their defaults."""
    fields = section.model_dump(exclude=leaving_out, exclude_defaults=True)
    return ", ".join([text, *(f"{name.replace('_', ' ')} {shown(value)}" for name, value in fields.items())])


def _with_arguments(name: str, arguments: Mapping[str, Any]) -> str:
    if not arguments:
        return name
    return f"{name} ({', '.join(f'{key} {shown(value)}' for key, value in arguments.items())})"
