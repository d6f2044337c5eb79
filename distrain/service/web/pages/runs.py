"""The page with all runs."""

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from distrain.runs.overview import read_overviews
from distrain.service.web.rendering import render
from distrain.service.web.site import TheSite

router = APIRouter()


@router.get("/")
def show_runs(request: Request, site: TheSite) -> HTMLResponse:
    """Show the runs, the newest first."""
    return render(request, "runs.html", overviews=read_overviews(site.root)[::-1])
