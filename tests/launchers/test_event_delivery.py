"""Webhooks and commands get each event, also after failures, and never delay the end for longer than allowed."""

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from distrain.config.user_settings import EventHandler, read_user_settings
from distrain.errors import LaunchError
from distrain.launchers import event_delivery
from distrain.launchers.event_delivery import MAX_WAITING, EventDelivery
from tests.cli_runner import wait_until


class Server:
    """A webhook on the loopback interface, which answers with these codes, one after the other, then with 200."""

    def __init__(self, codes: list[int]) -> None:
        self.codes = codes
        self.received: list[dict[str, Any]] = []
        self.paths: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                code = server.codes.pop(0) if server.codes else 200
                server.paths.append(self.path)
                if code == 200:
                    server.received.append(body)
                self.send_response(code)
                if code == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._http = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/hook"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server([])
    yield server
    server.close()


def deliver(handler: EventHandler, count: int = 1, *, within_s: float = 20.0) -> list[str]:
    """Deliver events to a handler, as at the end of a run; returns what was reported."""
    reports = list[str]()
    delivery = EventDelivery(handler, "entry 1", report=reports.append)
    for number in range(count):
        delivery.add({"event": "failed", "step": number, "message": "a 'word' $HOME", "metrics": {"val/loss": 0.5}})
    delivery.end(time.monotonic() + within_s)
    delivery.close()
    return reports


def test_webhook_that_fails_twice_gets_the_event_with_the_third_try(server: Server) -> None:
    server.codes = [503, 429]
    assert deliver(EventHandler(webhook=server.url), 2) == []
    assert [payload["step"] for payload in server.received] == [0, 1]
    assert server.received[0]["metrics"] == {"val/loss": 0.5}
    assert len(server.paths) == 4


def test_webhook_is_reached_whatever_proxy_an_earlier_request_of_the_process_has_used(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = urllib.request.build_opener(urllib.request.ProxyHandler({"http": "http://127.0.0.1:9"}))
    monkeypatch.setattr(urllib.request, "_opener", nowhere)
    assert deliver(EventHandler(webhook=server.url)) == []
    assert len(server.received) == 1


def test_end_of_the_run_does_not_wait_for_the_pause_of_an_earlier_failure(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_delivery, "_PAUSES_S", (3600.0,))
    server.codes = [503]
    delivery = EventDelivery(EventHandler(webhook=server.url), "entry 1", report=pytest.fail)
    delivery.add({"event": "failed"})
    wait_until(lambda: len(server.paths) == 1, "the first try")
    delivery.end(time.monotonic() + 20)
    delivery.close()
    assert server.received == [{"event": "failed"}]


@pytest.mark.parametrize(
    ("code", "words"), [(404, "it answers 404 Not Found"), (302, "its address redirects to another one")]
)
def test_answer_that_no_other_try_changes_is_final(server: Server, code: int, words: str) -> None:
    server.codes = [code]
    reports = deliver(EventHandler(webhook=server.url))
    assert reports == [f"entry 1: an event was not delivered, {words}; later failures are not reported"]
    assert len(server.paths) == 1


def test_secret_of_an_address_is_expanded_when_it_is_sent_and_never_reported(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_delivery, "_PAUSES_S", (0.01,))
    monkeypatch.setenv("HOOK", f"{server.url}?token=s3cret")
    assert deliver(EventHandler(webhook="${HOOK}")) == []
    assert server.paths == ["/hook?token=s3cret"]
    for wrong in (
        "http://127.0.0.1:1/s3cret",
        "http://127.0.0.1:s3cret/",
        "s3cret",
        "http://[s3cret",
        "file:///s3cret",
    ):
        monkeypatch.setenv("HOOK", wrong)
        (report,) = deliver(EventHandler(webhook="${HOOK}"))
        assert "s3cret" not in report
    monkeypatch.delenv("HOOK")
    (report,) = deliver(EventHandler(webhook="${HOOK}"))
    assert "the environment variable HOOK is not set where the run was started" in report


def test_command_gets_the_event_on_standard_input_and_in_variables(tmp_path: Path) -> None:
    shown = 'printf "%s/%s/%s" "$DISTRAIN_EVENT" "$DISTRAIN_STEP" "$DISTRAIN_MESSAGE"'
    line = f"cat > {tmp_path}/stdin; {shown} > {tmp_path}/env"
    assert deliver(EventHandler(command=line)) == []
    assert json.loads((tmp_path / "stdin").read_text())["metrics"] == {"val/loss": 0.5}
    assert (tmp_path / "env").read_text() == "failed/0/a 'word' $HOME"
    assert deliver(EventHandler(command="true"), MAX_WAITING) == []  # it does not read


def test_command_that_fails_is_tried_again_and_reported_once_with_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_delivery, "_PAUSES_S", (0.01, 0.01))
    reports = deliver(EventHandler(command=f"echo x >> {tmp_path}/tries; echo no >&2; echo such user >&2; exit 3"), 2)
    assert reports == [
        "entry 1: an event was not delivered, it ended with exit code 3: such user; later failures are not reported"
    ]
    assert (tmp_path / "tries").read_text() == "x\n" * 6


def test_command_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    delivery = EventDelivery(
        EventHandler(command=f"sleep 600 & echo $! $$ > {pids}; wait; sleep 600"), "entry 1", report=lambda _: None
    )
    delivery.add({"event": "started"})
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2, "the command")
    found = [int(pid) for pid in pids.read_text().split()]
    delivery.add({"event": "finished"})
    delivery.end(time.monotonic() + 0.2)
    delivery.close()
    wait_until(lambda: not any(map(psutil.pid_exists, found)), "the end of the command")


def test_events_that_wait_are_limited_and_the_newest_are_kept(server: Server, tmp_path: Path) -> None:
    go = tmp_path / "go"
    line = f"cat >> {tmp_path}/got; echo >> {tmp_path}/got; while [ ! -e {go} ]; do sleep 0.05; done"
    delivery = EventDelivery(EventHandler(command=line), "entry 1", report=pytest.fail)
    delivery.add({"step": -1})
    wait_until((tmp_path / "got").exists, "the first event")
    for step in range(3 * MAX_WAITING):
        delivery.add({"step": step})
    go.touch()
    delivery.end(time.monotonic() + 60)
    delivery.close()
    got = [json.loads(line)["step"] for line in (tmp_path / "got").read_text().splitlines()]
    assert got == [-1, *range(2 * MAX_WAITING, 3 * MAX_WAITING)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("on_event: [", "is not valid YAML"),
        ("on_events: []", "did you mean on_event"),
        ("on_event: [{events: [failed]}]", "needs either webhook or command"),
        ("on_event: [{command: x, webhook: 'http://x'}]", "needs either webhook or command"),
        ("on_event: [{webhook: 's3cret.example.org'}]", "does not begin with http:// or https://"),
        ("on_event: [{command: x, events: [fail]}]", "failed"),
        ("on_event: {command: x}", "a list"),
    ],
)
def test_wrong_settings_are_one_sentence_without_secrets(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(LaunchError) as error:
        read_user_settings(path)
    (line,) = str(error.value).splitlines()
    assert str(path) in line
    assert words in line
    assert "s3cret" not in line


def test_settings_that_do_not_exist_or_are_empty_name_nobody(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    assert read_user_settings(path).on_event == ()
    path.write_text("# nothing yet\n")
    assert read_user_settings(path).on_event == ()
