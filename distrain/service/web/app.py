"""Puts the page and the REST interface together: `create_app`."""

from pathlib import Path

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from distrain.service.web.api.routers import PREFIX, add_api
from distrain.service.web.pages.errors import add_error_pages
from distrain.service.web.pages.routers import add_pages
from distrain.service.web.problems import add_problems
from distrain.service.web.site import Site

_STATIC = Path(__file__).with_name("static")


def create_app(site: Site) -> FastAPI:
    """Return the application that shows a site."""
    app = FastAPI(title="distrain", docs_url=None, redoc_url=None, openapi_url=f"{PREFIX}/openapi.json")
    app.state.site = site
    add_api(app)
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    add_pages(app)
    add_problems(app)
    add_error_pages(app)
    return app
