"""Knows the names and ports by which browsers reach the page: others may be those of a foreign site (DNS rebinding)."""

import hashlib
import socket
from dataclasses import dataclass
from pathlib import Path

from distrain.service.web.options import PORT, PageOptions, is_loopback

_LOCAL = ("127.0.0.1", "localhost", "[::1]")
_PORT_DIGITS = 5  # at most
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Where the page is; the values of the headers Host and Origin that its own pages and scripts send."""

    scheme: str
    host: str  # as in a link; a name where the page listens on all addresses
    port: int
    hosts: frozenset[str]  # of `Host`, in lower case
    names: frozenset[str]  # of `Host` with any port or none
    cookie: str  # the name of the session's cookie: browsers send cookies to all ports of a host

    @property
    def link(self) -> str:
        """The address for a browser."""
        return f"{self.scheme}://{self.host}{self._port}"

    @property
    def _port(self) -> str:
        return "" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}"

    def is_expected_host(self, value: str, *, reached: str | None) -> bool:
        """Whether a request's `Host` is one of the page; `reached` is the address at which it arrived.

        An address in numbers is that of this machine if the request arrived there: only names can be rebound.
        """
        value = value.lower()
        name, _, port = value.rpartition(":")
        has_port = bool(name) and port.isdecimal() and len(port) <= _PORT_DIGITS
        host = name if has_port else value
        if reached is not None and host == as_host(reached) and (int(port) if has_port else None) == self._sent_port:
            return True
        return value in self.hosts or value in self.names or host in self.names

    def is_own_origin(self, origin: str, *, host: str) -> bool:
        """Whether `Origin` is the page that `Host` names; a proxy in front of a named host may add the encryption."""
        schemes = {self.scheme, "https"} if self._is_named(host) else {self.scheme}
        return origin.lower() in {f"{scheme}://{host.lower()}" for scheme in schemes}

    @property
    def _sent_port(self) -> int | None:
        return None if self.port == _DEFAULT_PORTS[self.scheme] else self.port

    def _is_named(self, host: str) -> bool:
        return host.lower() not in self.hosts


def find_addresses(options: PageOptions, listener: socket.socket) -> Addresses:
    """Return the names of the page that listens on a socket."""
    scheme = "https" if options.is_tls else "http"
    if options.uds is not None:
        return Addresses(
            scheme=scheme,
            host="localhost",
            port=PORT,
            hosts=frozenset(),
            names=frozenset({*_LOCAL, *map(str.lower, options.allowed_hosts)}),  # behind a forwarded port
            cookie=f"distrain-{_short_digest(options.uds)}",
        )
    port = listener.getsockname()[1]
    is_everywhere = options.host in {"0.0.0.0", "::"}
    host = socket.gethostname() if is_everywhere else as_host(options.host)
    names = {*_LOCAL, host}
    if not is_loopback(options.host):
        names |= {socket.gethostname(), socket.getfqdn()}
    ports = {f":{port}", *([""] if port == _DEFAULT_PORTS[scheme] else [])}
    return Addresses(
        scheme=scheme,
        host=host,
        port=port,
        hosts=frozenset(f"{name.lower()}{port}" for name in names for port in ports),
        names=frozenset(map(str.lower, options.allowed_hosts)),
        cookie=f"{'__Host-' if options.is_tls else ''}distrain-{port}",
    )


def as_host(address: str) -> str:
    """Return an address as in a URL."""
    return f"[{address.lower()}]" if ":" in address else address.lower()


def _short_digest(path: Path) -> str:
    return hashlib.sha256(bytes(path)).hexdigest()[:8]
