"""Tells whether an exception only followed from the end of another rank: a collective call of this one was cut off."""

from collections.abc import Iterator

# torch's exceptions for the store that all ranks share; known by name, so that the control plane needs no torch.
_OF_THE_STORE = {"DistNetworkError", "DistStoreError"}
# NCCL's and the process group's own words.
_CUT_OFF = (
    "NCCL communicator was aborted",
    "NCCL error: remote process exited",
    "remote process exited",
    "remote process exiting prematurely",
    "Watchdog caught collective operation timeout",
    "Connection closed by remote peer",
    "Connection was likely closed",
    "The client socket has timed out",
)
# These are gloo's where it is gloo that says them, and else those of another server, such as one that holds the data.
_CUT_OFF_BY_GLOO = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Socket closed",
    "Remote peer closed the connection",
    "Timed out waiting",
    "Application timeout caused pair closure",
    "connectFullMesh failed",
)


def is_secondary(error: BaseException) -> bool:
    """Return whether the end of another rank is behind `error`, or behind an exception that it was raised from."""
    return any(_is_cut_off(link) for link in _chain(error))


def _is_cut_off(error: BaseException) -> bool:
    if isinstance(error, OSError):  # of the user's own connections and pipes: torch has none
        return False
    if _OF_THE_STORE & {kind.__name__ for kind in type(error).__mro__}:
        return True
    text = str(error)
    is_gloos = "gloo" in text.lower()
    return any(words in text for words in _CUT_OFF) or (is_gloos and any(words in text for words in _CUT_OFF_BY_GLOO))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that it was raised from, as a traceback shows them."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
