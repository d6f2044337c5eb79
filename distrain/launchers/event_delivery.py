"""Calls a webhook or a command with events, in a thread of its own that no run waits for longer than a few seconds."""

import http.client
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from distrain.config.user_settings import EventHandler
from distrain.system.files import strict_json

MAX_WAITING = 32  # events; the oldest are dropped
_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0)  # between two tries of one event
_WEBHOOK_TIMEOUT_S = 10.0
_COMMAND_TIMEOUT_S = 60.0
_TRY_AGAIN = {408, 425, 429}  # status codes below 500 that another try may change: RFC 9110, 6585 and 8470
_VARIABLE = re.compile(r"\$\{(\w+)\}")

Payload = Mapping[str, Any]


class _DeliveryError(Exception):
    """The event was not delivered, and another try may succeed; the message contains no address and no secret."""


class _FinalDeliveryError(Exception):
    """The event was not delivered, and no other try would succeed."""


class EventDelivery:
    """Delivers events to one handler, in their order; the first failure is reported, later ones are not."""

    def __init__(self, handler: EventHandler, title: str, *, report: Callable[[str], None]) -> None:
        self.handler = handler
        self._title = title
        self._report = report
        self._waiting = deque[Payload](maxlen=MAX_WAITING)
        self._changed = threading.Condition()
        self._deadline_s: float | None = None  # of the monotonic clock, once the run has ended
        self._thread: threading.Thread | None = None
        self._command: subprocess.Popen[bytes] | None = None
        self._has_failed = False

    def add(self, payload: Payload) -> None:
        """Deliver an event soon; returns at once."""
        with self._changed:
            self._waiting.append(payload)
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="distrain-events", daemon=True)
                self._thread.start()

    def end(self, deadline_s: float) -> None:
        """Begin to deliver the last events, up to a time of the monotonic clock; returns at once."""
        with self._changed:
            self._deadline_s = deadline_s
            self._changed.notify_all()

    def close(self) -> None:
        """Wait until all events are delivered, at most up to the time that `end` was given; then kill the command."""
        if self._thread is None:
            return
        self._thread.join(max(0.0, self._left_s()))
        if self._thread.is_alive():
            self._fail("the run has ended")
            self._kill()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._deadline_s is not None)
                if not self._waiting:
                    return
                payload = self._waiting.popleft()
            try:
                fault = self._deliver(payload)
            except Exception as error:  # noqa: BLE001 - its message may contain a secret
                fault = type(error).__name__
            if fault is not None:
                self._fail(fault)

    def _deliver(self, payload: Payload) -> str | None:
        """Deliver an event in several tries; returns why it could not be delivered."""
        for pause_s in (*_PAUSES_S, None):
            if self._left_s() <= 0:
                return "the run has ended"
            try:
                if self.handler.webhook is not None:
                    self._post(self.handler.webhook, payload)
                elif self.handler.command is not None:
                    self._run(self.handler.command, payload)
            except _FinalDeliveryError as error:
                return str(error)
            except _DeliveryError as error:
                if pause_s is None or not self._pause(pause_s):
                    return str(error)
            else:
                return None
        return None

    def _pause(self, seconds: float) -> bool:
        """Wait before the next try, shorter when the run ends meanwhile; returns False where no time is left."""
        with self._changed:
            if self._deadline_s is None:
                self._changed.wait_for(lambda: self._deadline_s is not None, seconds)
                return True
        if self._left_s() <= seconds:
            return False
        time.sleep(seconds)
        return True

    def _left_s(self) -> float:
        return float("inf") if self._deadline_s is None else self._deadline_s - time.monotonic()

    def _post(self, address: str, payload: Payload) -> None:
        url = _expand(address)
        if not url.startswith(("http://", "https://")):
            raise _FinalDeliveryError("its address does not begin with http:// or https://")
        try:
            request = urllib.request.Request(
                url,
                data=strict_json(payload).encode(),
                headers={"Content-Type": "application/json", "User-Agent": "distrain"},
            )
            timeout_s = max(0.1, min(_WEBHOOK_TIMEOUT_S, self._left_s()))
            opener = urllib.request.build_opener()  # `urlopen` would keep the proxies of this process's first request
            with opener.open(request, timeout=timeout_s) as response:
                if response.geturl() != request.full_url:  # it was redirected, which loses the content of a POST
                    raise _FinalDeliveryError("its address redirects to another one")
        except urllib.error.HTTPError as error:
            error.close()
            kind = _DeliveryError if error.code >= 500 or error.code in _TRY_AGAIN else _FinalDeliveryError
            raise kind(f"it answers {error.code} {http.client.responses.get(error.code, '')}".rstrip()) from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise _DeliveryError(f"it cannot be reached ({getattr(reason, 'strerror', None) or reason})") from None
        except (http.client.HTTPException, ValueError) as error:  # whose message may contain the address
            raise _DeliveryError(f"it does not speak HTTP ({type(error).__name__})") from None

    def _run(self, line: str, payload: Payload) -> None:
        with tempfile.TemporaryFile() as errors:
            try:
                command = self._command = subprocess.Popen(
                    ["sh", "-c", line],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    env={**os.environ, **_variables(payload)},
                    start_new_session=True,
                )
                timeout_s = max(0.1, min(_COMMAND_TIMEOUT_S, self._left_s()))
                with suppress(BrokenPipeError):  # it does not read
                    command.communicate(strict_json(payload).encode(), timeout=timeout_s)
                code = command.wait(timeout_s)
            except subprocess.TimeoutExpired:
                raise _FinalDeliveryError("it did not end in time and was killed") from None
            except OSError as error:
                raise _DeliveryError(f"it could not be started ({error.strerror})") from None
            finally:
                self._kill()
            if code:
                errors.seek(0)
                last = (errors.read().decode(errors="replace").strip().splitlines() or [""])[-1]
                raise _DeliveryError(f"it ended with exit code {code}{last and f': {last}'}")

    def _kill(self) -> None:
        """Kill the command, if it is still running, with all that it has started."""
        if (command := self._command) is not None and command.poll() is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(command.pid, signal.SIGKILL)
            command.wait()

    def _fail(self, fault: str) -> None:
        if not self._has_failed:
            self._has_failed = True
            self._report(f"{self._title}: an event was not delivered, {fault}; later failures are not reported")


def _expand(text: str) -> str:
    """Replace `${NAME}` by environment variables; raises `_FinalDeliveryError` for one that is not set."""
    if missing := [name for name in _VARIABLE.findall(text) if name not in os.environ]:
        raise _FinalDeliveryError(f"the environment variable {missing[0]} is not set where the run was started")
    return _VARIABLE.sub(lambda match: os.environ[match.group(1)], text)


def _variables(payload: Payload) -> dict[str, str]:
    """Return the environment variables of a command: all of an event but its metrics."""
    texts = {name: value for name, value in payload.items() if isinstance(value, str | int | float)}
    return {f"DISTRAIN_{name.upper()}": str(value) for name, value in texts.items()}
