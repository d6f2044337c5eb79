"""Lists, shows and compares runs by REST."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request

from distrain.errors import RunError
from distrain.runs.comparison import MAX_RUNS, MIN_RUNS, compare
from distrain.runs.filters import matching
from distrain.runs.overview import Overview, pick, read_each
from distrain.runs.sorting import sort_runs
from distrain.service.web.api.json_answers import CONFLICT, NOT_FOUND, StrictJson
from distrain.service.web.api.models import Comparison, RunPage, RunSummary
from distrain.service.web.problems import as_bad_request
from distrain.service.web.run_list import TheRunList
from distrain.service.web.site import TheRun, TheSite

MAX_LIMIT = 1000
_MAX_TEXT = 1000  # characters of a parameter
_MAX_FILTERS = 20

router = APIRouter(tags=["runs"])

Filters = Annotated[
    list[Annotated[str, Query(max_length=_MAX_TEXT)]],
    Query(
        alias="filter",
        max_length=_MAX_FILTERS,
        description="Only runs for which this holds, as `distrain runs --filter`: `state=finished`, `tag=baseline`, "
        "`name=digits-*`, `optimizer.lr<0.1`; also `!=`, `>`, `<=`, `>=`. Repeatable: all must hold.",
    ),
]
Sort = Annotated[
    str,
    Query(
        max_length=_MAX_TEXT,
        description="`start` (the oldest first), `best`, `loss` (the best first), or any key in ascending order; "
        "`-KEY` reverses.",
    ),
]
Columns = Annotated[
    str | None,
    Query(
        max_length=_MAX_TEXT,
        description="Keys separated by commas, as `distrain runs --columns`: each run then has only `run` and these.",
    ),
]


@router.get("/runs", response_model=RunPage, operation_id="listRuns", responses=CONFLICT)
def list_runs(
    request: Request,
    run_list: TheRunList,
    filters: Filters = [],  # noqa: B006 - FastAPI copies it
    sort: Sort = "start",
    columns: Columns = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="The most runs in one answer.")] = 100,
    offset: Annotated[int, Query(ge=0, le=10**9, description="How many runs to skip.")] = 0,
) -> StrictJson:
    """List the runs.

    Filters, orders and columns are those of `distrain runs`, and the runs are the objects of `distrain runs --json`.
    The header `Link` has the next and the previous part of the list.
    """
    everything = run_list.read()
    keys = [key.strip() for key in (columns or "").split(",") if key.strip()]
    with as_bad_request():
        found = sort_runs(matching(everything, filters, option="filter"), sort, option="sort")
        part = found[offset : offset + limit]
        rows = _pick(part, found, keys) if keys else [overview.summary() for overview in part]
    body = {"runs": rows, "total": len(found), "limit": limit, "offset": offset}
    links = _links(request, total=len(found), limit=limit, offset=offset)
    return StrictJson(body, headers={"Link": ", ".join(links)} if links else None)


@router.get("/runs/{name}", response_model=RunSummary, operation_id="showRun", responses=NOT_FOUND | CONFLICT)
def show_run(run: TheRun) -> StrictJson:
    """Show a run, as `distrain runs show --json` does."""
    return StrictJson(read_each([run])[0].summary())


@router.get("/compare", response_model=Comparison, operation_id="compareRuns", responses=NOT_FOUND | CONFLICT)
def compare_runs(
    site: TheSite,
    runs: Annotated[
        str,
        Query(max_length=300 * MAX_RUNS, description=f"Names of {MIN_RUNS} to {MAX_RUNS} runs, separated by commas."),
    ],
) -> StrictJson:
    """Compare runs, as `distrain runs compare --json` does: where their recipes differ, and what they have reached."""
    names = (name.strip() for name in runs.split(",") if name.strip())
    return StrictJson(compare(site.find_compared(names)).as_json())


def _pick(part: Sequence[Overview], found: Sequence[Overview], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Return the values of a part of the runs; a key that only others of them have is null."""
    with suppress(RunError):
        return pick(part, keys, option="columns")
    pick(found, keys, option="columns")
    known = [[key for key in keys if _has(overview, key)] for overview in part]
    return [dict.fromkeys(("run", *keys)) | pick([overview], own)[0] for overview, own in zip(part, known, strict=True)]


def _has(overview: Overview, key: str) -> bool:
    try:
        overview.find(key)
    except KeyError:
        return False
    return True


def _links(request: Request, *, total: int, limit: int, offset: int) -> list[str]:
    """Return the parts of the header `Link` (RFC 8288); its addresses are relative to the server."""
    others = [(name, value) for name, value in request.query_params.multi_items() if name not in {"limit", "offset"}]
    offsets = {"next": offset + limit} if offset + limit < total else {}
    if offset > 0:
        offsets["prev"] = max(0, offset - limit)
    return [
        f'<{request.url.path}?{urlencode([*others, ("limit", limit), ("offset", first)])}>; rel="{relation}"'
        for relation, first in offsets.items()
    ]
