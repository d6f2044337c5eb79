"""The section of a recipe that says what is learned."""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from distrain.config.section import Section, refuse_unused
from distrain.config.user_code import is_reference
from distrain.messages import joined, nearest, shown

CLASSIFICATION = "classification"
_FIELDS = {CLASSIFICATION: ""}


class Task(Section):
    """What is learned; a field that the task does not have stays null."""

    name: str = Field(
        CLASSIFICATION,
        description="classification (a class, labels or values: data.target), or package.module:Task of your own; "
        "`task: NAME` is short for it",
    )
    arguments: dict[str, Any] = Field({}, description="keyword arguments of your own task")

    @model_validator(mode="after")
    def _fields_belong_to_the_task(self) -> Self:
        if not self.is_own and self.name not in _FIELDS:
            hint = nearest(self.name, _FIELDS, count=1) or f"; use {joined(list(_FIELDS))}, or package.module:Task"
            raise ValueError(f"task.name={shown(self.name)}: unknown task{hint}")
        refuse_unused(self, {"name", "arguments", *_FIELDS.get(self.name, "").split()}, "task")
        if self.arguments and not self.is_own:
            raise ValueError(f"task.arguments are for a task of your own, and task.name is {self.name}; remove them")
        return self

    @property
    def is_own(self) -> bool:
        """Whether the task is the user's code."""
        return is_reference(self.name)


def _read_task(value: object) -> object:
    """Accept a name alone."""
    return {"name": value} if isinstance(value, str) else value


AnyTask = Annotated[Task, BeforeValidator(_read_task)]
