"""Gives the curves of a run by REST."""

from typing import Annotated

from fastapi import APIRouter, Query

from distrain.runs.curves import list_keys, read_curves
from distrain.service.web.api.json_answers import CONFLICT, NOT_FOUND, StrictJson
from distrain.service.web.api.models import MetricKeys, Metrics
from distrain.service.web.problems import as_bad_request
from distrain.service.web.site import TheRun

MAX_POINTS = 5000

router = APIRouter(tags=["runs"])

_MAX_STEP = 2**62


@router.get("/runs/{name}/metrics", response_model=Metrics, operation_id="readMetrics", responses=NOT_FOUND | CONFLICT)
def read_metrics(
    run: TheRun,
    keys: Annotated[
        str | None, Query(max_length=20_000, description="Metrics separated by commas; without them, all.")
    ] = None,
    points: Annotated[int, Query(ge=2, le=MAX_POINTS, description="The most points of a curve.")] = 1000,
    first_step: Annotated[int | None, Query(ge=0, le=_MAX_STEP, description="Only records from this step on.")] = None,
    last_step: Annotated[int | None, Query(ge=0, le=_MAX_STEP, description="Only records up to this step.")] = None,
) -> StrictJson:
    """Read curves: of each bucket of records the mean, and the smallest and largest value, so that no spike is lost.

    Up to as many records as `points`, each is a point of its own. A value that is not finite is null.
    """
    wanted = None if keys is None else list(dict.fromkeys(key.strip() for key in keys.split(",") if key.strip()))
    with as_bad_request():  # a metric that the run does not have
        found = read_curves(run, keys=wanted, points=points, first_step=first_step, last_step=last_step)
    curves = {key: curve.as_json() for key, curve in found.curves.items()}
    return StrictJson({"run": run.path.name, "records": found.records, "step": found.step, "curves": curves})


@router.get("/runs/{name}/keys", response_model=MetricKeys, operation_id="listMetrics", responses=NOT_FOUND | CONFLICT)
def list_metrics(run: TheRun) -> StrictJson:
    """List the metrics that a run has recorded."""
    return StrictJson({"run": run.path.name, "keys": list_keys(run)})
