"""The sections of a recipe that define optimizer, schedule, length of training and parallel strategy."""

import re
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from distrain.config.section import Fraction, NonNegative, Positive, Section, Words, refuse_unused
from distrain.messages import shown


class Optimizer(Section):
    """The optimizer, as in torch.optim; a field that the optimizer does not have stays null."""

    name: Literal["sgd", "adam", "adamw", "rmsprop"] = Field("sgd", description="the update rule")
    lr: Positive = Field(description="base learning rate, multiplied by the schedule")
    lr_per: int | None = Field(
        None, gt=0, description="batch size that lr is meant for; lr is scaled by data.batch_size / lr_per; null: no"
    )
    weight_decay: NonNegative = Field(0.0, description="L2 penalty, decoupled from the gradient by adamw")
    momentum: Fraction | None = Field(None, description="sgd, rmsprop")
    nesterov: bool | None = Field(None, description="sgd")
    betas: tuple[Fraction, Fraction] | None = Field(None, description="adam, adamw")
    alpha: Fraction | None = Field(None, description="rmsprop: smoothing of the squared gradient")
    eps: Positive | None = Field(None, description="adam, adamw, rmsprop")
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

    @model_validator(mode="after")
    def _fields_belong_to_the_rule(self) -> Self:
        known = {"sgd": "momentum nesterov", "adam": "betas eps", "adamw": "betas eps", "rmsprop": "momentum alpha eps"}
        every = {"name", "lr", "lr_per", "weight_decay", "no_decay", "layer_decay", "lr_factors", "even_decay"}
        refuse_unused(self, {*every, *known[self.name].split()}, "optimizer")
        if self.nesterov and not self.momentum:
            raise ValueError("optimizer.nesterov needs optimizer.momentum above 0")
        if self.even_decay and not (self.weight_decay and (self.lr_factors or self.layer_decay)):
            raise ValueError(
                "optimizer.even_decay needs a weight_decay, and lr_factors or layer_decay to compensate; remove it"
            )
        if self.no_decay and not self.weight_decay:
            raise ValueError("optimizer.no_decay is for exceptions from optimizer.weight_decay, which is 0; remove it")
        return self


class Schedule(Section):
    """The learning rate as a pure function of the step; a field that the schedule does not have stays null."""

    name: Literal["constant", "step", "multistep", "cosine", "onecycle", "triangle"] = Field(
        "constant", description="the curve"
    )
    warmup_epochs: NonNegative = Field(0.0, description="linear warm-up from near 0; not for onecycle and triangle")
    step_epochs: Positive | None = Field(None, description="step: epochs between two drops")
    milestones_epochs: tuple[Positive, ...] | None = Field(None, description="multistep: the epochs of the drops")
    gamma: Positive | None = Field(None, description="step, multistep: factor of a drop; 0.1 if null")
    first_factor: NonNegative | None = Field(None, description="triangle: first factor of the learning rate; 0 if null")
    final_factor: NonNegative | None = Field(
        None, description="cosine, triangle: last factor of the learning rate; 0 if null"
    )
    pct_start: Fraction | None = Field(
        None, description="onecycle, triangle: share of the steps in which it rises; 0.3 if null"
    )
    div_factor: Positive | None = Field(None, description="onecycle: peak over first learning rate; 25 if null")
    final_div_factor: Positive | None = Field(None, description="onecycle: first over last learning rate; 1e4 if null")

    @model_validator(mode="after")
    def _fields_belong_to_the_schedule(self) -> Self:
        known = {
            "constant": "",
            "step": "step_epochs gamma",
            "multistep": "milestones_epochs gamma",
            "cosine": "final_factor",
            "onecycle": "pct_start div_factor final_div_factor",
            "triangle": "first_factor pct_start final_factor",
        }
        refuse_unused(self, {"name", "warmup_epochs", *known[self.name].split()}, "schedule")
        if self.name in {"onecycle", "triangle"} and self.warmup_epochs:
            raise ValueError(f"schedule.warmup_epochs is not for {self.name}, which has pct_start; leave it at 0")
        needed = {"step": "step_epochs", "multistep": "milestones_epochs"}.get(self.name)
        if needed and getattr(self, needed) is None:
            raise ValueError(f"schedule.name={self.name} needs schedule.{needed}")
        if self.milestones_epochs and list(self.milestones_epochs) != sorted(set(self.milestones_epochs)):
            raise ValueError("schedule.milestones_epochs must increase")
        return self


def _read_micro_batch_size(value: object) -> object:
    if value is None or value == "auto" or (type(value) is int and value > 0):
        return value
    raise ValueError(
        f"{shown(value)} is not a number of samples above 0; auto finds one, null is data.batch_size / processes"
    )


def _read_minutes(value: object) -> object:
    """Accept a number of minutes, or hours, minutes and seconds as in `1h30m`."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?", value.replace(" ", ""))
    try:
        if found is None or not any(found.groups()):
            raise ValueError
        hours, minutes, seconds = (float(part or 0) for part in found.groups())
    except ValueError:
        raise ValueError(f"{shown(value)} is not a time; give minutes, or text such as 90s, 45m, 2h or 1h30m") from None
    return hours * 60 + minutes + seconds / 60


class Lookahead(Section):
    """Lookahead: slow weights that follow the trained ones, which are reset to them every few steps."""

    every_steps: int = Field(5, gt=0, description="steps between two synchronisations with the slow weights")
    decay: Fraction = Field(
        0.5, description="share of the slow weights that is kept at a synchronisation, at the end of training"
    )
    power: NonNegative = Field(
        0.0, description="that share grows with this power of the progress of training; 0: it is constant"
    )


class Train(Section):
    """How training runs, and for how long."""

    epochs: int = Field(gt=0, lt=2**31, description="passes over the training samples")
    max_steps: int | None = Field(
        None,
        gt=0,
        lt=2**63,
        description="limit on the optimizer steps; the schedule ends with it, while max_time, patience and target_loss "
        "end a run in the middle of its schedule",
    )
    max_time: Annotated[Positive | None, BeforeValidator(_read_minutes)] = Field(
        None, description="minutes of training over all attempts, or text such as 2h; then the run ends; null: no limit"
    )
    patience: int | None = Field(
        None, gt=0, description="end after this many evaluations without a new best one; null: never"
    )
    micro_batch_size: Annotated[int | Literal["auto"] | None, BeforeValidator(_read_micro_batch_size)] = Field(
        None, description="samples in one forward pass; null: batch / processes; auto: the most that fit in memory"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="the one seed of order, augmentation, weights and dropout")
    deterministic: bool = Field(default=True, description="use deterministic kernels where torch has them")
    exact: bool = Field(default=False, description="the same bits with any number of processes; needs deterministic")
    threads: int | None = Field(None, gt=0, description="CPU threads of a process; null: its share, 1 in exact mode")
    clip_norm: Positive | None = Field(None, description="largest 2-norm of the gradient; null: not clipped")
    ema_decay: Fraction | None = Field(
        None, description="decay of the moving average of the weights, which is evaluated in their place"
    )
    lookahead: Lookahead | None = Field(None, description="slow weights that follow the trained ones; null: none")
    max_rollbacks: int = Field(
        3, ge=0, description="how many times to roll back after a step that is not finite, and skip its batch"
    )
    detect_anomaly: bool = Field(default=False, description="slow: name the operation whose gradient is NaN")
    target_loss: Positive | None = Field(
        None,
        description="end when the mean training loss over an epoch's samples is below this, and fail if it never is; "
        "null: no target",
    )

    @model_validator(mode="after")
    def _exact_mode_does_not_depend_on_the_machine(self) -> Self:
        if self.exact and self.micro_batch_size == "auto":
            raise ValueError(
                "train.micro_batch_size=auto depends on the machine, and with train.exact the micro-batch size affects "
                "the result; give a number"
            )
        if self.exact and not self.deterministic:
            raise ValueError(
                "train.exact needs deterministic kernels; set train.deterministic=true, or remove train.exact"
            )
        return self


class Parallel(Section):
    """How several processes train together."""

    strategy: Literal["auto", "ddp", "dp", "fsdp", "none"] = Field(
        "auto",
        description="ddp; dp: one process for several GPUs; fsdp: sharded weights; auto: ddp, or dp for one process "
        "with several GPUs; on CPUs small networks use one flat all-reduce, which is faster than ddp",
    )
    sync_batchnorm: bool = Field(
        default=False, description="BatchNorm statistics over the samples of all GPUs; needs GPUs and ddp"
    )

    @model_validator(mode="after")
    def _sync_batchnorm_needs_ddp(self) -> Self:
        if self.sync_batchnorm and self.strategy not in {"auto", "ddp"}:
            raise ValueError(
                f"parallel.sync_batchnorm is for parallel.strategy=ddp, not {self.strategy}; choose one of the two"
            )
        return self
