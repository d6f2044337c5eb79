"""Lists and shows sweeps by REST."""

from fastapi import APIRouter

from distrain.service.sweeps.folder import find_sweeps
from distrain.service.sweeps.results import read_result
from distrain.service.web.api.json_answers import CONFLICT, NOT_FOUND, StrictJson
from distrain.service.web.api.models import Sweep, SweepSummary
from distrain.service.web.site import TheSite, TheSweep
from distrain.service.web.views.sweep_view import list_sweeps

router = APIRouter(tags=["sweeps"])


@router.get("/sweeps", response_model=list[SweepSummary], operation_id="listSweeps")
def list_all_sweeps(site: TheSite) -> StrictJson:
    """List the sweeps in the folder of the runs, by name."""
    return StrictJson([line.as_json() for line in list_sweeps(find_sweeps(site.root))])


@router.get("/sweeps/{name}", response_model=Sweep, operation_id="showSweep", responses=NOT_FOUND | CONFLICT)
def show_sweep(sweep: TheSweep) -> StrictJson:
    """Show a sweep with its trials, as `distrain sweep --json` prints it."""
    return StrictJson(read_result(sweep).as_json())
