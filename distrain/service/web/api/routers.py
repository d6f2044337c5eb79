"""Adds the REST interface to an application."""

from functools import cache
from typing import Any

from fastapi import FastAPI

from distrain.service.web.api import changes, logs, queue, runs
from distrain.service.web.api.description import describe
from distrain.service.web.run_list import RunList

PREFIX = "/api/v1"


def add_api(app: FastAPI) -> None:
    """Add the REST interface below `PREFIX`, its description, and what it keeps in memory, to an application."""
    app.state.run_list = RunList(app.state.site.root)
    for api in (runs, changes, logs, queue):
        app.include_router(api.router, prefix=PREFIX)

    @cache
    def description() -> dict[str, Any]:
        return describe(app)

    app.openapi = description  # type: ignore[method-assign]
