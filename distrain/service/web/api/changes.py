"""Changes runs by REST: submits, stops, resumes, cancels, moves and labels them."""

from http import HTTPStatus
from typing import Any

from fastapi import APIRouter

from distrain.errors import RunError
from distrain.runs.directory import RunDirectory
from distrain.runs.labels import Labels, check_tags, write_labels
from distrain.service import queue
from distrain.service.web.api.json_answers import CONFLICT, NOT_FOUND, StrictJson
from distrain.service.web.api.models import Accepted, LabelsRequest, PriorityRequest, SubmitRequest, Submitted
from distrain.service.web.api.submission import resolve_request
from distrain.service.web.site import TheOwnRun, TheSite, TheStartableRun
from distrain.service.web.template_environment import as_address

PREFIX = "/api/v1/runs"

router = APIRouter(tags=["runs"])
_ACCEPTED: dict[int | str, dict[str, Any]] = {
    HTTPStatus.ACCEPTED: {"description": "The run will do so", "model": Accepted}
}


@router.post(
    "/runs",
    status_code=HTTPStatus.CREATED,
    response_model=Submitted,
    operation_id="submitRun",
    responses=NOT_FOUND | CONFLICT,
    openapi_extra={
        "responses": {
            "201": {"headers": {"Location": {"description": "The address of the run", "schema": {"type": "string"}}}}
        }
    },
)
def submit_run(site: TheSite, request: SubmitRequest) -> StrictJson:
    """Submit a recipe, or a run again, to the queue of this machine.

    What runs is what was submitted: the recipe, a copy of the code in the folder in which `distrain serve` was started,
    and its environment. A run that has ended is submitted again as a new run of its recipe, with the changes of `set`
    and a copy of its code.
    """
    submission, source = resolve_request(site, request)
    code = source.code if source is not None and source.code.is_dir() else None
    queue.submit([submission], is_snapshot=source is None, extras=[], code=code)
    run = submission.run
    body = {"run": run.path.name, "path": str(run.path), "queue": "local", "notes": list(submission.notes)}
    return StrictJson(
        body, status_code=HTTPStatus.CREATED, headers={"Location": f"{PREFIX}/{as_address(run.path.name)}"}
    )


@router.post(
    "/runs/{name}/stop",
    response_model=Accepted,
    operation_id="stopRun",
    responses=NOT_FOUND | CONFLICT | _ACCEPTED,
)
def stop_run(run: TheOwnRun) -> StrictJson:
    """Have a run save and end at its next step, or take it out of the queue; it can be resumed."""
    done = queue.stop(run)
    if done is not None:
        return _answer(run, done)
    return _answer(run, f"asked {run.path.name} to stop; it is at step {run.read_status().step}", is_later=True)


@router.post(
    "/runs/{name}/cancel",
    response_model=Accepted,
    operation_id="cancelRun",
    responses=NOT_FOUND | CONFLICT | _ACCEPTED,
)
def cancel_run(run: TheOwnRun) -> StrictJson:
    """Take a run out of its queue, or have it save and end; it is not resumed by itself."""
    if queue.cancel(run):
        return _answer(run, f"cancelled {run.path.name}")
    step = run.read_status().step
    return _answer(run, f"asked {run.path.name} to save and end; it is at step {step}", is_later=True)


@router.post(
    "/runs/{name}/resume",
    status_code=HTTPStatus.ACCEPTED,
    response_model=Accepted,
    operation_id="resumeRun",
    responses=NOT_FOUND | CONFLICT,
)
def resume_run(run: TheStartableRun) -> StrictJson:
    """Put a run that was stopped back into the queue of this machine; it resumes from its newest checkpoint."""
    if run.read_local_job() is None:
        raise RunError(f"run {run.path.name} was not in the queue of this machine; `distrain resume` resumes it")
    queue.submit_again(run)
    return _answer(run, f"{run.path.name} is in the queue", is_later=True)


@router.post(
    "/runs/{name}/priority", response_model=Accepted, operation_id="setPriority", responses=NOT_FOUND | CONFLICT
)
def set_priority(run: TheOwnRun, request: PriorityRequest) -> StrictJson:
    """Change the place of a run in the queue; a run of lower priority may be stopped for it, and is resumed later."""
    queue.set_priority(run, request.priority)
    return _answer(run, f"{run.path.name} has priority {request.priority}")


@router.put("/runs/{name}/labels", response_model=Labels, operation_id="setLabels", responses=NOT_FOUND | CONFLICT)
def set_labels(run: TheOwnRun, request: LabelsRequest) -> StrictJson:
    """Replace the tags and the note of a run."""
    check_tags(request.tags)
    labels = Labels(tags=list(dict.fromkeys(request.tags)), note=request.note.strip())
    write_labels(run, labels)
    return StrictJson(labels.model_dump())


def _answer(run: RunDirectory, sentence: str, *, is_later: bool = False) -> StrictJson:
    body = {"run": run.path.name, "state": run.read_status().state, "message": sentence}
    return StrictJson(body, status_code=HTTPStatus.ACCEPTED if is_later else HTTPStatus.OK)
