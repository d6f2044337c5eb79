"""Checks disk, memory and the rendezvous before anything starts.

The available resources are compared with a minimum, and with the needs known from the run itself. These checks are
estimates, so `distrain fit --no-preflight` skips them; contradictions and missing files are checked elsewhere, always.
"""

import errno
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distrain.config import Recipe
from distrain.errors import UserError
from distrain.messages import MEBIBYTE, byte_size, counted
from distrain.runs.checkpoints import read_catalog
from distrain.runs.directory import RunDirectory
from distrain.system.memory import available_memory_bytes

MIN_DISK_BYTES = 200 * MEBIBYTE  # where the size of a checkpoint is unknown
MIN_MEMORY_BYTES = 512 * MEBIBYTE  # of a training process: torch alone needs most of it
_CONNECT_TIMEOUT_S = 5.0


@contextmanager
def collect_errors(faults: list[str]) -> Iterator[None]:
    """Append a `UserError` of the block to `faults` instead of raising it."""
    try:
        yield
    except UserError as error:
        faults.append(str(error))


def find_shortages(recipe: Recipe, run: RunDirectory, *, processes: int, system: Path = Path("/")) -> list[str]:
    """Return a sentence for each resource of which `processes` training processes on this machine would run out.

    `system` is the root of /proc and /sys.
    """
    found = [find_disk_shortage(recipe, run), find_memory_shortage(processes=processes, system=system)]
    return [sentence for sentence in found if sentence is not None]


def find_disk_shortage(recipe: Recipe, run: RunDirectory) -> str | None:
    """Compare the free disk space with the checkpoints still to be written, each as large as the newest one."""
    folder = next(path for path in (run.path, *run.path.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    advice = "free some space, or name another folder with --run"
    entries = read_catalog(run.checkpoints)
    if not entries:
        if free >= MIN_DISK_BYTES:
            return None
        return f"the disk of {folder} has {byte_size(free)} free, but a run needs {byte_size(MIN_DISK_BYTES)}; {advice}"
    config, newest = recipe.checkpoint, entries[-1]
    num_kept = 0
    total_steps = run.read_status().total_steps
    if config.keep_every_steps is not None:
        num_kept = total_steps // config.keep_every_steps - newest.step // config.keep_every_steps
        entries = [entry for entry in entries if entry.step % config.keep_every_steps]
    num_new = max(1, config.keep_last + config.keep_best + 1 - len(entries)) + num_kept  # one is being written
    if free >= num_new * newest.num_bytes:
        return None
    return (
        f"the disk of {folder} has {byte_size(free)} free, but {counted(num_new, 'more checkpoint')} of "
        f"{byte_size(newest.num_bytes)} are planned; {advice}, or lower checkpoint.keep_last={config.keep_last}"
    )


def find_memory_shortage(*, processes: int, system: Path = Path("/")) -> str | None:
    """Compare the available memory, also within the limit of a container or job, with the minimum for training."""
    free = available_memory_bytes(system)
    if free is None or free >= processes * MIN_MEMORY_BYTES:
        return None
    needing = counted(processes, "training process needs", "training processes need")
    return (
        f"this machine has {byte_size(free)} of memory left, but {needing} at least "
        f"{byte_size(MIN_MEMORY_BYTES)} each; end other programs, or use fewer processes"
    )


def find_rendezvous_fault(host: str, port: int, *, is_local: bool) -> str | None:
    """Return why the nodes cannot connect at `host`:`port`, as far as this node can see; else None.

    `is_local` where this node listens there. A refused connection is fine: that node does not listen yet.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        return f"the rendezvous host {host} cannot be resolved here ({error.strerror}); give one that every node knows"
    with socket.socket(family, kind, protocol) as end:
        end.settimeout(_CONNECT_TIMEOUT_S)
        try:
            if is_local:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                end.bind(address)
            else:
                end.connect(address)
        except ConnectionRefusedError:
            return None
        except OSError as error:
            if not is_local:
                reason = error.strerror or f"no answer in {_CONNECT_TIMEOUT_S:.0f} s"
                return f"the rendezvous {host}:{port} is not reachable ({reason}); check the address and the firewall"
            if error.errno == errno.EADDRNOTAVAIL:
                return f"the rendezvous host {host} is not this node, which has node rank 0; give its address"
            return f"port {port} of {host} cannot be opened here ({error.strerror}); give a free one"
    return None
