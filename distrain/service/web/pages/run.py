"""The page of one run."""

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from distrain.runs.curves import list_keys
from distrain.runs.samples import read_sample_sheet
from distrain.service.queue import is_served
from distrain.service.web.pages.evaluation_view import read_evaluation_views
from distrain.service.web.pages.files import find_style_ids
from distrain.service.web.pages.run_view import better, describe_progress, group_keys, list_logs, read_run_view
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
        progress=describe_progress(view.overview),
        groups=group_keys([key for key in list_keys(run) if "/" in key]),
        better=better,
        logs=list_logs(run),
        sheet=read_sample_sheet(run),
        evaluations=read_evaluation_views(run),
        is_served=is_served(site.root),
        style_ids=find_style_ids(),
    )
