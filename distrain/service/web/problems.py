"""Answers requests that cannot be served with one form of error: problem+json (RFC 9457)."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from distrain.errors import DataError, RecipeError, RunError, StorageError, UserError
from distrain.runs.query import NoSuchRunError

MEDIA_TYPE = "application/problem+json"
_STATUS: list[tuple[type[UserError], HTTPStatus]] = [
    (NoSuchRunError, HTTPStatus.NOT_FOUND),
    (RunError, HTTPStatus.CONFLICT),
    (StorageError, HTTPStatus.FORBIDDEN),
    (RecipeError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (DataError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (UserError, HTTPStatus.UNPROCESSABLE_ENTITY),
]


def problem(status: int, detail: str, **more: Any) -> JSONResponse:
    """Return an answer with this status and a sentence on what is wrong; `more` are further members."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **more}
    return JSONResponse(body, status_code=status, media_type=MEDIA_TYPE)


def add_problems(app: FastAPI) -> None:
    """Have `app` answer every error as a problem."""

    @app.exception_handler(UserError)
    def _user_error(_: Request, error: UserError) -> JSONResponse:
        status = next(status for kind, status in _STATUS if isinstance(error, kind))
        return problem(status, "; ".join(error.lines))

    @app.exception_handler(HTTPException)
    def _http_error(_: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        faults = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        return problem(HTTPStatus.UNPROCESSABLE_ENTITY, "; ".join(faults))
