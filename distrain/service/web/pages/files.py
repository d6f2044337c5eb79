"""Serves plotly's JavaScript and the pictures of runs."""

import importlib.util
import re
from functools import cache
from pathlib import Path as FilePath
from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import FileResponse, Response

from distrain.runs.directory import RunDirectory
from distrain.service.web.confinement import open_inside
from distrain.service.web.problems import NotFoundError
from distrain.service.web.site import TheRun

router = APIRouter()

_MAX_PICTURE = 1 << 26  # bytes
_PNG = b"\x89PNG\r\n\x1a\n"
_OWN_STYLE = re.compile(r'document\.getElementById\("([0-9a-f]{64})"\)')


@router.get("/plotly.min.js")
def send_plotly() -> FileResponse:
    """Send plotly's JavaScript, which the installed package has."""
    headers = {"Cache-Control": "private, max-age=86400"}
    return FileResponse(find_plotly(), media_type="text/javascript", headers=headers)


@router.get("/runs/{name}/samples.png")
def send_samples(run: TheRun) -> Response:
    """Send the sheet with the first training images of a run."""
    return _send_picture(run, run.sample_sheet.name)


@router.get("/runs/{name}/evaluations/{evaluation}/mistakes/{file}")
def send_mistake(
    run: TheRun, evaluation: str, file: Annotated[str, Path(pattern=r"^[0-9]{1,6}\.png$", max_length=20)]
) -> Response:
    """Send the image of one of the worst mistakes of an evaluation."""
    return _send_picture(run, run.evaluations.name, evaluation, run.mistake_images.name, file)


def _send_picture(run: RunDirectory, *names: str) -> Response:
    try:
        with open_inside(run, *names) as file:
            content = file.read(_MAX_PICTURE + 1)
    except FileNotFoundError:
        raise NotFoundError(f"run {run.path.name} has no picture {names[-1]}") from None
    if len(content) > _MAX_PICTURE or not content.startswith(_PNG):
        raise NotFoundError(f"{names[-1]} of run {run.path.name} is not a picture that a page can show")
    headers = {"Cache-Control": "private, max-age=60", "X-Content-Type-Options": "nosniff"}
    return Response(content, media_type="image/png", headers=headers)


def find_plotly() -> FilePath:
    """Return the file with plotly's JavaScript, without importing plotly."""
    spec = importlib.util.find_spec("plotly")
    assert spec is not None and spec.origin is not None, "plotly is a dependency of distrain"
    return FilePath(spec.origin).with_name("package_data") / "plotly.min.js"


@cache
def find_style_ids() -> tuple[str, ...]:
    """Return the ids of the style elements that plotly.min.js creates unless an element with this id exists.

    They are of its maps, which no chart of a run has; a strict Content-Security-Policy forbids to create them.
    """
    return tuple(dict.fromkeys(_OWN_STYLE.findall(find_plotly().read_text(encoding="utf-8"))))
