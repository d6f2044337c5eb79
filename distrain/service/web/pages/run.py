"""The page of one run."""

from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from distrain.runs.curves import list_keys
from distrain.service.queue import is_served
from distrain.service.web.pages.files import find_style_ids
from distrain.service.web.pages.run_view import better, group_keys, read_run_view
from distrain.service.web.rendering import render
from distrain.service.web.site import TheRun, TheSite

router = APIRouter()


@router.get("/runs/{name}")
def show_run(request: Request, run: TheRun, site: TheSite) -> HTMLResponse:
    """Show a run."""
    view = read_run_view(run)
    return render(
        request,
        "run.html",
        view=view,
        groups=group_keys([key for key in list_keys(run) if "/" in key]),
        better=partial(better, own=view.facts.overview.brief.own_metrics),
        is_served=is_served(site.root),
        style_ids=find_style_ids(),
    )
