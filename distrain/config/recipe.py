"""Defines the whole recipe: all sections, the rules between them, and the fields that determine the training."""

from functools import cached_property
from typing import Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from distrain.config.compute import Compute
from distrain.config.data import Augment, Data
from distrain.config.metrics import ALWAYS_MEASURED, METRICS
from distrain.config.model import Loss, Model
from distrain.config.optim import SCHEDULE_FREE, Optimizer, Schedule
from distrain.config.outputs import Checkpoint, Eval, Log
from distrain.config.parts import HookList
from distrain.config.section import Section
from distrain.config.task import AnyTask, Task
from distrain.config.task_rules import find_contradiction
from distrain.config.training import Parallel, Train
from distrain.config.user_code import is_reference
from distrain.messages import joined, nearest, shown


class Recipe(Section):
    """What is trained: everything that determines the result, and nothing about the machine it runs on."""

    name: str = Field(pattern=r"^\w[\w.-]*$", description="names the run directory")
    task: AnyTask = Field(default_factory=Task)
    data: Data
    augment: Augment = Field(default_factory=Augment)
    model: Model
    loss: Loss = Field(default_factory=Loss)
    optimizer: Optimizer
    schedule: Schedule = Field(default_factory=Schedule)
    train: Train
    parallel: Parallel = Field(default_factory=Parallel)
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="arithmetic of the forward pass, through autocast"
    )
    compute: Compute = Field(default_factory=Compute)
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    log: Log = Field(default_factory=Log)
    eval: Eval = Field(default_factory=Eval)
    hooks: HookList = Field(
        (), description="hooks of your own, package.module:Class, which see what happens and change nothing"
    )

    @model_validator(mode="after")
    def _exact_mode_has_its_own_strategy(self) -> Self:
        if self.train.exact and self.parallel.strategy in {"dp", "fsdp"}:
            raise ValueError(
                f"train.exact and parallel.strategy={self.parallel.strategy} exclude each other; choose one"
            )
        return self

    @model_validator(mode="after")
    def _exact_mode_has_its_own_arithmetic(self) -> Self:
        if self.train.exact and self.compute.compile != "none":
            raise ValueError(
                f"train.exact and compute.compile={self.compute.compile} exclude each other: the number of processes "
                f"would decide which micro-batches run compiled; choose one"
            )
        if self.train.exact and self.compute.tf32:
            raise ValueError("train.exact and compute.tf32 exclude each other; choose one")
        return self

    @model_validator(mode="after")
    def _schedule_free_averages_by_itself(self) -> Self:
        name, train = self.optimizer.name, self.train
        if train.batchnorm_steps is not None and train.swa_start_epochs is None and not self.optimizer.may_average:
            raise ValueError(
                f"train.batchnorm_steps is for train.swa_start_epochs and schedule-free optimizers, and not for {name}"
            )
        if name not in SCHEDULE_FREE:
            return self
        for key in ("ema_decay", "swa_start_epochs", "lookahead"):
            if getattr(train, key) is not None:
                raise ValueError(f"train.{key} and optimizer.name={name} each average the weights; remove one")
        if self.schedule.name != "constant":
            raise ValueError(
                f"optimizer.name={name} replaces a schedule by an average of the weights; "
                "--set 'schedule={name: constant}', which may have warmup_epochs"
            )
        return self

    @model_validator(mode="after")
    def _plateau_has_evaluations(self) -> Self:
        schedule = self.schedule
        if schedule.name != "plateau":
            return self
        if self.eval.every_epochs is None and self.eval.every_steps is None:
            raise ValueError("schedule.name=plateau follows the evaluations: set eval.every_epochs or eval.every_steps")
        metric = METRICS.get(schedule.metric or ALWAYS_MEASURED)
        if metric is None or not metric.is_number:
            names = [name for name, known in METRICS.items() if known.is_number]
            hint = nearest(schedule.metric or "", names, count=1) or f"; use {joined(names)}"
            raise ValueError(f"schedule.metric={shown(schedule.metric)} is not a metric with one number{hint}")
        return self

    @model_validator(mode="after")
    def _everything_goes_with_the_task(self) -> Self:
        fault = find_contradiction(
            self.task,
            data=self.data,
            augment=self.augment,
            loss=self.loss,
            train=self.train,
            compute=self.compute,
            evaluation=self.eval,
        )
        if fault is not None:
            raise ValueError(fault)
        return self

    @property
    def has_tf32(self) -> bool:
        """Whether GPUs round the inputs of float32 convolutions and matrix products."""
        if self.compute.tf32 is None:
            return not self.train.exact  # TF32 is deterministic
        return self.compute.tf32

    @property
    def base_lr(self) -> float:
        """The learning rate that the schedule multiplies.

        With `optimizer.lr_per` it scales with the batch by the linear scaling rule: Goyal et al., "Accurate, large
        minibatch SGD: training ImageNet in 1 hour", 2017.
        """
        per = self.optimizer.lr_per
        return self.optimizer.lr if per is None else self.optimizer.lr * self.data.batch_size / per

    @property
    def references(self) -> tuple[str, ...]:
        """The names of the user's code in the recipe."""
        augment = (*self.augment.train, *self.augment.eval, *self.augment.batch)
        parts = (*augment, *self.eval.own_metrics, *self.log.loggers, *self.hooks)
        sources = [part.source for part in self.data.parts]
        names = (
            self.task.name,
            self.model.name,
            self.loss.name,
            self.optimizer.name,
            self.schedule.name,
            *sources,
            self.data.sampling,
        )
        names += tuple(part.name for part in parts)
        return tuple(name for name in names if is_reference(name))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The fields that determine the training; a run resumes only with these unchanged."""
        dump = self.model_dump(
            mode="json",
            exclude={
                "log": True,
                "checkpoint": True,
                "hooks": True,
                "compute": True,
                "parallel": {"strategy"},
                "eval": {"batch_size"},
                "task": {"teacher", "teacher_weights"},  # a resume compares the digest of its weights
            },
        )
        for field in ("path", "num_workers", "loader", "cache"):
            del dump["data"][field]
        for part in dump["data"]["more"]:
            del part["path"]
        return dump

    def to_yaml(self) -> str:
        """Return the resolved recipe as YAML that `load_recipe` reads back to an equal recipe."""
        dump = self.model_dump(mode="json")
        for split in ("train", "eval", "batch"):
            dump["augment"][split] = [part.short for part in getattr(self.augment, split)]
        if self.eval.metrics is not None:
            dump["eval"]["metrics"] = [part.short for part in self.eval.metrics]
        dump["log"]["loggers"] = [part.short for part in self.log.loggers]
        dump["hooks"] = [part.short for part in self.hooks]
        return yaml.safe_dump(dump, sort_keys=False, allow_unicode=True)
