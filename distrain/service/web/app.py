"""Puts the page and the REST interface together: `create_app`."""

from pathlib import Path

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from distrain.service.web.api.routers import PREFIX, add_api
from distrain.service.web.pages import runs as run_pages
from distrain.service.web.problems import add_problems
from distrain.service.web.site import Site

_STATIC = Path(__file__).with_name("static")


def create_app(site: Site) -> FastAPI:
    """Return the application that shows a site."""
    app = FastAPI(title="distrain", docs_url=None, redoc_url=None, openapi_url=f"{PREFIX}/openapi.json")
    app.state.site = site
    add_api(app)
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    for pages in (run_pages,):
        app.include_router(pages.router, include_in_schema=False)
    add_problems(app)
    return app
