"""The page with all runs."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from distrain.runs.comparison import MAX_RUNS
from distrain.service.queue import is_served
from distrain.service.web.pages.run_table import NEWEST_FIRST, ListRequest, list_runs
from distrain.service.web.rendering import render
from distrain.service.web.run_list import TheRunList
from distrain.service.web.site import TheSite

router = APIRouter()

_MAX_TEXT = 1000
_Columns = Annotated[list[Annotated[str, Query(max_length=_MAX_TEXT)]] | None, Query(max_length=50)]


@router.get("/")
def show_runs(
    request: Request,
    site: TheSite,
    run_list: TheRunList,
    text: Annotated[str, Query(alias="filter", max_length=_MAX_TEXT)] = "",
    sort: Annotated[str, Query(max_length=_MAX_TEXT)] = NEWEST_FIRST,
    columns: _Columns = None,
    page: Annotated[int, Query(le=10**9)] = 1,
) -> HTMLResponse:
    """Show a page of the runs that match a filter, by default the newest first."""
    keys = [key.strip() for each in columns or () for key in each.split(",") if key.strip()]
    wanted = ListRequest(filter=text, sort=sort or NEWEST_FIRST, columns=tuple(dict.fromkeys(keys)), page=page)
    listing = list_runs(run_list.read(), wanted)
    status = HTTPStatus.OK if listing.fault is None else HTTPStatus.UNPROCESSABLE_ENTITY
    served = is_served(site.root)
    return render(request, "runs.html", status=status, listing=listing, most=MAX_RUNS, is_served=served)
