"""The pages of sweeps: all of them, and one."""

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from distrain.service.sweeps.folder import find_sweeps
from distrain.service.web.rendering import render
from distrain.service.web.report.charts import format_number
from distrain.service.web.site import TheSite, TheSweep
from distrain.service.web.views.sweep_view import list_sweeps, read_sweep_view

router = APIRouter()


@router.get("/sweeps")
def show_sweeps(request: Request, site: TheSite) -> HTMLResponse:
    """Show the sweeps of the folder."""
    return render(request, "sweeps.html", sweeps=list_sweeps(find_sweeps(site.root)), format_number=format_number)


@router.get("/sweeps/{name}")
def show_sweep(request: Request, sweep: TheSweep) -> HTMLResponse:
    """Show a sweep: its trials, and what they say about its parameters."""
    return render(request, "sweep.html", sweep=read_sweep_view(sweep))
