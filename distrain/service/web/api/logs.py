"""Gives the logs of a run by REST, in parts."""

import codecs
import os
import re
from dataclasses import dataclass
from typing import IO, Annotated, Any

from fastapi import APIRouter, Query

from distrain.messages import joined
from distrain.service.web.api.json_answers import CONFLICT, NOT_FOUND, StrictJson
from distrain.service.web.api.models import LogPart
from distrain.service.web.confinement import list_inside, open_inside
from distrain.service.web.problems import NotFoundError
from distrain.service.web.site import TheRun

MAX_BYTES = 1 << 20  # of a part
MAX_LINES = 10_000
_BLOCK = 1 << 16
_OF_A_RANK = re.compile(r"rank-(\d+)\.log")

router = APIRouter(tags=["runs"])


@dataclass(frozen=True)
class Part:
    """A part of a file, from the byte `first` up to the byte `after`; `size` is that of the file."""

    first: int
    after: int
    size: int
    text: str


@router.get("/runs/{name}/logs", response_model=LogPart, operation_id="readLog", responses=NOT_FOUND | CONFLICT)
def read_log(
    run: TheRun,
    rank: Annotated[int, Query(ge=0, le=10**6, description="The rank whose log is read.")] = 0,
    log: Annotated[
        str | None,
        Query(max_length=255, description="Another log of the run, such as `launcher.log`, in place of a rank's."),
    ] = None,
    tail: Annotated[int, Query(ge=0, le=MAX_LINES, description="The most lines, from the end.")] = 200,
    after: Annotated[
        int | None,
        Query(ge=0, le=2**62, description="Read from this byte on, in place of the last lines: `after` of an answer."),
    ] = None,
) -> StrictJson:
    """Read the end of a log, or what has been written since an earlier answer; at most 1 MiB at once."""
    name = f"rank-{rank}.log" if log is None else log
    sizes = list_inside(run, run.logs.name, "*.log")
    if name not in sizes:
        raise NotFoundError(f"run {run.path.name} has no log {name}; {_describe(list(sizes))}")
    with open_inside(run, run.logs.name, name) as file:
        part = read_end(file, lines=tail) if after is None else read_on(file, after)
    files = [{"name": each, "rank": _rank(each), "bytes": size} for each, size in sizes.items()]
    return StrictJson({"run": run.path.name, "log": name, **_as_json(part), "files": files})


def read_end(file: IO[bytes], *, lines: int) -> Part:
    """Return the last `lines` of a file, or as many as have `MAX_BYTES`."""
    size = first = file.seek(0, os.SEEK_END)
    content = b""
    while first > 0 and len(content) < MAX_BYTES and content.count(b"\n") <= lines:
        first = max(0, first - _BLOCK)
        file.seek(first)
        content = file.read(min(_BLOCK, size - first)) + content
    found = content.splitlines(keepends=True)
    kept = b"".join(found[len(found) - lines :] if len(found) > lines else found)[-MAX_BYTES:]
    return _part(kept, size - len(kept), size)


def read_on(file: IO[bytes], after: int) -> Part:
    """Return what follows the byte `after`, or the beginning of a file that is shorter: it has begun again."""
    size = file.seek(0, os.SEEK_END)
    first = after if after <= size else 0
    file.seek(first)
    return _part(file.read(min(MAX_BYTES, size - first)), first, size)


def _part(content: bytes, first: int, size: int) -> Part:
    """Return the part as text, without the beginning of a character whose end is not there."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(content)
    pending, _ = decoder.getstate()
    return Part(first, first + len(content) - len(pending), size, text)


def _as_json(part: Part) -> dict[str, Any]:
    return {"first": part.first, "after": part.after, "size": part.size, "text": part.text}


def _rank(name: str) -> int | None:
    found = _OF_A_RANK.fullmatch(name)
    return None if found is None else int(found[1])


def _describe(names: list[str]) -> str:
    return f"its logs: {joined(names, last='and')}" if names else "it has written no log yet"
