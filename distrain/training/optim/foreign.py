"""Builds optimizers of torch by reference, of timm, of schedulefree, and the user's own."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from distrain import config as recipe
from distrain.config.optim import TIMM
from distrain.config.user_code import find_refusal, is_reference, load_reference
from distrain.errors import RecipeError
from distrain.messages import counted, first_line, nearest
from distrain.runs.user_errors import packages_of
from distrain.system.exits import user_frame

Groups = list[dict[str, Any]]
Factory = Callable[..., Any]

_LOOKAHEAD = "lookahead_"  # timm's prefix


def build_foreign(config: recipe.Optimizer, groups: Groups) -> torch.optim.Optimizer:
    """Return the optimizer over parameter groups, which keep their weight decay and factor of the learning rate.

    A factory is called with the groups, `lr` and `optimizer.arguments`. If it makes groups of its own, their learning
    rates over `lr` are their factors. Raises `RecipeError` for what is not an optimizer of one pass per step.
    """
    title, weights = f"optimizer.name={config.name}", [weight for group in groups for weight in group["params"]]
    made = _call(_find_factory(config), config, groups)
    if not isinstance(made, torch.optim.Optimizer):
        raise RecipeError(f"{title} returns {made!r:.60}; return a torch.optim.Optimizer")
    updated = [weight for group in made.param_groups for weight in group["params"]]
    if missing := {id(weight) for weight in weights} - {id(weight) for weight in updated}:
        raise RecipeError(f"{title} does not update {counted(len(missing), 'weight')} of its groups; use all of them")
    closure = inspect.signature(type(made).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise RecipeError(
            f"{title} computes the loss several times in a step, by a closure, which distrain does not do"
        )
    if config.weight_decay and "weight_decay" not in made.defaults:
        raise RecipeError(f"optimizer.weight_decay={config.weight_decay:g}: {config.name} has none; set it to 0")
    for group in made.param_groups:
        group.setdefault("lr_factor", group["lr"] / config.lr)
    if is_schedule_free(made):
        made.train()  # type: ignore[attr-defined]
    return made


def is_schedule_free(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer has other weights for the evaluation, between which `train()` and `eval()` change."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


def _find_factory(config: recipe.Optimizer) -> Factory:
    if is_reference(config.name):
        factory = load_reference(config.name, key="optimizer.name")
        if not callable(factory):
            raise RecipeError(f"optimizer.name={config.name} is {factory!r:.60}; name a class or a function")
        return partial(factory)
    if config.name.startswith(TIMM):
        return _timm_factory(config.name)
    try:
        import schedulefree
    except ModuleNotFoundError:
        raise RecipeError(
            f"optimizer.name={config.name} needs schedulefree, which is not installed; "
            "pip install 'distrain[schedulefree]'"
        ) from None
    if config.name == "schedule_free_sgd":
        return _with_given(schedulefree.SGDScheduleFree, momentum=config.momentum)
    return _with_given(schedulefree.AdamWScheduleFree, betas=config.betas, eps=config.eps)


def _with_given(factory: Factory, **fields: object) -> Factory:
    return partial(factory, **{name: value for name, value in fields.items() if value is not None})


def _timm_factory(full_name: str) -> Factory:
    try:
        from timm import optim as timm_optim  # takes seconds to import
    except ModuleNotFoundError:
        raise RecipeError(
            f"optimizer.name={full_name} needs timm, which is not installed; pip install 'distrain[timm]'"
        ) from None
    optim: Any = timm_optim
    name = full_name.removeprefix(TIMM)
    if name.startswith(_LOOKAHEAD):
        raise RecipeError(
            f"optimizer.name={full_name}: name {TIMM}{name.removeprefix(_LOOKAHEAD)}, and set train.lookahead={{}}, "
            "which is saved in checkpoints"
        )
    if name not in (known := optim.list_optimizers()):
        hint = nearest(name, known) or "; `timm.optim.list_optimizers()` in Python lists them"
        raise RecipeError(f"optimizer.name={full_name}: timm has no optimizer {name!r}{hint}")
    return partial(optim.create_optimizer_v2, opt=name)


def _call(factory: Factory, config: recipe.Optimizer, groups: Groups) -> Any:
    arguments = {"lr": config.lr, **config.arguments}
    title = f"optimizer.name={config.name} with optimizer.arguments"
    if (refusal := find_refusal(partial(factory, groups), arguments)) is not None:
        raise RecipeError(f"{title}: {refusal}")
    try:
        return factory(groups, **arguments)
    except Exception as error:
        if isinstance(error, RecipeError) or user_frame(error, packages_of([config.name])) is not None:
            raise
        raise RecipeError(f"{title} cannot be made: {first_line(error)}") from error
