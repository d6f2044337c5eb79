"""Decides whether an exception is only a consequence of the end of another rank, which broke a collective call."""

from collections.abc import Iterator

# torch's exceptions for the store that all ranks share; matched by name, so that the control plane needs no torch.
_STORE_ERRORS = {"DistNetworkError", "DistStoreError"}
# Messages of NCCL and of the process group.
_CONNECTION_LOST = (
    "NCCL communicator was aborted",
    "NCCL error: remote process exited",
    "remote process exited",
    "remote process exiting prematurely",
    "Watchdog caught collective operation timeout",
    "Connection closed by remote peer",
    "Connection was likely closed",
    "The client socket has timed out",
)
# These count only in messages of gloo: they may also come from another server, such as one that holds the data.
_GLOO_CONNECTION_LOST = (
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
    """Return whether the end of another rank caused `error`, or an exception that it was raised from."""
    return any(_is_connection_loss(link) for link in _chain(error))


def _is_connection_loss(error: BaseException) -> bool:
    if isinstance(error, OSError):  # from connections and pipes of the user's code: torch raises none
        return False
    if _STORE_ERRORS & {kind.__name__ for kind in type(error).__mro__}:
        return True
    text = str(error)
    is_gloo = "gloo" in text.lower()
    return any(words in text for words in _CONNECTION_LOST) or (
        is_gloo and any(words in text for words in _GLOO_CONNECTION_LOST)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that it was raised from, as in a traceback."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
