"""Exchanges a login code or the token for a session, and ends it: the page `/login`, and `/api/v1/login`, `logout`."""

from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distrain.service.web.problems import problem
from distrain.service.web.rendering import render
from distrain.service.web.security.guard import LOGIN, LOGIN_PAGE, Access

router = APIRouter()
_FORM, _JSON = "application/x-www-form-urlencoded", "application/json"
_REFUSED = "this link was used already, or is older than ten minutes; `distrain serve --link` prints another"


class LoginRequest(BaseModel):
    """What logs in: a code from a link, or the token; one of both."""

    model_config = ConfigDict(extra="forbid")

    code: str = Field("", max_length=200, description="from the link that `distrain serve` prints")
    token: str = Field("", max_length=200, description="the content of `.serve/token`")


class LoginAnswer(BaseModel):
    """What a session needs for requests that change something."""

    csrf: str = Field(description="for the header X-CSRF-Token")


_BODY = {"required": True, "content": {_JSON: {"schema": LoginRequest.model_json_schema()}}}


def _access(request: Request) -> Access:
    access: Access = request.app.state.access
    return access


TheAccess = Annotated[Access, Depends(_access)]


@router.get(LOGIN_PAGE, include_in_schema=False)
def show_login(request: Request, code: str = "") -> Response:
    """Show a button that logs in: the code is used up by it alone, not by what only looks at the link."""
    return render(request, "login.html", code=code[:200], fault="")


@router.post(LOGIN, response_model=LoginAnswer, openapi_extra={"requestBody": _BODY})
async def log_in(request: Request, access: TheAccess) -> Response:
    """Exchange a code or the token for a session, whose cookie the answer sets."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in {_FORM, _JSON}:
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"send {_JSON}")
    is_form = media_type == _FORM
    given = _read(await request.body(), is_form=is_form)
    credentials = access.credentials
    if not (given.code and credentials.take_code(given.code)) and not (
        given.token and credentials.is_token(given.token)
    ):
        if is_form:
            return render(request, "login.html", status=HTTPStatus.FORBIDDEN, code="", fault=_REFUSED)
        return problem(HTTPStatus.FORBIDDEN, _REFUSED)
    secret = access.sessions.begin()
    answer: Response = (
        RedirectResponse("/", status_code=HTTPStatus.SEE_OTHER)
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


def _read(body: bytes, *, is_form: bool) -> LoginRequest:
    try:
        if not is_form:
            return LoginRequest.model_validate_json(body)
        fields = parse_qs(body.decode(errors="replace"), max_num_fields=10)
        return LoginRequest.model_validate({name: values[-1] for name, values in fields.items()})
    except (ValidationError, ValueError):
        raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, "send a code or a token, as text") from None


def _cookie(access: Access) -> dict[str, Any]:
    return {"path": "/", "httponly": True, "samesite": "strict", "secure": access.addresses.scheme == "https"}
