"""A page over real sockets, as `distrain serve` shows it, for the tests of the web room."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx

from distrain.service.web.options import PageOptions
from distrain.service.web.security.limits import Limits
from distrain.service.web.server import page


@dataclass
class ShownPage:
    """The page of the runs in `root`."""

    root: Path
    link: str  # logs in once
    options: PageOptions
    said: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return self.link.partition("/login")[0]

    @property
    def code(self) -> str:
        return parse_qs(urlsplit(self.link).query)["code"][0]

    @property
    def token(self) -> str:
        return (self.root / ".serve" / "token").read_text().strip()

    def client(self) -> httpx.Client:
        """A client that is not logged in."""
        uds = self.options.uds
        transport = None if uds is None else httpx.HTTPTransport(uds=str(uds))
        return httpx.Client(base_url=self.address, transport=transport, timeout=20, trust_env=False, verify=False)

    def with_token(self) -> httpx.Client:
        client = self.client()
        client.headers["Authorization"] = f"Bearer {self.token}"
        return client

    @contextmanager
    def logged_in(self) -> Iterator[httpx.Client]:
        """A client with a session, which sends what the page's scripts send."""
        with self.client() as client:
            answer = client.post("/api/v1/login", json={"token": self.token})
            assert answer.status_code == 200, answer.text
            client.headers.update({"X-CSRF-Token": answer.json()["csrf"], "Origin": self.address})
            yield client

    def connect(self) -> socket.socket:
        found = urlsplit(self.address)
        return socket.create_connection((found.hostname or "", found.port or 80), timeout=20)


@contextmanager
def shown(root: Path, options: PageOptions | None = None, *, limits: Limits | None = None) -> Iterator[ShownPage]:
    """Show the page of `root` while the block runs."""
    links: list[str] = []
    options = options or PageOptions()
    found = ShownPage(root, "", options)
    root.mkdir(exist_ok=True)
    with page(root, options, slots=2, notify=found.said.append, announce=links.append, limits=limits):
        (found.link,) = links
        yield found


def wait_for_end(connection: socket.socket, timeout_s: float) -> float:
    """Wait until the server has closed a connection; returns after how many seconds that was."""
    begun = time.monotonic()
    connection.settimeout(timeout_s)
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - begun
