"""A real browser that looks at the page of a real `distrain serve`, and reports what no page should do."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.cli_runner import command

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium, which shows the pages")
WIDE, PHONE = {"width": 1400, "height": 900}, {"width": 390, "height": 844}
_WAIT_MS = 30_000


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Served:
    """A folder of runs, and the `distrain serve` that runs its queue and shows it."""

    root: Path
    address: str
    token: str

    @contextmanager
    def visit(self, browser: Browser, **options: Any) -> Iterator["Visitor"]:
        """A browser that is logged in; fails afterwards where a page did what none should do."""
        context = browser.new_context(**{"viewport": WIDE, **options})
        context.set_default_timeout(_WAIT_MS)
        visitor = Visitor(context, self.address)
        page = visitor.open("/login")
        page.get_by_label("Or paste the token").fill(self.token)
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("heading", name="Runs", exact=True).wait_for()
        page.close()
        yield visitor
        context.close()
        assert visitor.faults == []


@dataclass
class Visitor:
    """One who looks at pages; `faults` are errors of the console, and requests to other servers."""

    context: BrowserContext
    address: str
    faults: list[str] = field(default_factory=list)

    def open(self, path: str) -> Page:
        page = self.context.new_page()
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("dialog", lambda dialog: self.faults.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: self._check(request.url))
        page.goto(f"{self.address}{path}")
        return page

    def _note(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"}:
            self.faults.append(f"{kind}: {text}")

    def _check(self, url: str) -> None:
        if not url.startswith((f"{self.address}/", "data:", "blob:")):
            self.faults.append(f"request: {url}")


@contextmanager
def served(root: Path, *options: str, port: int | None = None) -> Iterator[Served]:
    """Run `distrain serve` for a folder, with devices of its own; at a free port where none is given."""
    port = port or find_free_port()
    env = {**os.environ, "DISTRAIN_LOCK_DIR": str(root.parent / "locks"), "HOME": str(root.parent)}
    words = command("serve", f"--root={root}", f"--port={port}", "--slots=2", *options)
    log = root.parent / "serve.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            words, cwd=root.parent, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        token = root / ".serve" / "token"
        deadline = time.monotonic() + 60
        while "page  " not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield Served(root, f"http://127.0.0.1:{port}", token.read_text().strip())
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        _end_runs(root)


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def find_violations(page: Page) -> list[str]:
    """Return what axe finds wrong with a page, each with the elements."""
    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {[node['target'] for node in each['nodes']]}" for each in found]


def _end_runs(root: Path) -> None:
    for process in psutil.process_iter(["cmdline"]):
        if f"{root}{os.sep}" in " ".join(process.info["cmdline"] or []):
            process.kill()
