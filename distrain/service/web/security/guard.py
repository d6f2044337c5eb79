"""Stands before the application: answers what is not allowed itself, and adds the headers of every answer.

In this order a request needs: a `Host` of the page (DNS rebinding); no foreign `Origin`; the token or a session, unless
it is for the login or a file of distrain's own style and scripts; with a session and an unsafe method, the page's
`Origin` and the session's CSRF token; a place within the limits.
"""

import hmac
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import urlencode

from fastapi import FastAPI, HTTPException
from fastapi.responses import RedirectResponse, Response
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from distrain.errors import StorageError
from distrain.messages import escape_control_characters
from distrain.service.web.problems import problem
from distrain.service.web.security.addresses import Addresses
from distrain.service.web.security.body import LimitedBody, too_large
from distrain.service.web.security.credentials import Credentials
from distrain.service.web.security.headers import STATIC, with_security
from distrain.service.web.security.limits import Buckets, Limits
from distrain.service.web.security.sessions import Sessions
from distrain.service.web.security.streams import RevocableReceive

LOGIN_PAGE, LOGIN = "/login", "/api/v1/login"
EVENTS = "/api/v1/events"
_PROGRAMS = ("/api/", "/metrics")  # what answers 401, where a page leads to the login
_SAFE = {"GET", "HEAD", "OPTIONS"}
_BEARER = "bearer"
_SAME = "same-origin"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may use the page of one folder of runs, from where, and how much."""

    credentials: Credentials
    sessions: Sessions
    addresses: Addresses
    limits: Limits = field(default_factory=Limits)


def guarded(app: FastAPI, access: Access) -> ASGIApp:
    """Return the application with its login, behind the guard."""
    from distrain.service.web.security import login

    app.state.access = access
    app.include_router(login.router)
    return Guard(app, access)


class Guard:
    """The application, for those who may use it: ASGI."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access
        limits = access.limits
        self._requests = Buckets(limits.requests_per_s, limits.burst)
        self._logins = Buckets(limits.logins_per_s, limits.login_burst)
        self._num_streams = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        answer = _Answer(send, scope, is_tls=self._access.addresses.scheme == "https")
        is_stream, request = scope["path"] == EVENTS, HTTPConnection(scope)
        self._num_streams += is_stream
        try:
            refusal = self._refuse(request)
            if is_stream:
                receive = RevocableReceive(receive, lambda: self._is_known(request))
            await (refusal or self._app)(scope, LimitedBody(receive, self._access.limits), answer)
        except HTTPException as error:  # a body that nobody would have read
            await answer.end(problem(error.status_code, error.detail), scope, receive)
        except ClientDisconnect:  # in the middle of a body
            pass
        except Exception as error:
            place = escape_control_characters(f"{scope['method']} {scope['path']}")
            log.error("the page failed at %s", place, exc_info=error)
            await answer.end(problem(HTTPStatus.INTERNAL_SERVER_ERROR, "the page has an error"), scope, receive)
        finally:
            self._num_streams -= is_stream

    def _refuse(self, request: HTTPConnection) -> Response | None:
        """Return the answer to a request that is not allowed; None for one that is."""
        try:
            return self._refuse_address(request) or self._refuse_user(request)
        except StorageError as error:  # which names files, so it is for the operator alone
            log.error("nobody can use the page: %s", error)
            return problem(HTTPStatus.SERVICE_UNAVAILABLE, "the token cannot be read; the console of serve shows why")

    def _refuse_address(self, request: HTTPConnection) -> Response | None:
        addresses, host = self._access.addresses, request.headers.get("host", "")
        server = request.scope.get("server")
        if not addresses.is_expected_host(host, reached=server[0] if server and server[1] is not None else None):
            return problem(
                HTTPStatus.BAD_REQUEST,
                "this is not an address of the page; `distrain serve --allow-host NAME` adds one",
            )
        origin = request.headers.get("origin")
        is_login = request.scope["path"] == LOGIN and request.headers.get("sec-fetch-site", _SAME) == _SAME
        is_unknown = origin == "null" and is_login  # a form of a page without referrer
        if origin is not None and not is_unknown and not addresses.is_own_origin(origin, host=host):
            return problem(HTTPStatus.FORBIDDEN, "the request comes from the page of another site")
        return None

    def _refuse_user(self, request: HTTPConnection) -> Response | None:
        path, method = request.scope["path"], request.scope["method"]
        if path == LOGIN:
            address = request.client.host if request.client else ""
            return _refuse_rate(self._logins.take(address)) if method == "POST" else None
        secret = request.cookies.get(self._access.addresses.cookie)
        if secret is not None and self._access.sessions.find(secret) is not None:
            request.state.session = secret
            request.state.csrf = self._access.sessions.csrf_token(secret)
        if path == LOGIN_PAGE or path.startswith(STATIC):
            return None
        user = self._find_user(request)
        if user is None and request.headers.get("authorization"):
            return _unauthorized(request, "this is not the token of this page")
        if user is None:
            return _unauthorized(request, "log in, or send the token as `Authorization: Bearer`")
        if user != _BEARER and method not in _SAFE and (refusal := _refuse_forgery(request)):
            return refusal
        if path == EVENTS and self._num_streams > self._access.limits.streams:
            return problem(HTTPStatus.SERVICE_UNAVAILABLE, "too many event streams are open")
        return _refuse_rate(self._requests.take(user)) or self._refuse_length(request)

    def _find_user(self, request: HTTPConnection) -> str | None:
        """Return the session of a request, or that it has the token; None where it has neither."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme:
            has_token = scheme.lower() == _BEARER and self._access.credentials.is_token(token.strip())
            return _BEARER if has_token else None
        secret = request.cookies.get(self._access.addresses.cookie)
        return None if secret is None else self._access.sessions.find(secret)

    def _is_known(self, request: HTTPConnection) -> bool:
        with suppress(StorageError):
            return self._find_user(request) is not None
        return False

    def _refuse_length(self, request: HTTPConnection) -> Response | None:
        length, limits = request.headers.get("content-length", "0"), self._access.limits
        if length.isdecimal() and int(length) <= limits.body_bytes:
            return None
        return _with_header(problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, too_large(limits)), "Connection", "close")


class _Answer:
    """Sends an answer with the headers that every answer has."""

    def __init__(self, send: Send, scope: Scope, *, is_tls: bool) -> None:
        self._send = send
        self._path = scope["path"]
        self._has_version = scope.get("query_string", b"").startswith(b"v=")
        self._is_tls = is_tls
        self._has_begun = False

    async def __call__(self, message: Message) -> None:
        """Send a part of it."""
        if message["type"] == "http.response.start":
            self._has_begun = True
            headers = with_security(
                message.get("headers", ()), path=self._path, has_version=self._has_version, is_tls=self._is_tls
            )
            message = {**message, "headers": headers}
        await self._send(message)

    async def end(self, response: Response, scope: Scope, receive: Receive) -> None:
        """Send this response, unless another one has begun."""
        if not self._has_begun:
            await response(scope, receive, self)


def _refuse_forgery(request: HTTPConnection) -> Response | None:
    """Return the refusal of an unsafe request with a session that a page of distrain has not sent."""
    if "origin" not in request.headers:
        return problem(HTTPStatus.FORBIDDEN, "a request with a cookie that changes something needs the header Origin")
    if not hmac.compare_digest(request.headers.get("x-csrf-token", "").encode(), request.state.csrf.encode()):
        return problem(HTTPStatus.FORBIDDEN, "X-CSRF-Token is missing, or not that of this session; reload the page")
    return None


def _refuse_rate(wait_s: float) -> Response | None:
    if not wait_s:
        return None
    refusal = problem(HTTPStatus.TOO_MANY_REQUESTS, "too many requests; try again in a moment")
    return _with_header(refusal, "Retry-After", str(int(wait_s) + 1))


def _unauthorized(request: HTTPConnection, sentence: str) -> Response:
    path = request.scope["path"]
    if request.scope["method"] in {"GET", "HEAD"} and not path.startswith(_PROGRAMS):
        return RedirectResponse(_login_for(request), status_code=HTTPStatus.SEE_OTHER)
    return _with_header(problem(HTTPStatus.UNAUTHORIZED, sentence), "WWW-Authenticate", "Bearer")


def _login_for(request: HTTPConnection) -> str:
    """Return the address of the login that leads back to the page that was requested."""
    wanted = request.scope.get("raw_path", b"/").decode("latin-1")
    if query := request.scope.get("query_string", b"").decode("latin-1"):
        wanted += f"?{query}"
    return LOGIN_PAGE if wanted == "/" else f"{LOGIN_PAGE}?{urlencode({'next': wanted})}"


def _with_header(response: Response, name: str, value: str) -> Response:
    response.headers[name] = value
    return response
