"""Shows the page in a thread beside the queue, which neither waits for it nor ends with it."""

import asyncio
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from distrain.messages import type_and_first_line
from distrain.service.web.listener import listen
from distrain.service.web.options import PageOptions
from distrain.service.web.security.addresses import Addresses, find_addresses
from distrain.service.web.security.credentials import Credentials
from distrain.service.web.security.limits import Limits

if TYPE_CHECKING:
    from ssl import SSLContext

    import uvicorn

_END_S = 2.0  # for all requests
_GRACE_S = 1  # then they are cancelled, event streams too
_BACKLOG = 128
_TLS_S = 5.0


@contextmanager
def page(
    root: Path,
    options: PageOptions,
    *,
    slots: int,
    notify: Callable[[str], None],
    announce: Callable[[str], None],
    limits: Limits | None = None,
) -> Iterator[None]:
    """Show the page of the runs in `root` while the block runs.

    `announce` is called with a link that logs in once. What takes time, and what could fail later, happens in a thread:
    there `notify` is called with a sentence. Raises a `UserError` where the secrets are not private, or the port is
    taken.
    """
    credentials = Credentials(root)
    credentials.create()
    listener = listen(options)
    addresses = find_addresses(options, listener)
    credentials.write_address(addresses.link)
    announce(credentials.login_link(addresses.link))
    thread = _PageThread(root, options, listener, addresses, slots=slots, limits=limits or Limits(), notify=notify)
    thread.start()
    try:
        yield
    finally:
        thread.end()
        credentials.forget_address()
        if options.uds is not None:
            options.uds.unlink(missing_ok=True)


@contextmanager
def no_page(root: Path) -> Iterator[None]:
    """Show no page while the block runs; one that was killed may have left its address."""
    Credentials(root).forget_address()
    yield


def has_hanging_requests() -> bool:
    """Whether threads of requests do not end, for which Python would wait at its exit."""
    deadline = time.monotonic() + _END_S / 4
    main = threading.main_thread()
    threads = [thread for thread in threading.enumerate() if thread is not main and not thread.daemon]
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return any(thread.is_alive() for thread in threads)


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that does not wait long for clients that begin or end TLS slowly: a minute by default."""

    async def create_server(  # type: ignore[override]  # as uvicorn calls it
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        *,
        sock: socket.socket,
        ssl: "SSLContext | None",
        backlog: int,
    ) -> asyncio.Server:
        """Return a server on a socket."""
        limit_s = None if ssl is None else _TLS_S
        return await super().create_server(
            protocol_factory,
            sock=sock,
            ssl=ssl,
            backlog=backlog,
            ssl_handshake_timeout=limit_s,
            ssl_shutdown_timeout=limit_s,
        )


class _PageThread(threading.Thread):
    """Runs the web server on a socket until `end`."""

    def __init__(
        self,
        root: Path,
        options: PageOptions,
        listener: socket.socket,
        addresses: Addresses,
        *,
        slots: int,
        limits: Limits,
        notify: Callable[[str], None],
    ) -> None:
        super().__init__(name="distrain-page", daemon=True)
        self._root = root
        self._options = options
        self._listener = listener
        self._addresses = addresses
        self._slots = slots
        self._limits = limits
        self._notify = notify
        self._server: uvicorn.Server | None = None
        self._is_over = False

    def run(self) -> None:
        """Run the server; an error ends the page alone."""
        try:
            self._server = self._make_server()
            if not self._is_over:
                with asyncio.Runner(loop_factory=_Loop) as runner:
                    runner.run(self._server.serve(sockets=[self._listener]))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the queue continues
            self._notify(f"the page has ended ({type_and_first_line(error)}); the queue continues without it")
        finally:
            self._listener.close()

    def end(self) -> None:
        """End the server with all its connections, in two seconds at most."""
        self._is_over = True
        if self._server is not None:
            self._server.should_exit = True
        self.join(_END_S)

    def _make_server(self) -> "uvicorn.Server":
        """Return the server of the page; what it imports takes a second."""
        import uvicorn

        from distrain.service.web.app import create_app
        from distrain.service.web.protocol import protocol
        from distrain.service.web.security.guard import Access, guarded
        from distrain.service.web.security.sessions import Sessions
        from distrain.service.web.site import Site

        options, credentials, limits = self._options, Credentials(self._root), self._limits
        site = Site(root=self._root, slots=self._slots, data_roots=options.data_roots, allow_code=options.allow_code)
        access = Access(
            credentials=credentials,
            sessions=Sessions(credentials, cookie=self._addresses.cookie),
            addresses=self._addresses,
            limits=limits,
        )
        config = uvicorn.Config(
            guarded(create_app(site), access),
            http=protocol(limits),
            ws="none",
            lifespan="off",
            backlog=_BACKLOG,
            log_config=None,
            log_level="critical",  # the guard reports errors; addresses of requests, which may hold codes, are not kept
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=math.ceil(limits.head_s),
            timeout_graceful_shutdown=_GRACE_S,
            ssl_certfile=options.tls_cert,
            ssl_keyfile=options.tls_key,
        )
        return uvicorn.Server(config)
