"""Adds the REST interface to an application."""

from functools import cache
from typing import Any

from fastapi import FastAPI

from distrain.service.web.api import changes, docs, events, logs, metrics, prometheus, queue, runs, sweeps
from distrain.service.web.api.description import describe
from distrain.service.web.live.live import Live
from distrain.service.web.run_list import RunList
from distrain.service.web.site import Site

PREFIX = "/api/v1"


def add_api(app: FastAPI) -> None:
    """Add the REST interface below `PREFIX`, its description, and what it keeps in memory, to an application."""
    site: Site = app.state.site
    app.state.run_list = RunList(site.root)
    app.state.live = Live(site.root, slots=site.slots, run_list=app.state.run_list)
    for api in (runs, changes, metrics, logs, queue, sweeps, events):
        app.include_router(api.router, prefix=PREFIX)

    app.include_router(prometheus.router)
    app.include_router(docs.router, include_in_schema=False)

    @cache
    def description() -> dict[str, Any]:
        return describe(app)

    app.openapi = description  # type: ignore[method-assign]
