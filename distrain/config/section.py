"""Defines the base class of all sections of a recipe: frozen, and strict about keys and numbers."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from distrain.messages import joined, shown

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


def _read_words(value: object) -> object:
    """Accept a single word as a list of one."""
    return [value] if isinstance(value, str) and "," not in value else value


Words = Annotated[tuple[str, ...], BeforeValidator(_read_words)]


class Section(BaseModel):
    """A frozen part of a recipe that refuses unknown keys and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def refuse_unused(section: Section, known: set[str], title: str) -> None:
    """Raise `ValueError` that lists all fields set but not used, and says how to unset them."""
    name = str(getattr(section, "name", ""))
    given = {field: getattr(section, field) for field in type(section).model_fields}
    unused = {field: value for field, value in given.items() if field not in known and value is not None}
    if not unused:
        return
    listed = joined([f"{title}.{field}={shown(value)}" for field, value in unused.items()], last="and")
    if len(unused) == 1:
        (field,) = unused
        raise ValueError(f"{listed} is not used by {name}; --set {title}.{field}=null unsets it")
    required = [field for field, info in type(section).model_fields.items() if info.is_required()]
    whole = ", ".join(f"{field}: {shown(given[field])}" for field in ["name", *required])
    unset = " ".join(f"--set {title}.{field}=null" for field in unused)
    raise ValueError(f"{listed} are not used by {name}; write --set '{title}={{{whole}}}', or {unset}")
