"""The pages on which a run is submitted: a new one, or one with the recipe of another run and changes."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from distrain.config.load import builtin_recipes
from distrain.runs.recipe_values import read_recipe_values
from distrain.runs.value_formats import show_value
from distrain.service.devices import list_devices
from distrain.service.queue import is_served
from distrain.service.web.pages.recipe_view import read_builtin
from distrain.service.web.rendering import render
from distrain.service.web.security.requests import is_allowed_key
from distrain.service.web.site import Site, TheRun, TheSite

router = APIRouter()

_FIRST = "digits"  # the recipe that needs no data
_OWN_FIELDS = {"name", "data.path"}  # keys that are no line of the changes
_NUM_CHANGES = 3  # empty lines of the form


@router.get("/submit")
def submit(request: Request, site: TheSite) -> HTMLResponse:
    """Show the form for a run of a built-in recipe."""
    return _show(request, site, run=None, recipes=read_recipes(), devices=None, priority=0)


@router.get("/runs/{name}/resubmit")
def resubmit(request: Request, run: TheRun, site: TheSite) -> HTMLResponse:
    """Show the form for another run of a run's recipe, with its devices and priority."""
    job = run.read_local_job()
    values = {key: show_value(value) for key, value in read_recipe_values(run).items()}
    return _show(
        request,
        site,
        run=run.path.name,
        recipes={"": values},
        devices=None if job is None else (job.kind, job.devices),
        priority=0 if job is None else job.priority,
    )


@cache
def read_recipes() -> dict[str, dict[str, str]]:
    """Return the values of each built-in recipe as texts by dotted key; one that needs nothing else comes first."""
    names = sorted(builtin_recipes(), key=lambda name: (name != _FIRST, name))
    return {name: {key: show_value(value) for key, value in read_builtin(name).items()} for name in names}


def _show(
    request: Request,
    site: Site,
    *,
    run: str | None,
    recipes: Mapping[str, Mapping[str, str]],
    devices: tuple[str, int] | None,
    priority: int,
) -> HTMLResponse:
    kinds = [state.kind for state in list_devices(slots=site.slots)]
    counts = {kind: kinds.count(kind) for kind in ("gpu", "cpu")}
    kind, count = devices or ("gpu" if counts["gpu"] else "cpu", 1)
    keys = dict.fromkeys(key for values in recipes.values() for key in values if is_allowed_key(key))
    context: dict[str, Any] = {
        "run": run,
        "recipes": list(recipes),
        "values": json.loads(json.dumps(recipes)),
        "keys": [key for key in keys if key not in _OWN_FIELDS],
        "counts": counts,
        "kind": kind,
        "count": count,
        "priority": priority,
        "num_changes": _NUM_CHANGES,
        "is_served": is_served(site.root),
    }
    return render(request, "submit.html", **context)
