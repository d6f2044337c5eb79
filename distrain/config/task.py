"""The section of a recipe that says what is learned: from targets, a teacher, masks, or two views of an image."""

from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from distrain.config.metrics import Measured, Target
from distrain.config.section import NonNegative, Positive, Section, refuse_unused
from distrain.config.user_code import is_reference
from distrain.messages import joined, nearest, shown

CLASSIFICATION, DISTILLATION = "classification", "distillation"
SEGMENTATION, SELF_SUPERVISED = "segmentation", "self-supervised"
VIEWS = 2  # of an image, which self-supervised training compares
DIMENSIONS = 128  # of the space in which views are compared
TIMM = "timm."  # how the name of a teacher from timm begins

_FIELDS = {
    CLASSIFICATION: "",
    DISTILLATION: "teacher teacher_weights logit_weight temperature feature_weight",
    SEGMENTATION: "",
    SELF_SUPERVISED: "temperature dimensions",
}


class Task(Section):
    """What is learned; a field that the task does not have stays null."""

    name: str = Field(
        CLASSIFICATION,
        description="classification (a class, labels or values: data.target), distillation, segmentation, "
        "self-supervised, or package.module:Task of your own; `task: NAME` is short for it",
    )
    arguments: dict[str, Any] = Field({}, description="keyword arguments of your own task")
    teacher: str | None = Field(
        None,
        description="distillation: a bundle, a run (its best checkpoint, or `RUN last`), a checkpoint, or timm.NAME",
    )
    teacher_weights: str | None = Field(
        None, description="distillation: weights file of a teacher from timm; null: timm's own, downloaded once"
    )
    logit_weight: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None,
        description="distillation: share of the teacher's outputs in the loss, the labels have the rest; null: 0.9",
    )
    temperature: Positive | None = Field(
        None, description="distillation: softens the outputs of both, null: 4; self-supervised: sharpens, null: 0.2"
    )
    feature_weight: NonNegative | None = Field(
        None, description="distillation: weight of the distance to the features that enter the teacher's head; null: 0"
    )
    dimensions: int | None = Field(
        None, gt=0, description=f"self-supervised: outputs, by which views are compared; null: {DIMENSIONS}"
    )

    @model_validator(mode="after")
    def _fields_belong_to_the_task(self) -> Self:
        if not is_reference(self.name) and self.name not in _FIELDS:
            hint = nearest(self.name, _FIELDS, count=1) or f"; use {joined(list(_FIELDS))}, or package.module:Task"
            raise ValueError(f"task.name={shown(self.name)}: unknown task{hint}")
        refuse_unused(self, {"name", "arguments", *_FIELDS.get(self.name, "").split()}, "task")
        if self.arguments and not self.is_own:
            raise ValueError(f"task.arguments are for a task of your own, and task.name is {self.name}; remove them")
        if self.name == DISTILLATION and self.teacher is None:
            raise ValueError("task.name=distillation needs task.teacher: a bundle, a run, or timm.NAME")
        if self.teacher_weights is not None and not str(self.teacher).startswith(TIMM):
            raise ValueError(
                f"task.teacher_weights is for a teacher from timm, and task.teacher is {self.teacher}; remove it"
            )
        if self.logit_weight == 0 and not self.feature_weight:
            raise ValueError("task.logit_weight=0 needs task.feature_weight above 0: else nothing is distilled")
        return self

    @property
    def is_own(self) -> bool:
        """Whether the task is the user's code."""
        return is_reference(self.name)

    def outputs(self, classes: Sequence[str]) -> Sequence[str]:
        """Return the names of the network's outputs, for data that has `classes`."""
        if self.name != SELF_SUPERVISED:
            return classes
        return [f"dimension {number}" for number in range(self.dimensions or DIMENSIONS)]

    def measures(self, target: Target) -> Measured:
        """Return what evaluations compare, for data with such targets."""
        return "views" if self.name == SELF_SUPERVISED else target

    def predicts(self, target: Target) -> Target:
        """Return what the network's outputs are, for data with such targets."""
        return "values" if self.name == SELF_SUPERVISED else target


def _read_task(value: object) -> object:
    """Accept a name alone."""
    return {"name": value} if isinstance(value, str) else value


AnyTask = Annotated[Task, BeforeValidator(_read_task)]
