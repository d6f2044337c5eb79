"""The sections of a recipe that define the optimizer and the schedule of its learning rate."""

from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from distrain.config.section import Fraction, NonNegative, Positive, Section, Words, refuse_unused
from distrain.config.user_code import is_reference
from distrain.messages import joined, nearest, shown

TIMM = "timm."
OWN = "package.module:name"
SCHEDULE_FREE = ("schedule_free_sgd", "schedule_free_adamw")

_OPTIMIZERS = {  # the fields of each, besides those that all have
    "sgd": "momentum nesterov",
    "adam": "betas eps",
    "adamw": "betas eps",
    "rmsprop": "momentum alpha eps",
    "muon": "momentum nesterov betas eps adamw_lr arguments",
    "schedule_free_sgd": "momentum arguments",
    "schedule_free_adamw": "betas eps arguments",
}
_OF_ALL = {"name", "lr", "lr_per", "weight_decay", "no_decay", "layer_decay", "lr_factors", "even_decay"}
_SCHEDULES = {
    "constant": "",
    "step": "step_epochs gamma",
    "multistep": "milestones_epochs gamma",
    "cosine": "final_factor",
    "onecycle": "pct_start div_factor final_div_factor",
    "triangle": "first_factor pct_start final_factor",
    "poly": "power final_factor",
    "restarts": "period_epochs period_factor final_factor",
    "wsd": "decay_epochs decay_shape final_factor",
    "plateau": "gamma patience threshold cooldown metric final_factor",
}
_NEEDED = {
    "step": "step_epochs",
    "multistep": "milestones_epochs",
    "restarts": "period_epochs",
    "wsd": "decay_epochs",
}


class Optimizer(Section):
    """The optimizer; a field that the optimizer does not have stays null."""

    name: Literal["sgd", "adam", "adamw", "rmsprop", "muon", "schedule_free_sgd", "schedule_free_adamw"] | str = Field(
        "sgd",
        description="the update rule; a class of torch, such as torch.optim:NAdam; timm.NAME; or "
        "package.module:factory, called with parameter groups, lr and the arguments",
    )
    arguments: dict[str, Any] = Field(
        {}, description="further arguments of an optimizer of torch, timm, schedulefree or your own: {eps: 1.0e-6}"
    )
    lr: Positive = Field(description="base learning rate, multiplied by the schedule")
    lr_per: int | None = Field(
        None, gt=0, description="batch size that lr is meant for; lr is scaled by data.batch_size / lr_per; null: no"
    )
    adamw_lr: Positive | None = Field(
        None, description="muon: learning rate of the weights that AdamW updates: all but hidden matrices"
    )
    weight_decay: NonNegative = Field(
        0.0, description="L2 penalty, decoupled from the gradient by adamw and muon, and others as they are"
    )
    momentum: Fraction | None = Field(None, description="sgd, rmsprop, muon, schedule_free_sgd")
    nesterov: bool | None = Field(None, description="sgd, muon")
    betas: tuple[Fraction, Fraction] | None = Field(
        None, description="adam, adamw, muon (its AdamW), schedule_free_adamw"
    )
    alpha: Fraction | None = Field(None, description="rmsprop: smoothing of the squared gradient")
    eps: Positive | None = Field(None, description="adam, adamw, rmsprop, muon (its AdamW), schedule_free_adamw")
    no_decay: Words = Field(
        (), description="weights without weight_decay: norm (of norm layers), bias, or names of weights or layers"
    )
    layer_decay: float | None = Field(
        None, gt=0, le=1, description="factor of the learning rate from each block to the one before; the head has 1"
    )
    lr_factors: dict[str, Positive] = Field(
        {}, description="factors of the learning rate by names of weights or layers, or backbone; the last one counts"
    )
    even_decay: bool = Field(
        default=False,
        description="divide the weight_decay of a weight by its learning rate factor, so that all decay equally fast",
    )

    @property
    def is_foreign(self) -> bool:
        """Whether it is an optimizer of torch by reference, of timm, or of the user."""
        return self.name not in _OPTIMIZERS

    @property
    def may_average(self) -> bool:
        """Whether it is schedule-free, or may be, as the user's own."""
        return self.name in SCHEDULE_FREE or is_reference(self.name)

    @model_validator(mode="after")
    def _fields_belong_to_the_rule(self) -> Self:
        if self.is_foreign and not is_reference(self.name) and not self.name.startswith(TIMM):
            raise ValueError(_unknown("optimizer.name", self.name, _OPTIMIZERS, "torch.optim:NAME", "timm.NAME", OWN))
        known = _OPTIMIZERS.get(self.name, "arguments").split()
        if self.arguments and "arguments" not in known:
            raise ValueError(
                f"optimizer.arguments={shown(self.arguments)} is not used by {self.name}; an optimizer by reference, "
                "such as torch.optim:AdamW, has arguments"
            )
        refuse_unused(self, {*_OF_ALL, *known, "arguments"}, "optimizer")
        if twice := [key for key in self.arguments if key in {"lr", "weight_decay", *known} - {"arguments"}]:
            raise ValueError(f"optimizer.arguments.{twice[0]} is optimizer.{twice[0]}; give it there")
        if self.nesterov and self.name == "sgd" and not self.momentum:
            raise ValueError("optimizer.nesterov needs optimizer.momentum above 0")
        if self.name == "muon" and self.adamw_lr is None and self.arguments.get("adjust_lr_fn") != "match_rms_adamw":
            raise ValueError(
                "optimizer.name=muon needs optimizer.adamw_lr, for the weights that are no hidden matrices; for "
                "example 0.001, or the same lr with optimizer.arguments={adjust_lr_fn: match_rms_adamw}"
            )
        return self

    @model_validator(mode="after")
    def _decay_has_a_use(self) -> Self:
        if self.even_decay and not (self.weight_decay and (self.lr_factors or self.layer_decay)):
            raise ValueError(
                "optimizer.even_decay needs a weight_decay, and lr_factors or layer_decay to compensate; remove it"
            )
        if self.no_decay and not self.weight_decay:
            raise ValueError("optimizer.no_decay is for exceptions from optimizer.weight_decay, which is 0; remove it")
        return self


class Schedule(Section):
    """The learning rate as a function of the step; a field that the schedule does not have stays null."""

    name: (
        Literal[
            "constant",
            "step",
            "multistep",
            "cosine",
            "onecycle",
            "triangle",
            "poly",
            "restarts",
            "wsd",
            "plateau",
        ]
        | str
    ) = Field(
        "constant",
        description="the curve; or package.module:name, a function of the step, or a class or object that is one",
    )
    arguments: dict[str, Any] = Field({}, description="keyword arguments of your own schedule, such as {power: 2}")
    warmup_epochs: NonNegative = Field(0.0, description="linear warm-up from near 0; not for onecycle and triangle")
    step_epochs: Positive | None = Field(None, description="step: epochs between two drops")
    milestones_epochs: tuple[Positive, ...] | None = Field(None, description="multistep: the epochs of the drops")
    gamma: Positive | None = Field(None, description="step, multistep, plateau: factor of a drop; 0.1 if null")
    first_factor: NonNegative | None = Field(None, description="triangle: first factor of the learning rate; 0 if null")
    final_factor: NonNegative | None = Field(
        None,
        description="cosine, triangle, poly, restarts, wsd: last factor of the learning rate; plateau: the smallest "
        "one; 0 if null",
    )
    pct_start: Fraction | None = Field(
        None, description="onecycle, triangle: share of the steps in which it rises; 0.3 if null"
    )
    div_factor: Positive | None = Field(None, description="onecycle: peak over first learning rate; 25 if null")
    final_div_factor: Positive | None = Field(None, description="onecycle: first over last learning rate; 1e4 if null")
    power: Positive | None = Field(None, description="poly: power of the share of steps that are left; 1 if null")
    period_epochs: Positive | None = Field(None, description="restarts: epochs of the first cosine")
    period_factor: int | None = Field(
        None, ge=1, description="restarts: length of each cosine over that of the one before; 1 if null"
    )
    decay_epochs: Positive | None = Field(None, description="wsd: epochs at the end in which it decays")
    decay_shape: Literal["linear", "cosine", "sqrt"] | None = Field(
        None, description="wsd: how it decays; sqrt: by the square root of the share of the decay; linear if null"
    )
    patience: int | None = Field(
        None, ge=0, description="plateau: evaluations without progress after which it still waits; 10 if null"
    )
    threshold: NonNegative | None = Field(
        None, description="plateau: relative change of the metric that is progress; 1e-4 if null"
    )
    cooldown: int | None = Field(
        None, ge=0, description="plateau: evaluations after a drop that do not count; 0 if null"
    )
    metric: str | None = Field(None, description="plateau: the metric of the validation that it follows; loss if null")

    @model_validator(mode="after")
    def _fields_belong_to_the_schedule(self) -> Self:
        is_own = is_reference(self.name)
        if not is_own and self.name not in _SCHEDULES:
            raise ValueError(_unknown("schedule.name", self.name, _SCHEDULES, OWN))
        if self.arguments and not is_own:
            raise ValueError(
                f"schedule.arguments={shown(self.arguments)} is for your own schedule, and schedule.name is {self.name}"
            )
        refuse_unused(self, {"name", "warmup_epochs", "arguments", *_SCHEDULES.get(self.name, "").split()}, "schedule")
        if self.name in {"onecycle", "triangle"} and self.warmup_epochs:
            raise ValueError(f"schedule.warmup_epochs is not for {self.name}, which has pct_start; leave it at 0")
        needed = _NEEDED.get(self.name)
        if needed and getattr(self, needed) is None:
            raise ValueError(f"schedule.name={self.name} needs schedule.{needed}")
        if self.milestones_epochs and list(self.milestones_epochs) != sorted(set(self.milestones_epochs)):
            raise ValueError("schedule.milestones_epochs must increase")
        if self.name == "plateau" and self.gamma is not None and self.gamma >= 1:
            raise ValueError(f"schedule.gamma={self.gamma:g} would not lower the learning rate; give less than 1")
        return self


def _unknown(key: str, name: str, known: Iterable[str], *others: str) -> str:
    hint = nearest(name, known, count=1)
    return f"{key}={shown(name)}: must be {joined([*known, *others])}{hint}"
