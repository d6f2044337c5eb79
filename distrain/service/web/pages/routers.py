"""Adds the pages to an application."""

from fastapi import Depends, FastAPI, Request

from distrain.service.web.pages import compare, files, queue, run, runs, submit, sweeps


def add_pages(app: FastAPI) -> None:
    """Add all pages."""
    for page in (runs, run, compare, queue, sweeps, submit, files):
        app.include_router(page.router, include_in_schema=False, dependencies=[Depends(_note_position)])


def _note_position(request: Request) -> None:
    """Note which event was the newest before anything was read for a page: its script listens to those after it."""
    request.state.position = request.app.state.live.position
