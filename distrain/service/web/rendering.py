"""Renders the pages' templates: everything in them is escaped."""

from functools import cache
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined


@cache
def environment() -> Environment:
    """Return the templates, which escape all values, and raise for a value that is missing."""
    return Environment(
        loader=PackageLoader("distrain.service.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(request: Request, template: str, *, status: int = HTTPStatus.OK, **context: Any) -> HTMLResponse:
    """Return a page; its template also gets the `site` and `csrf`, the token that unsafe requests send back."""
    text = (
        environment()
        .get_template(template)
        .render(site=request.app.state.site, csrf=getattr(request.state, "csrf", ""), path=request.url.path, **context)
    )
    return HTMLResponse(text, status_code=status)
