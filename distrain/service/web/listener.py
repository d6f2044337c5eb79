"""Opens the socket on which the page listens: the first free port from 8765 on, a port as named, or a Unix socket."""

import errno
import os
import socket
import stat
from pathlib import Path

from distrain.errors import LaunchError, StorageError
from distrain.service.web.options import PORT, PageOptions
from distrain.system.leases import user_name

_TRIED_PORTS = 100
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def listen(options: PageOptions) -> socket.socket:
    """Return a socket that accepts connections from now on.

    Raises `LaunchError` where the port that was named, or each that was tried, is taken, and where there is no such
    address; `StorageError` where a Unix socket cannot be private at its path.
    """
    if options.uds is not None:
        return _listen_at(options.uds)
    if options.port is not None:
        return _listen_on(options.host, options.port)
    for port in range(PORT, PORT + _TRIED_PORTS):
        try:
            return _listen_on(options.host, port)
        except _PortTakenError:
            continue
    raise LaunchError(f"the ports {PORT} to {PORT + _TRIED_PORTS - 1} are all taken; name a free one with --port")


class _PortTakenError(LaunchError):
    """Another program listens on the port."""


def _listen_on(host: str, port: int) -> socket.socket:
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise LaunchError(f"--host {host} is not an address of this machine ({error})") from None
    listener = socket.socket(family, kind, protocol)  # with the protocol, asyncio turns off Nagle's delay
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # what connects before the page has started waits
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise _PortTakenError(
                f"--port {port} is in use by another program; choose another one, or omit --port to use a free one"
            ) from None
        raise LaunchError(f"the page cannot listen on {host}, port {port} ({error.strerror})") from None
    return listener


def _listen_at(path: Path) -> socket.socket:
    _check_folder(path.parent)
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)  # before anybody can connect
        listener.listen()
    except OSError as error:
        listener.close()
        raise StorageError(f"--uds {path}: no socket can be created there ({error.strerror or error})") from None
    return listener


def _check_folder(folder: Path) -> None:
    """Raise `StorageError` where another user could replace the socket by one of theirs."""
    try:
        status = folder.stat()
    except OSError:
        raise StorageError(f"--uds: there is no folder {folder}") from None
    if status.st_uid not in {0, os.geteuid()}:
        raise StorageError(f"--uds: {folder} belongs to {user_name(status.st_uid)}; name a socket in a folder of yours")
    if status.st_mode & _OTHERS_WRITE:
        raise StorageError(f"--uds: others can write to {folder}; name a socket in a folder that is yours alone")


def _remove_stale(path: Path) -> None:
    """Delete the socket of a `serve` that has ended; raises `StorageError` for anything else."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
        raise StorageError(f"--uds {path} exists and is not a socket of yours; name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise StorageError(f"--uds {path} cannot be used ({error.strerror})") from None
    raise StorageError(f"--uds {path} is used by another program; name another path")
