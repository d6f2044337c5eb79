"""Exchanges a login code or the token for a session, and ends it: the page `/login`, and `/api/v1/login`, `logout`."""

from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distrain.service.web.problems import problem
from distrain.service.web.rendering import render
from distrain.service.web.security.credentials import CodeState, Credentials
from distrain.service.web.security.guard import LOGIN, LOGIN_PAGE, Access

router = APIRouter()
_FORM, _JSON = "application/x-www-form-urlencoded", "application/json"
_ANOTHER = "`distrain serve --link` prints another"
_REFUSED: dict[CodeState, str] = {
    "used": f"this link was used already; {_ANOTHER}",
    "expired": f"this link is older than ten minutes; {_ANOTHER}",
    "unknown": f"this link is not one of this page, or has expired; {_ANOTHER}",
}
_WRONG_TOKEN = "this is not the token of this page, which is in `.serve/token` in the folder of its runs"
_LONGEST_NEXT = 2000  # characters


class LoginRequest(BaseModel):
    """What logs in: a code from a link, or the token; one of both."""

    model_config = ConfigDict(extra="forbid")

    code: str = Field("", max_length=200, description="from the link that `distrain serve` prints")
    token: str = Field("", max_length=200, description="the content of `.serve/token`")


class _Form(LoginRequest):
    """What the login page sends, with the page that it leads to."""

    next: str = "/"


class LoginAnswer(BaseModel):
    """What a session needs for requests that change something."""

    csrf: str = Field(description="for the header X-CSRF-Token")


_BODY = {"required": True, "content": {_JSON: {"schema": LoginRequest.model_json_schema()}}}


def _access(request: Request) -> Access:
    access: Access = request.app.state.access
    return access


TheAccess = Annotated[Access, Depends(_access)]


@router.get(LOGIN_PAGE, include_in_schema=False)
def show_login(request: Request, code: str = "", next: str = "/") -> Response:  # noqa: A002 - the parameter's name
    """Show a button that logs in: the code is used up by it alone, not by what only looks at the link."""
    if getattr(request.state, "session", None) is not None:
        return RedirectResponse(keep_inside(next), status_code=HTTPStatus.SEE_OTHER)
    return render(request, "login.html", code=code[:200], fault="", next=keep_inside(next))


@router.post(LOGIN, response_model=LoginAnswer, openapi_extra={"requestBody": _BODY})
async def log_in(request: Request, access: TheAccess) -> Response:
    """Exchange a code or the token for a session, whose cookie the answer sets."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in {_FORM, _JSON}:
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"send {_JSON}")
    is_form = media_type == _FORM
    given = _read(await request.body(), is_form=is_form)
    wanted = keep_inside(given.next)
    if (fault := _find_fault(given, access.credentials)) is not None:
        if is_form:
            return render(request, "login.html", status=HTTPStatus.FORBIDDEN, code="", fault=fault, next=wanted)
        return problem(HTTPStatus.FORBIDDEN, fault)
    secret = access.sessions.begin()
    answer: Response = (
        RedirectResponse(wanted, status_code=HTTPStatus.SEE_OTHER)
        if is_form
        else JSONResponse({"csrf": access.sessions.csrf_token(secret)})
    )
    answer.set_cookie(access.addresses.cookie, secret, **_cookie(access))
    return answer


@router.post("/api/v1/logout", status_code=HTTPStatus.NO_CONTENT)
async def log_out(request: Request, access: TheAccess) -> Response:
    """End the session of the request."""
    answer = Response(status_code=HTTPStatus.NO_CONTENT)
    if (secret := getattr(request.state, "session", None)) is not None:
        access.sessions.end(secret)
        answer.delete_cookie(access.addresses.cookie, **_cookie(access))
    return answer


def keep_inside(address: str) -> str:
    """Return where a login leads: a path of this server; `/` for what a browser could take for another address.

    Browsers take a backslash for a slash, remove tabs and line breaks, and take `//` for the beginning of a host.
    """
    is_path = address.startswith("/") and not address.startswith("//") and "\\" not in address
    return address if is_path and address.isprintable() and len(address) <= _LONGEST_NEXT else "/"


def _find_fault(given: LoginRequest, credentials: Credentials) -> str | None:
    """Return why a code or token does not log in; None where it does."""
    if given.token:
        return None if credentials.is_token(given.token) else _WRONG_TOKEN
    state = credentials.take_code(given.code) if given.code else "unknown"
    return None if state == "valid" else _REFUSED[state]


def _read(body: bytes, *, is_form: bool) -> _Form:
    try:
        if not is_form:
            return _Form(**LoginRequest.model_validate_json(body).model_dump())
        fields = parse_qs(body.decode(errors="replace"), max_num_fields=10)
        return _Form.model_validate({name: values[-1] for name, values in fields.items()})
    except (ValidationError, ValueError):
        raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, "send a code or a token, as text") from None


def _cookie(access: Access) -> dict[str, Any]:
    return {"path": "/", "httponly": True, "samesite": "strict", "secure": access.addresses.scheme == "https"}
