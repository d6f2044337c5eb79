"""Lists all fields of a recipe with type, default and description."""

from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from distrain.config.data import Sizes
from distrain.config.parts import Part
from distrain.config.recipe import Recipe
from distrain.config.section import Section


def fields(section: type[Section] = Recipe, prefix: str = "") -> list[tuple[str, str, str, str]]:
    """Return (key, type, default, description) of every field that --set can change, in the order of the recipe."""
    rows: list[tuple[str, str, str, str]] = []
    for key, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            rows += fields(info.annotation, f"{prefix}{key}.")
            continue
        kind = _type_text(info.annotation)
        if info.is_required():
            default = "required"
        elif isinstance(info.default, tuple):
            default = "[]"
        elif info.default_factory is dict:
            default = "{}"
        else:
            default = yaml.safe_dump(info.default).split("\n")[0]
        rows.append((f"{prefix}{key}", kind, default, info.description or ""))
    return rows


def _type_text(annotation: Any) -> str:
    """Return the name of a type in YAML terms, such as `number or null`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation == Sizes:
        return "list of [epoch, pixels]"
    if origin is Annotated:
        return _type_text(arguments[0])
    if origin is Literal:
        return ", ".join(str(choice) for choice in arguments)
    if origin is dict:
        return "mapping" if arguments[1] is Any else f"mapping to {_type_text(arguments[1])}s"
    if origin is tuple:
        kind = _type_text(arguments[0])
        return f"list of {kind}" if kind.startswith("{") else f"list of {kind}s"
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation.noun
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return f"{{{', '.join(annotation.model_fields)}}}"
    if origin is UnionType or origin is Union:
        return " or ".join(_type_text(choice) for choice in arguments)
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", NoneType: "null"}
    return names[annotation]
