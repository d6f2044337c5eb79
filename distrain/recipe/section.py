"""Owns what every section of a recipe is: frozen, and strict about keys and numbers."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """A frozen part of a recipe that refuses keys it does not know and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def refuse_unused(section: Section, known: set[str], title: str) -> None:
    """Raise `ValueError` for a field that is given though nothing would read it."""
    for field in type(section).model_fields:
        value = getattr(section, field)
        if field not in known and value is not None:
            name = getattr(section, "name", "")
            raise ValueError(f"{title}.{field}={value} is not used by {name}; --set {title}.{field}=null unsets it")
