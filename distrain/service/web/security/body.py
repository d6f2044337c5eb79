"""Limits the size of the body of a request, and the time in which it arrives."""

import asyncio
import time

from fastapi import HTTPException
from starlette.types import Message, Receive

from distrain.service.web.security.limits import Limits


class LimitedBody:
    """Receives the body of a request, and raises an `HTTPException` where it is too large or too slow."""

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive = receive
        self._limits = limits
        self._num_bytes = 0
        self._is_whole = False
        self._deadline: float | None = None  # from the first wait for it on

    async def __call__(self) -> Message:
        """Return the next message."""
        if self._is_whole:  # what comes now is the client's disconnection
            return await self._receive()
        now = time.monotonic()
        self._deadline = self._deadline or now + self._limits.body_s
        try:
            message = await asyncio.wait_for(self._receive(), self._deadline - now)
        except TimeoutError:
            raise HTTPException(
                408, "the body of the request did not arrive in time", {"Connection": "close"}
            ) from None
        self._num_bytes += len(message.get("body", b""))
        self._is_whole = not message.get("more_body", False)
        if self._num_bytes > self._limits.body_bytes:
            raise HTTPException(413, too_large(self._limits), {"Connection": "close"})
        return message


def too_large(limits: Limits) -> str:
    """Return the sentence on a body that is too large."""
    return f"the body of the request is larger than {limits.body_bytes // 1024} KiB"
