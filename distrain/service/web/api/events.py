"""Gives what changes, as it changes: server-sent events."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import StreamingResponse

from distrain.service.web.api.json_answers import CONFLICT, NOT_FOUND
from distrain.service.web.live.live import Live
from distrain.service.web.live.tails import RunTail
from distrain.service.web.site import TheSite

_MAX_ID = 100  # characters

router = APIRouter(tags=["events"])


def _find_tail(
    site: TheSite,
    run: Annotated[str | None, Query(max_length=255, description="Also follow the run of this name.")] = None,
    rank: Annotated[int, Query(ge=0, le=10**6, description="The rank whose log is followed.")] = 0,
) -> RunTail | None:
    return None if run is None else RunTail(site.find_run(run), f"rank-{rank}.log")


@router.get(
    "/events",
    response_class=StreamingResponse,
    operation_id="readEvents",
    responses=NOT_FOUND
    | CONFLICT
    | {
        200: {"description": "Events", "content": {"text/event-stream": {"schema": {"type": "string"}}}},
        503: {"description": "As many clients as are allowed read events already"},
    },
)
async def read_events(
    request: Request,
    tail: Annotated[RunTail | None, Depends(_find_tail)],
    after: Annotated[
        str | None, Query(max_length=_MAX_ID, description="The id of an event: begin after it, as `Last-Event-ID`.")
    ] = None,
    last_event_id: Annotated[
        str | None, Header(max_length=_MAX_ID, description="What `after` is, from a browser that connects again.")
    ] = None,
) -> StreamingResponse:
    """Read events while they happen (`text/event-stream`).

    `ready` is the first one: read what you show after it, and nothing is missed; `reset` means to read it again, as
    events are missing. `runs` has the rows that have `changed`, and the names `removed`; `queue` and `devices` are
    whole, as their own addresses give them. With `run`, `status` is the run as its own address gives it, `metrics` has
    the new `records`, and `log` the new lines of a rank.
    """
    live: Live = request.app.state.live

    async def stream() -> AsyncIterator[bytes]:
        async with aclosing(live.events(tail, after=last_event_id or after)) as events:
            async for event in events:
                yield event

    return StreamingResponse(
        stream(), media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
