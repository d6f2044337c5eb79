"""Answers with the JSON of the command line: strict, with null for numbers that are not finite."""

from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse

from distrain.system.files import strict_json


class StrictJson(JSONResponse):
    """JSON in ASCII, which can hold file names that are not UTF-8."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return strict_json(content).encode("ascii")


NOT_FOUND: dict[int | str, dict[str, Any]] = {HTTPStatus.NOT_FOUND: {"description": "There is no such run"}}
CONFLICT: dict[int | str, dict[str, Any]] = {
    HTTPStatus.CONFLICT: {"description": "The run is in a state that does not allow it, or cannot be read"}
}
