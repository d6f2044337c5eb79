"""Turns pydantic's errors in a recipe, a launch profile or a bundle into one plain sentence."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from distrain.messages import did_you_mean, escape_control_characters, joined, nearest, shown

Path = tuple[int | str, ...]

# What a value must be, by pydantic's error type; the braces are filled from the context of the error.
_MUST_BE = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "string_unicode": "text",
    "string_too_long": "text no longer than {max_length}",
    "string_too_short": "text no shorter than {min_length}",
    "string_pattern_mismatch": "a name of letters, digits, dots, dashes and underscores that begins with a letter or a "
    "digit",
    "none_required": "null",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping, such as {{key: value}}",
    "model_type": "a section of keys",
    "model_attributes_type": "a section of keys",
    "too_long": "a list of {max_length} at most",
    "too_short": "a list of {min_length} or more",
}
_SYNONYMS = {"gpu": "cuda"}  # what others call a value
_AS_BOOLEAN = "YAML reads on, off, yes and no as true and false: quote them"


def describe(error: ValidationError, model: type[BaseModel], tree: Any, *, noun: str) -> str:
    """Return what is wrong with `tree`, in which `model` found the error: one sentence about the first fault.

    `noun` is the name of the tree in the sentence, such as `the recipe`. An unknown key comes first, because other
    faults may follow from it.
    """
    faults = error.errors(include_url=False)
    fault = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    path = _path(fault["loc"], tree)
    if fault["type"] == "extra_forbidden":
        return _unknown_key(path, fault["input"], model, noun=noun)
    if fault["type"] == "missing" and not isinstance(fault["loc"][-1], int):
        key = _dotted((*path, fault["loc"][-1]))
        return f"{noun} is missing {key}, which has no default"
    if fault["type"] == "value_error":  # one of our own, which may name the key itself
        reason = escape_control_characters(str(fault["ctx"]["error"]))
        is_named = "." in reason.split()[0] and reason.partition(".")[0] in model.model_fields
        return reason if is_named or not path else f"{_dotted(path)}: {reason}"
    if not path and not isinstance(tree, Mapping):
        return f"{noun} is {shown(tree)}, not a mapping of keys to values"
    if fault["loc"][-1] == "[key]" or fault["type"] == "invalid_key":
        section = fault["loc"][: -2 if fault["loc"][-1] == "[key]" else -1]
        key = _dotted(_path(section, tree))
        return f"{key or noun} has a key {shown(fault['input'])}, which must be text; quote it"
    same = [other for other in faults if _path(other["loc"], tree) == path]
    return f"{_dotted(path)}={shown(_at(path, tree))}: must be {_expected(path, same, model, tree)}"


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a model: each section, then its keys."""
    for key, info in model.model_fields.items():
        yield f"{prefix}{key}"
        if (inner := _model_in(info.annotation)) is not None:
            yield from keys_of(inner, f"{prefix}{key}.")


def takes_text(model: type[BaseModel], parts: Sequence[str]) -> bool:
    """Return whether the value at a dotted key is text, or null, and nothing else; the places of lists are numbers."""
    *parents, leaf = (int(part) if part.isdecimal() else part for part in parts)
    section = _model_at(model, tuple(parents))
    info = None if section is None else section.model_fields.get(str(leaf))
    return info is not None and _is_text(info.annotation)


def similar_keys(key: str, known: Sequence[str]) -> list[str]:
    """Return up to three of the known dotted keys that `key` was probably meant to be.

    In this order: keys with the same last name elsewhere, similar names in the same section, similar last names
    elsewhere, and similar whole keys.
    """
    section, _, leaf = key.rpartition(".")
    leaves: dict[str, list[str]] = {}
    for other in known:
        leaves.setdefault(other.rpartition(".")[2], []).append(other)
    if leaf in leaves:
        return leaves[leaf][:3]
    siblings = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == section]
    if near := difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.5 if section else 0.6):
        return [f"{section}.{near[0]}" if section else near[0]]
    if near := difflib.get_close_matches(leaf, list(leaves), n=1, cutoff=0.7):
        return leaves[near[0]][:3]
    return difflib.get_close_matches(key, known, n=1, cutoff=0.7)


def _unknown_key(path: Path, value: Any, model: type[BaseModel], *, noun: str) -> str:
    known = list(keys_of(model))
    *parents, _ = path
    inner = _model_at(model, tuple(parents))
    if inner is None or any(isinstance(part, int) for part in path):  # in a list or a mapping of sections
        names = [] if inner is None else list(inner.model_fields)
        near = [_dotted((*parents, name)) for name in similar_keys(str(path[-1]), names)]
        return f"{noun} has no key {_dotted(path)}{did_you_mean(near)}"
    key = _dotted(path)
    if isinstance(value, Mapping) and len(value) == 1:
        whole = f"{key}.{next(iter(value))}"
        if near := difflib.get_close_matches(whole, known, n=1, cutoff=0.8):  # the section is misspelt
            return f"{noun} has no key {whole}{did_you_mean(near)}"
    return f"{noun} has no key {key}{did_you_mean(similar_keys(key, known))}"


def _expected(path: Path, faults: list[ErrorDetails], model: type[BaseModel], tree: Any) -> str:
    """Return what the value at a path must be according to all of pydantic's errors there, and a hint."""
    fault, value = faults[0], _at(path, tree)
    if fault["type"] == "missing":  # of a list of a fixed length
        return f"a list of {len(value) + len(faults)}"
    expected = joined(list(dict.fromkeys(must_be(one) for one in faults)))
    hint = ""
    if fault["type"] == "literal_error":
        options = re.findall(r"'([^']*)'", fault["ctx"]["expected"])
        hint = f"; {_AS_BOOLEAN}" if isinstance(value, bool) else _nearest_value(str(value), options)
    elif fault["type"] == "string_type" and isinstance(value, bool):
        hint = f"; {_AS_BOOLEAN}"
    elif fault["type"] == "string_type" and isinstance(value, Mapping):
        hint = "; quote what ends in a colon"
    elif fault["type"] == "string_type" and isinstance(value, int | float):
        hint = f'; quote it: "{value}"'
    elif fault["type"] == "string_too_short":
        hint = '; quote a character that means something else in YAML: "|"'
    elif fault["type"] in {"tuple_type", "list_type"} and isinstance(value, str | int | float):
        hint = f": [{shown(value)}]"
    elif fault["type"].startswith("model_") and isinstance(value, str):
        section = _model_at(model, path)
        hint = (
            f"; did you mean {_dotted(path)}.name={shown(value)}?" if section and "name" in section.model_fields else ""
        )
    return f"{expected}{hint}"


def _nearest_value(value: str, options: list[str]) -> str:
    synonym = _SYNONYMS.get(value.lower())
    return did_you_mean([synonym]) if synonym in options else nearest(value, options, count=1)


def must_be(fault: ErrorDetails) -> str:
    """Return what a value must be according to one of pydantic's errors, such as `a whole number`."""
    template = _MUST_BE.get(fault["type"], "another value")
    context = {name: f"{v:g}" if isinstance(v, float) else str(v) for name, v in fault.get("ctx", {}).items()}
    return template.format_map(context).replace("'", "")


def _path(location: Path, tree: Any) -> Path:
    """Return the part of an error's location that exists in the tree: pydantic appends the alternatives of a union."""
    found: list[int | str] = []
    node = tree
    for part in location:
        known = node if isinstance(node, Mapping) else range(len(node)) if isinstance(node, list | tuple) else ()
        if part not in known:
            break
        node = node[part]
        found.append(part)
    return tuple(found)


def _at(path: Path, tree: Any) -> Any:
    for part in path:
        tree = tree[part]
    return tree


def _dotted(path: Path) -> str:
    return escape_control_characters(".".join(str(part) for part in path))


def _model_at(model: type[BaseModel], path: Path) -> type[BaseModel] | None:
    """Return the section at a path of keys, which may lead through a list of sections."""
    found: type[BaseModel] | None = model
    for part in path:
        if isinstance(part, int):
            continue
        info = None if found is None else found.model_fields.get(part)
        found = None if info is None else _model_in(info.annotation, in_lists=True)
    return found


def _model_in(annotation: Any, *, in_lists: bool = False) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if not in_lists and getattr(annotation, "__origin__", None) is tuple:
        return None
    return next((found for part in get_args(annotation) if (found := _model_in(part, in_lists=in_lists))), None)


def _is_text(annotation: Any) -> bool:
    if annotation is str:
        return True
    if (origin := get_origin(annotation)) is Literal:
        return all(isinstance(option, str) for option in get_args(annotation))
    if origin is Annotated:
        return _is_text(get_args(annotation)[0])
    return origin in {Union, UnionType} and all(part is NoneType or _is_text(part) for part in get_args(annotation))
