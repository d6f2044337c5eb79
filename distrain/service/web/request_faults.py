"""Turns FastAPI's errors in a request into plain sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

from distrain.config.validation import must_be
from distrain.messages import escape_control_characters, shown

_NOT_AN_OBJECT = {"model_attributes_type", "model_type", "dict_type"}


def describe_faults(faults: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence for each error of `RequestValidationError.errors()`, with semicolons between them.

    A key that the request does not have comes alone: other faults may follow from it.
    """
    unknown = [fault for fault in faults if fault["type"] == "extra_forbidden"]
    return "; ".join(dict.fromkeys(map(_describe, unknown or faults)))


def _describe(fault: Mapping[str, Any]) -> str:
    kind, (place, *path) = fault["type"], fault["loc"]
    name = escape_control_characters(".".join(map(str, path)))
    if kind == "json_invalid":
        reason = fault["ctx"]["error"].removesuffix(" at")  # json's own message may end so
        return f"the body is not valid JSON: {reason} at character {path[0]}"
    if kind == "value_error":  # one of our own
        return f"{name}: {fault['ctx']['error']}" if name else str(fault["ctx"]["error"])
    if not path and kind == "missing":
        return "the request has no body; send a JSON object"
    if not path and kind in _NOT_AN_OBJECT:
        return "the body is not a JSON object; send one, with `Content-Type: application/json`"
    if kind == "missing":
        return f"{name} is missing"
    if kind == "extra_forbidden":
        return f"a request like this has no key {name}; /docs lists its keys"
    if kind == "string_pattern_mismatch":
        return f"{name}={shown(fault['input'])}: must match {fault['ctx']['pattern']}"
    expected = must_be(fault)  # type: ignore[arg-type]  # FastAPI gives the dictionaries of pydantic
    return f"{name or f'the {place}'}={shown(fault['input'])}: must be {expected}"
