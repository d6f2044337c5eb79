"""What one client can demand of the page, with real sockets: slow, silent, greedy and vanished ones."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from distrain.service.web import app as web_app
from distrain.service.web.security.limits import Buckets, Limits
from distrain.service.web.site import Site
from tests.service.web.pages import ShownPage, shown, wait_for_end

SHORT = Limits(
    body_bytes=10_000,
    body_s=0.5,
    head_s=0.5,
    stall_s=0.5,
    streams=3,
    connections=20,
    requests_per_s=20,
    burst=40,
    login_burst=1000,
)
MEBIBYTE = b"x" * (1 << 20)


def with_probes(site: Site) -> FastAPI:
    """The application of the page, with requests that a fault could look like."""
    app = web_app_create(site)

    @app.post("/api/v1/probe/body")
    def _body(body: dict[str, str]) -> int:
        return len(body)

    @app.get("/api/v1/probe/fail")
    def _fail(secret: str) -> None:
        raise ValueError(f"a fault\nwith {len(secret)} characters")

    @app.get("/api/v1/probe/large")
    def _large() -> StreamingResponse:
        return StreamingResponse(MEBIBYTE for _ in range(1000))

    @app.get("/api/v1/events")
    async def _events() -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            while True:
                yield b"data: x\n\n"
                await asyncio.sleep(0.05)

        return StreamingResponse(lines(), media_type="text/event-stream")

    return app


web_app_create = web_app.create_app


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ShownPage]:
    monkeypatch.setattr(web_app, "create_app", with_probes)
    with shown(tmp_path / "runs", limits=SHORT) as found:
        yield found


def head(page: ShownPage, first: str, *more: str) -> bytes:
    lines = [first, f"Host: {page.address[7:]}", f"Authorization: Bearer {page.token}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


def status(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as answer:
        return answer.readline().split()[1]


def test_a_body_is_limited_with_a_length_and_without(page: ShownPage) -> None:
    with page.with_token() as client:
        assert client.post("/api/v1/probe/body", json={"a": "x" * 9000}).status_code == 200
        refused = client.post("/api/v1/probe/body", json={"a": "x" * 11000})
        assert refused.status_code == 413
        assert refused.headers["content-type"] == "application/problem+json"
    for sent in (
        head(page, "POST /api/v1/probe/body HTTP/1.1", "Transfer-Encoding: chunked")
        + b"".join(b"400\r\n" + b"x" * 1024 + b"\r\n" for _ in range(11)),
        head(page, "POST /api/v1/probe/body HTTP/1.1", f"Content-Length: {10**15}"),
        b"POST /api/v1/login HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\nContent-Length: 99999"
        b"\r\n\r\n" % int(page.address.rpartition(":")[2]) + b"x" * 11000,
    ):
        with page.connect() as connection:
            connection.sendall(sent)
            assert status(connection) == b"413"


def test_a_body_that_does_not_arrive_is_not_waited_for(page: ShownPage) -> None:
    with page.connect() as connection:
        connection.sendall(head(page, "POST /api/v1/probe/body HTTP/1.1", "Content-Length: 100") + b"{")
        assert status(connection) == b"408"
        assert wait_for_end(connection, 5) < 3


def test_a_body_that_trickles_in_after_the_answer_ends_the_connection(page: ShownPage) -> None:
    with page.connect() as connection:
        connection.sendall(b"POST /api/v1/runs HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")
        begun = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - begun < 10:
                connection.sendall(b"x")
                time.sleep(0.1)


@pytest.mark.parametrize("part", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_a_head_that_does_not_arrive_ends_the_connection(page: ShownPage, part: bytes) -> None:
    with page.connect() as connection:
        connection.sendall(part)
        assert wait_for_end(connection, 5) < 3


def test_a_head_that_trickles_in_ends_the_connection(page: ShownPage) -> None:
    begun = time.monotonic()
    with page.connect() as connection, pytest.raises(OSError):
        connection.sendall(b"GET / HTTP/1.1\r\n")
        while time.monotonic() - begun < 10:
            connection.sendall(b"X-Y: z\r\n")
            time.sleep(0.1)
    assert time.monotonic() - begun < 5


def test_a_head_that_is_too_long_is_refused(page: ShownPage) -> None:
    for sent in (b"GET /" + b"x" * 200_000, b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000):
        with page.connect() as connection:
            connection.sendall(sent)
            assert status(connection) == b"400"


def test_a_client_that_takes_nothing_of_an_answer_is_dropped(page: ShownPage) -> None:
    with page.connect() as connection:
        connection.sendall(head(page, "GET /api/v1/probe/large HTTP/1.1"))
        time.sleep(1.5)
        connection.settimeout(10)
        received = 0
        while part := connection.recv(1 << 16):  # what the kernel has taken for it
            received += len(part)
    assert received < 100 << 20, "of 1,000 MiB"


def test_more_connections_than_allowed_are_dropped_and_room_is_made_again(page: ShownPage) -> None:
    silent = [page.connect() for _ in range(30)]
    time.sleep(0.2)
    with page.connect() as connection:
        assert wait_for_end(connection, 5) < 0.4, "at once"
    time.sleep(1)
    with page.with_token() as client:
        assert client.get("/").status_code == 200
    for connection in silent:
        connection.close()


def test_event_streams_are_counted(page: ShownPage) -> None:
    def stream() -> socket.socket:
        connection = page.connect()
        connection.sendall(head(page, "GET /api/v1/events HTTP/1.1"))
        return connection

    streams = [stream() for _ in range(3)]
    assert [status(connection) for connection in streams] == [b"200"] * 3
    with stream() as another:
        assert status(another) == b"503"
    streams.pop().close()  # it has vanished
    time.sleep(0.5)
    with stream() as another:
        assert status(another) == b"200"
    for connection in streams:
        connection.close()


def test_requests_of_a_session_are_counted_and_others_have_their_own(page: ShownPage) -> None:
    with page.logged_in() as client, page.with_token() as other:
        codes = [client.get("/static/style.css").status_code for _ in range(60)]
        assert codes == [200] * 60, "what is public is not counted"
        codes = [client.get("/api/v1/openapi.json").status_code for _ in range(100)]
        assert codes[:40] == [200] * 40
        assert codes.count(429) > 20
        assert other.get("/api/v1/openapi.json").status_code == 200
        time.sleep(0.3)
        assert client.get("/api/v1/openapi.json").status_code == 200


def test_a_bucket_fills_again_and_forgets_old_keys() -> None:
    buckets = Buckets(1000.0, 2)
    assert [buckets.take("a") == 0 for _ in range(3)] == [True, True, False]
    assert buckets.take("b") == 0
    time.sleep(0.01)
    assert buckets.take("a") == 0
    for number in range(3000):
        buckets.take(str(number))
    assert len(buckets._filled) <= 1000


def test_an_error_of_the_page_ends_one_request_and_keeps_its_secret(
    page: ShownPage, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with page.with_token() as client:
        answer = client.get("/api/v1/probe/fail", params={"secret": "hidden-secret"})
        assert answer.status_code == 500
        assert "a fault" not in answer.text
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert client.get("/").status_code == 200
    out, err = capfd.readouterr()
    assert "GET /api/v1/probe/fail" in caplog.text
    for secret in ("hidden-secret", page.token, page.code):
        assert secret not in out + err + caplog.text


def test_the_page_ends_in_two_seconds_with_open_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_app, "create_app", with_probes)
    with shown(tmp_path / "runs") as page:
        stream, half = page.connect(), page.connect()
        stream.sendall(head(page, "GET /api/v1/events HTTP/1.1"))
        assert status(stream) == b"200"
        half.sendall(b"GET / HT")
        begun = time.monotonic()
    assert time.monotonic() - begun < 3
    assert wait_for_end(stream, 5) < 1
    assert wait_for_end(half, 5) < 1
    assert not [thread for thread in threading.enumerate() if thread.name == "distrain-page"]
    assert page.said == []
    for connection in (stream, half):
        connection.close()
    with pytest.raises(httpx.ConnectError):
        page.client().get("/")


def test_a_client_that_vanishes_within_a_body_is_no_error(page: ShownPage, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        with page.connect() as connection:
            name = page.address.partition("//")[2]
            lines = (f"Host: {name}", "Content-Type: application/json", "Content-Length: 100", "", "{")
            connection.sendall("\r\n".join(("POST /api/v1/login HTTP/1.1", *lines)).encode())
            time.sleep(0.1)
    with page.client() as client:
        assert client.get("/login").status_code == 200
    assert not caplog.records
