"""Holds the options of `distrain serve` that say where the page is, who may reach it, and what its requests may use."""

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from distrain.errors import LaunchError, StorageError

PORT = 8765
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class PageOptions:
    """Where the page listens, and what its requests may do; paths are absolute."""

    host: str = LOOPBACK
    port: int | None = None  # None: PORT, or the next one that is free
    uds: Path | None = None  # a Unix socket instead of host and port
    tls_cert: Path | None = None
    tls_key: Path | None = None
    is_insecure: bool = False  # whether other machines may reach the page without TLS
    allowed_hosts: tuple[str, ...] = ()  # further names, with or without a port, by which browsers reach the page
    data_roots: tuple[Path, ...] = ()
    allow_code: bool = False

    def check(self) -> None:
        """Raise a `UserError` where the options contradict each other, or a file or folder is missing."""
        if self.uds is not None and (self.host != LOOPBACK or self.port is not None or self.tls_cert is not None):
            raise LaunchError("--uds cannot be combined with --host, --port or --tls-cert; omit one or the other")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise LaunchError("--tls-cert and --tls-key go together; give both files")
        if not (self.is_tls or self.is_insecure or is_loopback(self.host)):
            raise LaunchError(
                f"--host {self.host} lets other machines reach the page, and what they send could be read on the way; "
                f"add --tls-cert FILE --tls-key FILE, or --insecure where the network is trusted"
            )
        for name in self.allowed_hosts:
            if not name or any(mark in name for mark in "/@ *"):
                raise LaunchError(f"--allow-host {name!r} is not the name of a host, such as gpu1.example.org")
        for option, path in (("--tls-cert", self.tls_cert), ("--tls-key", self.tls_key)):
            if path is not None and not path.is_file():
                raise StorageError(f"{option} {path}: there is no such file")
        if self.tls_cert is not None:
            self._check_certificate()
        for path in self.data_roots:
            if not path.is_dir():
                raise StorageError(f"--data-root {path}: there is no such folder")

    def _check_certificate(self) -> None:
        import ssl  # takes time to import

        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(str(self.tls_cert), str(self.tls_key))
        except (OSError, ssl.SSLError) as error:
            raise StorageError(
                f"--tls-cert {self.tls_cert} and --tls-key {self.tls_key} cannot be used "
                f"({error.strerror or error}); they must be a certificate and its key in PEM, without a password"
            ) from None

    @property
    def is_tls(self) -> bool:
        """Whether the page is served by HTTPS."""
        return self.tls_cert is not None

    @property
    def arguments(self) -> list[str]:
        """The options as words of a command line, without those that have their default."""
        named: list[tuple[str, object]] = [
            ("host", self.host if self.host != LOOPBACK else None),
            *(("port", self.port), ("uds", self.uds), ("tls-cert", self.tls_cert), ("tls-key", self.tls_key)),
            *(("allow-host", name) for name in self.allowed_hosts),
            *(("data-root", path) for path in self.data_roots),
        ]
        flags = (("--insecure", self.is_insecure), ("--allow-code", self.allow_code))
        return [
            *(f"--{name}={value}" for name, value in named if value is not None),
            *(flag for flag, is_set in flags if is_set),
        ]


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine can reach an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
