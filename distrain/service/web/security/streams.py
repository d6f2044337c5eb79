"""Ends event streams with the session or the token that opened them: they last for minutes."""

import asyncio
from collections.abc import Callable

from starlette.types import Message, Receive

CHECK_S = 5.0  # between two looks at whether a client is still known


class RevocableReceive:
    """Receives from a client, and reports that it has disconnected as soon as it may not use the page any more."""

    def __init__(self, receive: Receive, is_allowed: Callable[[], bool]) -> None:
        self._receive = receive
        self._is_allowed = is_allowed

    async def __call__(self) -> Message:
        """Return the next message."""
        received = asyncio.ensure_future(self._receive())
        try:
            while not (await asyncio.wait({received}, timeout=CHECK_S))[0]:
                if not self._is_allowed():
                    return {"type": "http.disconnect"}
            return received.result()
        finally:
            received.cancel()
