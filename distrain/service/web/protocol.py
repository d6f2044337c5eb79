"""Speaks HTTP/1.1 with clients that may be slow, silent or gone: uvicorn's protocol with limits on time and number."""

import asyncio
import functools
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from distrain.service.web.security.limits import Limits


class LimitedProtocol(H11Protocol):
    """One connection: dropped where a request's head does not arrive, or an answer is not taken, in time."""

    def __init__(self, *, limits: Limits, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self._limits = limits
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn does
        """Begin to wait for a request."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            transport.abort()
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Handle a part of a request."""
        super().data_received(data)
        self._watch()

    def pause_writing(self) -> None:
        """Begin to wait for a client that takes nothing."""
        super().pause_writing()
        self._stall_timer = self.loop.call_later(self._limits.stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Go back to normal: the client has taken something."""
        super().resume_writing()
        _cancel(self._stall_timer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        _cancel(self._head_timer)
        _cancel(self._stall_timer)
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Drop the connection later, unless a whole head of a request has arrived and is being answered."""
        if self.cycle is not None and not self.cycle.response_complete:
            _cancel(self._head_timer)
            self._head_timer = None
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self._limits.head_s, self.transport.abort)


def protocol(limits: Limits) -> type[asyncio.Protocol]:
    """Return the protocol with these limits, as uvicorn takes it."""
    return functools.partial(LimitedProtocol, limits=limits)  # type: ignore[return-value] # it only calls it


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
