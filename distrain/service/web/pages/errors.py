"""Answers a browser with a page where a program gets a problem."""

import json
from collections.abc import Callable
from http import HTTPStatus
from inspect import iscoroutinefunction
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from distrain.service.web.rendering import render
from distrain.service.web.template_environment import sentence

_PROGRAMS = ("/api/", "/metrics", "/docs", "/static/")
_Handler = Callable[[Request, Any], Response]


def add_error_pages(app: FastAPI) -> None:
    """Have the handlers of errors that `app` has by now answer browsers with pages."""
    for kind, handler in list(app.exception_handlers.items()):
        if not iscoroutinefunction(handler):
            app.add_exception_handler(kind, _as_page(handler))  # type: ignore[arg-type]  # handlers take requests


def wants_page(request: Request) -> bool:
    """Whether a request comes from a browser that shows what it gets."""
    return not request.url.path.startswith(_PROGRAMS) and "text/html" in request.headers.get("accept", "")


def _as_page(handler: _Handler) -> _Handler:
    def answer(request: Request, error: Any) -> Response:
        found = handler(request, error)
        if not wants_page(request):
            return found
        detail = json.loads(bytes(found.body))["detail"]
        code = found.status_code
        page = render(
            request, "error.html", status=code, code=code, title=HTTPStatus(code).phrase, detail=sentence(detail)
        )
        page.headers.update({name: value for name, value in found.headers.items() if name in {"retry-after", "allow"}})
        return page

    return answer
