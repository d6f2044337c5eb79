"""Defines the parts that a recipe lists by name: transforms, metrics, loggers and hooks, each with its arguments.

A part is distrain's or a library's own, or the user's, as `package.module:name`; it is written `Name`,
`Name: {argument: value}`, or `{name: Name, arguments: {argument: value}}`. `user_code.make_part` makes the user's ones.
"""

import re
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from distrain.config.section import Section
from distrain.config.user_code import is_reference
from distrain.messages import shown

TORCHMETRICS = "torchmetrics."
_RECORDED_NAME = re.compile(r"\w[\w.-]*")


class Part(Section):
    """A part by its name, or package.module:name, and the arguments of its factory."""

    noun: ClassVar[str] = "part"

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)

    @property
    def short(self) -> Any:
        """The part as it is written in a recipe."""
        return {self.name: self.arguments}


class Transform(Part):
    """One transform of torchvision.transforms.v2, by its class name, or package.module:name, and its arguments."""

    noun: ClassVar[str] = "transform"


class MetricPart(Part):
    """One metric: distrain's, torchmetrics.NAME, or package.module:factory, and the arguments of the last two."""

    noun: ClassVar[str] = "metric"

    recorded_as: str | None = None  # val/NAME; null: the last part of `name`
    higher_is_better: bool | None = None  # null: as the metric itself says

    @property
    def short(self) -> Any:
        """The metric as it is written in a recipe."""
        if self.recorded_as is None and self.higher_is_better is None:
            return {self.name: self.arguments} if self.arguments else self.name
        return self.model_dump(mode="json")

    @property
    def is_own(self) -> bool:
        """Whether it is the user's or torchmetrics', not one of distrain's."""
        return is_reference(self.name) or self.name.startswith(TORCHMETRICS)

    @property
    def key(self) -> str:
        """The name under which it is recorded, after `val/`."""
        return self.recorded_as or re.split(r"[.:]", self.name)[-1]

    @model_validator(mode="after")
    def _fields_are_for_own_metrics(self) -> Self:
        for field in ("arguments", "recorded_as", "higher_is_better"):
            if not self.is_own and (value := getattr(self, field)) not in (None, {}):
                raise ValueError(
                    f"eval.metrics: {field}={shown(value)} is for torchmetrics.NAME and package.module:factory, and "
                    f"{shown(self.name)} is neither; remove it"
                )
        if self.is_own and not _RECORDED_NAME.fullmatch(self.key):
            raise ValueError(
                f"eval.metrics: recorded_as={shown(self.key)} must have letters, digits, dots, dashes and underscores"
            )
        return self

    @model_serializer(mode="wrap")
    def _write(self, handler: SerializerFunctionWrapHandler) -> Any:
        """Write one of distrain's own as its name alone."""
        return handler(self) if self.is_own else self.name


class OwnPart(Part):
    """A part that only the user can have: package.module:Class, and its arguments."""

    @model_validator(mode="after")
    def _is_a_reference(self) -> Self:
        if not is_reference(self.name):
            raise ValueError(f"{shown(self.name)} names no code; a {self.noun} is written package.module:Class")
        return self


class LoggerPart(OwnPart):
    """One logger of the user's."""

    noun: ClassVar[str] = "logger"


class HookPart(OwnPart):
    """One hook."""

    noun: ClassVar[str] = "hook"


def _reader(kind: type[Part]) -> BeforeValidator:
    def read(value: object) -> object:
        if isinstance(value, kind):
            return value
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and isinstance(value.get("name"), str):
            return value
        if isinstance(value, dict) and len(value) == 1:
            (name, arguments), *_ = value.items()
            if isinstance(arguments, dict) or arguments is None:
                return {"name": name, "arguments": arguments or {}}
        raise ValueError(f"a {kind.noun} is written `Name` or `Name: {{argument: value}}`")

    return BeforeValidator(read)


def _read_list(value: object) -> object:
    """Accept a single part as a list of one."""
    return [value] if isinstance(value, str) and "," not in value else value


TransformList = tuple[Annotated[Transform, _reader(Transform)], ...]
MetricList = Annotated[tuple[Annotated[MetricPart, _reader(MetricPart)], ...], BeforeValidator(_read_list)]
LoggerList = tuple[Annotated[LoggerPart, _reader(LoggerPart)], ...]
HookList = tuple[Annotated[HookPart, _reader(HookPart)], ...]
