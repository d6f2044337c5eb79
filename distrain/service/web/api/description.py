"""Describes the REST interface: the OpenAPI document, in which every error is a problem."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from distrain.service.web.api.models import Problem
from distrain.service.web.problems import MEDIA_TYPE

VERSION = "1"
METHODS = {"get", "put", "post", "delete", "patch"}
_ALWAYS = {
    HTTPStatus.BAD_REQUEST: "The request cannot be read",
    HTTPStatus.UNAUTHORIZED: "The token or the session is missing, wrong or no longer valid",
    HTTPStatus.FORBIDDEN: "The request comes from another site, without its CSRF token, or may not do this",
    HTTPStatus.UNPROCESSABLE_ENTITY: "A parameter or the body is not valid",
    HTTPStatus.REQUEST_TIMEOUT: "The body did not arrive in time",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is too large",
    HTTPStatus.MISDIRECTED_REQUEST: "The header `Host` is not an address of this server",
    HTTPStatus.TOO_MANY_REQUESTS: "Too many requests; `Retry-After` says when to try again",
    HTTPStatus.INTERNAL_SERVER_ERROR: "An error of distrain, or of a disk",
}
_OF_A_BODY = {HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "The body is not JSON"}
_SESSIONS = "sessions"  # the tag of what logs in and out
_SECURITY: dict[str, Any] = {
    "token": {"type": "http", "scheme": "bearer", "description": "The token in the file `.serve/token` of the runs"},
}


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document of an application."""
    found = get_openapi(
        title="distrain",
        version=VERSION,
        summary="The runs, the queue and the devices of one machine",
        description="Answers are the JSON that the command line prints with `--json`. An error is a problem (RFC 9457) "
        "whose `detail` is one sentence.",
        routes=app.routes,
        tags=[
            {"name": "runs", "description": "Read runs, submit, stop and resume them."},
            {"name": "queue", "description": "The queue of this machine and its devices."},
            {"name": "sweeps", "description": "Searches of settings, with their trials."},
            {"name": "events", "description": "What changes, as it changes."},
            {"name": _SESSIONS, "description": "Log a browser in and out; a program sends the token."},
        ],
    )
    components = found.setdefault("components", {})
    components["securitySchemes"] = _SECURITY
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):  # errors are problems
        schemas.pop(unused, None)
    schemas["Problem"] = Problem.model_json_schema()
    found["security"] = [{name: []} for name in _SECURITY]
    for path in found["paths"].values():
        for method, operation in path.items():
            if method in METHODS:
                operation.setdefault("tags", [_SESSIONS])
                _describe_errors(operation)
    return found


def _describe_errors(operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    responses.pop(str(int(HTTPStatus.UNPROCESSABLE_ENTITY)), None)
    more = _ALWAYS | (_OF_A_BODY if "requestBody" in operation else {})
    for status, text in more.items():
        responses.setdefault(str(int(status)), {"description": text})
    problem = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for status, response in responses.items():
        if int(status) >= HTTPStatus.BAD_REQUEST:
            response["content"] = problem
    operation["responses"] = dict(sorted(responses.items()))
