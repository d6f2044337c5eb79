"""The sections of a recipe that define length of training, clipping, averages and parallel strategy."""

import re
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from distrain.config.section import Fraction, NonNegative, Positive, Section
from distrain.messages import joined, shown


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
    clip_value: Positive | None = Field(
        None, description="largest absolute value in the gradient; larger ones are set to it; null: not clipped"
    )
    agc: Positive | None = Field(
        None,
        description="adaptive gradient clipping: largest norm of the gradient of an output's weights over the norm of "
        "these weights, such as 0.01; heads are not clipped; null: not clipped",
    )
    ema_decay: Fraction | None = Field(
        None, description="decay of the moving average of the weights, which is evaluated in their place"
    )
    ema_warmup: bool | Positive | None = Field(
        None,
        description="the decay in step n is at most 1 - (1 + n)^-power, of this power; true: 2/3, as in timm; false: "
        "no warm-up; null: at most (1 + n) / (10 + n)",
    )
    swa_start_epochs: NonNegative | None = Field(
        None,
        description="epochs after which stochastic weight averaging begins: the mean of the weights, which is then "
        "evaluated in their place; null: no averaging",
    )
    swa_every_steps: int | None = Field(
        None, gt=0, description="swa_start_epochs: steps between two weights in the mean; null: an epoch"
    )
    batchnorm_steps: int | None = Field(
        None,
        ge=0,
        description="swa_start_epochs, schedule_free: steps whose samples give the BatchNorm statistics of the weights "
        "that are evaluated; null: those of an epoch; 0: the statistics of training",
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
    def _there_is_one_clipping(self) -> Self:
        given = [f"train.{key}" for key in ("clip_norm", "clip_value", "agc") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"{joined(given, last='and')} each clip the gradient; choose one")
        return self

    @model_validator(mode="after")
    def _there_is_one_average(self) -> Self:
        if self.ema_warmup is not None and self.ema_decay is None:
            raise ValueError("train.ema_warmup is for train.ema_decay, which is null; set it, or remove ema_warmup")
        if self.swa_start_epochs is None:
            if self.swa_every_steps is not None:
                raise ValueError("train.swa_every_steps is for train.swa_start_epochs, which is null; set it")
            return self
        if self.ema_decay is not None:
            raise ValueError("train.ema_decay and train.swa_start_epochs each average the weights; choose one")
        if self.swa_start_epochs >= self.epochs:
            raise ValueError(
                f"train.swa_start_epochs={self.swa_start_epochs:g} is not before the end, train.epochs={self.epochs}; "
                "lower it"
            )
        return self

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
