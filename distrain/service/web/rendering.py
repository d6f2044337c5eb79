"""Renders the pages that a server answers with."""

from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse

from distrain.service.web.template_environment import environment


def render(request: Request, template: str, *, status: int = HTTPStatus.OK, **context: Any) -> HTMLResponse:
    """Return a page; what its template gets besides `context` is what `base.html` needs.

    That is the `site`, the `path`, the token `csrf` that unsafe requests send back, and the `position` in the stream of
    events: the page shows all that was reported up to there.
    """
    text = (
        environment()
        .get_template(template)
        .render(
            site=request.app.state.site,
            csrf=getattr(request.state, "csrf", ""),
            path=request.url.path,
            position=getattr(request.state, "position", ""),
            **context,
        )
    )
    return HTMLResponse(text.encode(errors="replace"), status_code=status)  # file names may not be UTF-8
