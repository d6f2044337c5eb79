"""Answers requests that cannot be served with one form of error: problem+json (RFC 9457)."""

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from distrain.errors import DataError, RecipeError, RunError, StorageError, UserError
from distrain.runs.query import NoSuchRunError
from distrain.service.web.request_faults import describe_faults
from distrain.system.files import strict_json
from distrain.system.filesystem import explain

MEDIA_TYPE = "application/problem+json"
INTERNAL = "this request failed because of an error in distrain; the console of `distrain serve` shows it"
_DETAILS: dict[int, str] = {  # in place of the name of the status
    HTTPStatus.NOT_FOUND: "there is nothing at this address; /docs lists the REST interface",
    HTTPStatus.METHOD_NOT_ALLOWED: "this address does not take this method; /docs lists the REST interface",
}


class BadRequestError(UserError):
    """A parameter of the request is not valid for these runs."""


class NotFoundError(UserError):
    """A run has nothing of this name."""


_STATUS: list[tuple[type[UserError], HTTPStatus]] = [
    (NoSuchRunError, HTTPStatus.NOT_FOUND),
    (NotFoundError, HTTPStatus.NOT_FOUND),
    (RunError, HTTPStatus.CONFLICT),
    (StorageError, HTTPStatus.FORBIDDEN),
    (RecipeError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (DataError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (UserError, HTTPStatus.UNPROCESSABLE_ENTITY),
]


def problem(status: int, detail: str, **more: Any) -> Response:
    """Return an answer with this status and a sentence on what is wrong; `more` are further members."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **more}
    return Response(strict_json(body), status_code=status, media_type=MEDIA_TYPE)


@contextmanager
def as_bad_request() -> Iterator[None]:
    """Raise `BadRequestError` for a `RunError`, where the request is at fault, not the state of a run."""
    try:
        yield
    except RunError as error:
        raise BadRequestError(str(error)) from None


def add_problems(app: FastAPI) -> None:
    """Have `app` answer every error as a problem."""

    @app.exception_handler(UserError)
    def _user_error(_: Request, error: UserError) -> Response:
        status = next(status for kind, status in _STATUS if isinstance(error, kind))
        return problem(status, "; ".join(error.lines))

    @app.exception_handler(HTTPException)
    def _http_error(_: Request, error: HTTPException) -> Response:
        answer = problem(error.status_code, _DETAILS.get(error.status_code, str(error.detail)))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(RequestValidationError)
    def _invalid(_: Request, error: RequestValidationError) -> Response:
        return problem(HTTPStatus.UNPROCESSABLE_ENTITY, describe_faults(error.errors()))

    @app.exception_handler(OSError)
    def _os_error(_: Request, error: OSError) -> Response:
        if (sentence := explain(error)) is None:
            raise error
        return problem(HTTPStatus.INTERNAL_SERVER_ERROR, sentence)

    @app.exception_handler(Exception)
    def _internal(_: Request, __: Exception) -> Response:  # the server logs the exception
        return problem(HTTPStatus.INTERNAL_SERVER_ERROR, INTERNAL)
