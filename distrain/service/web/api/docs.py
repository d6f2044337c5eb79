"""Shows the description of the REST interface as a page that needs nothing from outside."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from distrain.service.web.api.description import METHODS
from distrain.service.web.rendering import render

_REFERENCE = "#/components/schemas/"
_EXAMPLES = {"name": "RUN", "runs": "RUN,RUN"}  # of parameters without a default

router = APIRouter()

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Field:
    """A parameter, or a member of an object."""

    name: str
    place: str  # path, query or header; empty for a member
    type: str
    is_required: bool
    default: str | None
    description: str


@dataclass(frozen=True)
class Answer:
    """What may come back."""

    status: str
    description: str
    media: str
    type: str


@dataclass(frozen=True)
class Operation:
    """One address with one method."""

    id: str
    tag: str
    method: str
    path: str
    summary: str
    description: str
    parameters: list[Field]
    body: str | None  # the type of the body
    answers: list[Answer]
    curl: str


@dataclass(frozen=True)
class Object:
    """An object of a body or an answer."""

    name: str
    description: str
    fields: list[Field]


@router.get("/docs")
def show_docs(request: Request) -> HTMLResponse:
    """Show all addresses with their parameters, bodies and answers."""
    document = request.app.openapi()
    operations = read_operations(document, base=str(request.base_url).rstrip("/"))
    tags = {tag["name"]: [one for one in operations if one.tag == tag["name"]] for tag in document["tags"]}
    return render(request, "docs.html", document=document, operations=tags, objects=read_objects(document))


def read_operations(document: Schema, *, base: str) -> list[Operation]:
    """Return the operations of an OpenAPI document; `base` is the address of the server in examples."""
    return [
        _read_operation(document, path, method, found, base)
        for path, methods in document["paths"].items()
        for method, found in methods.items()
        if method in METHODS
    ]


def read_objects(document: Schema) -> list[Object]:
    """Return the objects that an OpenAPI document names."""
    return [
        Object(name, schema.get("description", ""), _read_fields(schema))
        for name, schema in sorted(document["components"]["schemas"].items())
        if schema.get("type") == "object"
    ]


def describe_type(schema: Schema) -> str:
    """Return the type of a JSON schema as text."""
    if "$ref" in schema:
        return str(schema["$ref"]).removeprefix(_REFERENCE)
    if options := schema.get("anyOf"):
        return " or ".join(describe_type(option) for option in options)
    if "enum" in schema or "const" in schema:
        return " or ".join(json.dumps(value) for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {describe_type(schema.get('items', {}))}"
    if schema.get("type") == "object" and isinstance(values := schema.get("additionalProperties"), dict):
        return f"object with values of {describe_type(values)}"
    return str(schema.get("type", "any value"))


def _read_operation(document: Schema, path: str, method: str, found: Schema, base: str) -> Operation:
    parameters = [
        Field(
            one["name"],
            one["in"],
            _with_limits(one["schema"]),
            one.get("required", False),
            _shown_default(one["schema"]),
            one.get("description", one["schema"].get("description", "")),
        )
        for one in found.get("parameters", [])
    ]
    body = _schema_of(found.get("requestBody", {}))
    answers = [_read_answer(status, answer) for status, answer in found["responses"].items()]
    example = None if body is None else _example(document, body)
    return Operation(
        id=found["operationId"],
        tag=found["tags"][0],
        method=method.upper(),
        path=path,
        summary=found["summary"],
        description=found.get("description", found["summary"]),
        parameters=parameters,
        body=None if body is None else describe_type(body),
        answers=answers,
        curl=_curl(base, method.upper(), path, parameters, example),
    )


def _read_answer(status: str, answer: Schema) -> Answer:
    contents: dict[str, Schema] = answer.get("content", {})
    media, content = next(iter(contents.items()), ("", {}))
    return Answer(status, answer["description"], media, describe_type(content.get("schema", {})) if media else "")


def _read_fields(schema: Schema) -> list[Field]:
    required = schema.get("required", [])
    return [
        Field(name, "", _with_limits(one), name in required, _shown_default(one), one.get("description", ""))
        for name, one in schema.get("properties", {}).items()
    ]


def _with_limits(schema: Schema) -> str:
    limits = [f"{words} {schema[key]}" for key, words in (("minimum", "from"), ("maximum", "to")) if key in schema]
    return " ".join([describe_type(schema), *limits])


def _shown_default(schema: Schema) -> str | None:
    return json.dumps(schema["default"]) if schema.get("default") not in (None, [], {}) else None


def _schema_of(body: Schema) -> Schema | None:
    content = body.get("content", {}).get("application/json")
    return None if content is None else content["schema"]


def _example(document: Schema, schema: Schema) -> Any:
    """Return the first example of a body; an empty object where there is none."""
    found = document["components"]["schemas"].get(describe_type(schema), schema)
    return next(iter(found.get("examples", [])), {})


def _curl(base: str, method: str, path: str, parameters: list[Field], example: Any) -> str:
    needed = [one.name for one in parameters if one.place == "query" and one.is_required]
    query = "&".join(f"{name}={_EXAMPLES.get(name, name.upper())}" for name in needed)
    for one in parameters:
        path = path.replace(f"{{{one.name}}}", _EXAMPLES.get(one.name, one.name.upper()))
    words = ["curl"] + ([] if method == "GET" else ["-X", method])
    words += ["-H", '"Authorization: Bearer $(cat runs/.serve/token)"']
    if example is not None:
        words += ["--json", shlex.quote(json.dumps(example))]
    address = f"{base}{path}{f'?{query}' if query else ''}"
    return " ".join([*words, shlex.quote(address)])
