"""Limits what one client can demand: size and time of a request, requests a second, event streams."""

import time
from collections import OrderedDict
from dataclasses import dataclass

_MOST_BUCKETS = 1000


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the page accepts; each limit is far above what a browser or a script needs."""

    body_bytes: int = 256 * 1024
    body_s: float = 20.0  # for all of it
    requests_per_s: float = 100.0  # of a session or of the token, on average
    burst: int = 500
    logins_per_s: float = 0.5  # of an address, on average
    login_burst: int = 20
    streams: int = 256
    connections: int = 512  # well below the number of files that a process may open, which the queue needs, too
    head_s: float = 10.0  # for the first line and the headers of a request, and for what comes after an answer
    stall_s: float = 30.0  # a client that takes nothing of an answer for this long is dropped


class Buckets:
    """Token buckets by key, each filled at a rate up to a burst."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, burst
        self._filled: OrderedDict[str, tuple[float, float]] = OrderedDict()  # content, and when it was so

    def take(self, key: str) -> float:
        """Take one from a bucket; returns 0, or in how many seconds there will be one."""
        now = time.monotonic()
        content, since = self._filled.pop(key, (float(self._burst), now))
        content = min(self._burst, content + (now - since) * self._rate)
        wait_s = max(0.0, (1 - content) / self._rate)
        self._filled[key] = (content - (wait_s == 0), now)
        if len(self._filled) > _MOST_BUCKETS:
            self._filled.popitem(last=False)
        return wait_s
