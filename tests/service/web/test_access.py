"""Who may use the page: the link, the token, sessions, hosts, origins and the headers of each answer."""

import html
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from distrain.service.web.options import PageOptions
from distrain.service.web.security import credentials, sessions, streams
from distrain.service.web.security.credentials import Credentials
from distrain.service.web.security.limits import Limits
from tests.service.web.pages import ShownPage, shown

PRIVATE = ["/", "/queue", "/runs/x", "/api/v1/runs", "/api/v1/openapi.json", "/docs", "/metrics", "/api/v1/events"]
PRIVATE += ["/runs/x/files/samples.png", "/static", "/loginx", "/api/v1/loginx", "/anything"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShownPage]:
    with shown(tmp_path_factory.mktemp("page") / "runs", limits=Limits(login_burst=1000)) as found:
        yield found


@pytest.mark.parametrize("path", PRIVATE)
def test_nothing_private_is_shown_without_a_session(page: ShownPage, path: str) -> None:
    with page.client() as client:
        answer, posted = client.get(path), client.post(path, json={})
    if path.startswith(("/api/", "/metrics")):
        assert answer.status_code == 401
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["www-authenticate"] == "Bearer"
    else:
        login = "/login" if path == "/" else f"/login?{urlencode({'next': path})}"
        assert (answer.status_code, answer.headers["location"]) == (303, login)
    assert posted.status_code == 401


def test_the_style_is_public_and_nothing_beside_it(page: ShownPage) -> None:
    with page.client() as client:
        assert client.get("/static/style.css").status_code == 200
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd"):
        with page.connect() as connection:  # a client of httpx would normalize the path
            head = f"GET {path} HTTP/1.1\r\nHost: {page.address[7:]}\r\nConnection: close\r\n\r\n"
            connection.sendall(head.encode())
            assert connection.makefile("rb").readline().split()[1] == b"404", path


def test_a_link_logs_in_once_and_looking_at_it_does_not_use_it_up(tmp_path: Path) -> None:
    with shown(tmp_path / "runs") as page, page.client() as client:
        for _ in range(3):  # the preview of a chat program
            assert page.code in client.get(page.link).text
        answer = client.post("/api/v1/login", data={"code": page.code}, headers={"Origin": "null"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"].lower()
        assert cookie.startswith(f"distrain-{page.address.rpartition(':')[2]}=")
        assert {"httponly", "samesite=strict", "path=/"} <= set(cookie.split("; "))
        assert "secure" not in cookie, "a browser would not send it by HTTP"
        assert "domain" not in cookie
        assert client.get("/").status_code == 200
        with page.client() as other:
            assert other.post("/api/v1/login", json={"code": page.code}).status_code == 403
            refused = other.post("/api/v1/login", data={"code": page.code})
            assert refused.status_code == 403
            assert "This link was used already" in refused.text
            assert other.get("/").status_code == 303


def test_a_code_expires(page: ShownPage) -> None:
    keys = Credentials(page.root)
    code = keys.new_code()
    (file,) = [path for path in (page.root / ".serve" / "codes").iterdir() if path.name == keys.digest("code", code)]
    long_ago = time.time() - credentials.CODE_LIFETIME_S - 1
    os.utime(file, (long_ago, long_ago))
    with page.client() as client:
        refused = client.post("/api/v1/login", json={"code": code})
        assert refused.status_code == 403
        assert "older than ten minutes" in refused.json()["detail"]


def test_a_login_leads_to_the_page_that_was_requested(page: ShownPage) -> None:
    wanted = "/?filter=state%3Drunning&sort=best"
    with page.client() as client:
        login = client.get(client.get(wanted).headers["location"])
        assert f'name="next" value="{html.escape(wanted)}"' in login.text
        wrong = client.post("/api/v1/login", data={"token": "x" * 43, "next": wanted})
        assert "This is not the token of this page" in wrong.text
        assert f'name="next" value="{html.escape(wanted)}"' in wrong.text
        answer = client.post("/api/v1/login", data={"token": page.token, "next": wanted})
        assert (answer.status_code, answer.headers["location"]) == (303, wanted)
        assert client.get(wanted).status_code in {200, 422}, "no run has a best evaluation"


@pytest.mark.parametrize(
    "address",
    [
        "https://evil.example",
        "//evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "/\t/evil.example",
        "evil",
        "",
        "///",
        "javascript:alert(1)",
        "/\r\nSet-Cookie: a=b",
        " //evil.example",
        "/" + "x" * 5000,
    ],
)
def test_a_login_leads_to_no_other_server(page: ShownPage, address: str) -> None:
    with page.client() as client:
        assert 'name="next" value="/"' in client.get("/login", params={"next": address}).text
        answer = client.post("/api/v1/login", data={"token": page.token, "next": address})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")


@pytest.mark.parametrize("secret", ["", "x", "wrong" * 10, "\x00", "é" * 50, "../token"])
def test_wrong_codes_and_tokens_are_refused(page: ShownPage, secret: str) -> None:
    with page.client() as client:
        for name in ("code", "token"):
            assert client.post("/api/v1/login", json={name: secret}).status_code == 403
        assert "set-cookie" not in client.get("/login", params={"code": secret}).headers
        header = f"Bearer {secret}".encode()
        if secret and b"\0" not in header:
            assert client.get("/api/v1/openapi.json", headers={b"Authorization": header}).status_code == 401


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"code": 5}', b'{"other": "x"}', b'{"code": "' + b"x" * 300 + b'"}']
)
def test_a_login_that_cannot_be_read_is_a_problem(page: ShownPage, body: bytes) -> None:
    with page.client() as client:
        answer = client.post("/api/v1/login", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422
        assert client.post("/api/v1/login", content=body, headers={"Content-Type": "text/plain"}).status_code == 415


def test_a_token_needs_no_cookie_origin_or_csrf_token(page: ShownPage) -> None:
    with page.with_token() as client:
        assert client.get("/").status_code == 200
        assert client.get("/api/v1/openapi.json").status_code == 200
        assert client.post("/api/v1/logout").status_code == 204
        assert client.get("/", headers={"Authorization": f"bearer  {page.token}"}).status_code == 200
        assert client.get("/api/v1/runs", headers={"Authorization": f"Basic {page.token}"}).status_code == 401
        assert client.post("/api/v1/logout", headers={"Origin": "http://evil.example"}).status_code == 403


def test_a_session_changes_something_only_with_its_origin_and_csrf_token(page: ShownPage) -> None:
    with page.logged_in() as client, page.logged_in() as other:
        csrf = client.headers["X-CSRF-Token"]
        refused: list[dict[str, str]] = [
            {"X-CSRF-Token": ""},
            {"X-CSRF-Token": "é"},
            {"X-CSRF-Token": other.headers["X-CSRF-Token"]},
            {"Origin": "null"},
            {"Origin": "http://evil.example"},
            {"Origin": page.address.replace("http:", "https:")},
            {"Origin": page.address + "0"},
            {"Origin": page.address.rpartition(":")[0]},
            {"Origin": page.address.replace("127.0.0.1", "localhost")},
        ]
        for headers in refused:
            encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
            assert client.post("/api/v1/logout", headers=encoded).status_code == 403, headers
        without = httpx.Client(
            base_url=page.address, cookies=client.cookies, headers={"X-CSRF-Token": csrf}, verify=False
        )
        assert without.post("/api/v1/logout").status_code == 403, "no Origin"
        without.close()
        assert f'content="{csrf}"' in client.get("/").text, "the page's scripts send this one"
        assert client.post("/api/v1/logout").status_code == 204
        assert client.get("/").status_code == 303, "the session has ended"
        assert other.get("/").status_code == 200


def test_a_session_ends_on_time(page: ShownPage, monkeypatch: pytest.MonkeyPatch) -> None:
    with page.logged_in() as client:
        begun, now = time.time(), time.time
        for hours in (11, 22, 33):  # each use extends it
            monkeypatch.setattr(time, "time", lambda hours=hours: now() + hours * 3600)
            assert client.get("/").status_code == 200
        monkeypatch.setattr(time, "time", lambda: now() + 33 * 3600 + sessions.IDLE_S + 1)
        assert client.get("/").status_code == 303
    assert time.time() > begun


def test_sessions_survive_a_restart_and_end_with_the_token(tmp_path: Path) -> None:
    root, options = tmp_path / "runs", PageOptions(uds=tmp_path / "page.sock")
    with shown(root, options) as page, page.client() as client:
        old = page.token
        assert client.post("/api/v1/login", json={"token": old}).status_code == 200
        ((name, secret),) = client.cookies.items()
    stored = (root / ".serve" / "sessions.json").read_text()
    assert old not in stored
    assert secret not in stored
    with shown(root, options) as page, page.client() as client:
        client.cookies.set(name, secret)
        assert page.token == old
        assert client.get("/").status_code == 200
        Credentials(root).renew()
        assert page.token != old
        assert client.get("/").status_code == 303
        assert client.get("/api/v1/x", headers={"Authorization": f"Bearer {old}"}).status_code == 401
        assert client.post("/api/v1/login", json={"code": page.code}).status_code == 403, "codes end with it, too"
        assert client.get("/", headers={"Authorization": f"Bearer {page.token}"}).status_code == 200


def test_without_its_secrets_the_page_is_for_nobody_until_they_are_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with shown(tmp_path / "runs") as page, page.logged_in() as client, page.with_token() as other:
        folder = page.root / ".serve"
        for change, back in (
            (lambda: folder.rename(tmp_path / "away"), lambda: (tmp_path / "away").rename(folder)),
            (lambda: (folder / "token").chmod(0o644), lambda: (folder / "token").chmod(0o600)),
        ):
            change()
            for one in (client, other):
                answer = one.get("/")
                assert answer.status_code == 503
                assert str(tmp_path) not in answer.text, "it is for the operator"
            assert str(folder) in caplog.text
            back()
            assert client.get("/").status_code == 200
            assert other.get("/").status_code == 200


def test_a_session_that_cannot_be_stored_lasts_as_long_as_serve(tmp_path: Path) -> None:
    with shown(tmp_path / "runs") as page:
        (page.root / ".serve" / "sessions.json").mkdir()  # no file can replace it
        with page.logged_in() as client:
            assert client.get("/").status_code == 200


def test_a_session_counts_at_one_port_alone(page: ShownPage) -> None:
    """A browser sends the cookies of a host to all of its ports, where another user may listen."""
    with page.logged_in() as client, shown(page.root.parent / "other") as other, other.client() as thief:
        (secret,) = client.cookies.values()
        (other.root / ".serve" / "token").write_text(page.token)
        thief.cookies.set(f"distrain-{other.address.rpartition(':')[2]}", secret)
        assert thief.get("/").status_code == 303
        assert thief.get("/", headers={"Authorization": f"Bearer {page.token}"}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "127.0.0.1",
        "localhost:1",
        "",
        "127.0.0.1:{port}.evil.example",
        f"127.0.0.1:{'9' * 5000}",
    ],
)
def test_a_foreign_host_is_refused(page: ShownPage, host: str) -> None:
    port = page.address.rpartition(":")[2]
    with page.with_token() as client:
        for path in ("/", "/login", "/static/style.css", "/api/v1/runs"):
            answer = client.get(path, headers={"Host": host.format(port=port)})
            assert answer.status_code == 400, path
            assert "location" not in answer.headers


def test_the_names_of_this_machine_are_known(page: ShownPage) -> None:
    port = page.address.rpartition(":")[2]
    with page.with_token() as client:
        for host in ("127.0.0.1", "localhost", "LOCALHOST", "[::1]"):
            assert client.get("/", headers={"Host": f"{host}:{port}"}).status_code == 200, host


def test_every_answer_has_the_headers(page: ShownPage) -> None:
    with page.with_token() as client:
        answers = [
            *(
                client.get(path)
                for path in ("/", "/login", "/static/style.css", "/static/none", "/none", "/api/v1/none")
            ),
            client.post("/"),
            client.request("TRACE", "/"),
            client.get("/", headers={"Host": "evil.example"}),
            client.get("/", headers={"Authorization": "Bearer x"}),
            client.post("/api/v1/login", json={"code": "x" * 10**6}),
        ]
    for answer in answers:
        _check_headers(answer)
    assert {answer.status_code for answer in answers} >= {200, 303, 404, 405, 413, 400}


def _check_headers(answer: httpx.Response) -> None:
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    expected: dict[str, Any] = {
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "cache-control": "no-cache" if answer.url.path.startswith("/static/") else "no-store",
    }
    assert {name: answer.headers.get(name) for name in expected} == expected, answer.url
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert "server" not in answer.headers


def test_the_login_cannot_be_tried_forever(tmp_path: Path) -> None:
    with shown(tmp_path / "runs") as page, page.client() as client:
        codes = [client.post("/api/v1/login", json={"token": "x" * 43}).status_code for _ in range(30)]
        assert codes[:10] == [403] * 10
        assert codes[-1] == 429
        assert int(client.post("/api/v1/login", json={}).headers["retry-after"]) >= 1
        assert client.get("/", headers={"Authorization": f"Bearer {page.token}"}).status_code == 200


def test_a_form_of_an_unknown_page_does_not_log_in(page: ShownPage) -> None:
    keys = Credentials(page.root)
    with page.client() as client:
        for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 303)):
            headers = {"Origin": "null", "Sec-Fetch-Site": site}
            assert client.post("/api/v1/login", data={"code": keys.new_code()}, headers=headers).status_code == status


def test_an_event_stream_ends_with_its_session(page: ShownPage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "CHECK_S", 0.1)
    with page.logged_in() as client, client.stream("GET", "/api/v1/events") as events:
        lines = events.iter_lines()
        assert next(lines).startswith("retry")
        assert client.post("/api/v1/logout").status_code == 204
        begun = time.monotonic()
        with suppress(httpx.RemoteProtocolError):  # it is cut off
            list(lines)
        assert time.monotonic() - begun < 5
