"""Checks ahead what this machine would run out of, or cannot reach, before a GPU hour is spent.

What is asked for is compared with a stated minimum, and with what is known from the run itself. None of it is certain,
so `distrain fit --no-preflight` skips it; contradictions and missing files are found elsewhere and cannot be skipped.
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

MIN_DISK_BYTES = 200 * MEBIBYTE  # where nothing is known of the size of a checkpoint
MIN_MEMORY_BYTES = 512 * MEBIBYTE  # of a training process: torch alone takes most of it
_CONNECT_TIMEOUT_S = 5.0


@contextmanager
def collect_errors(faults: list[str]) -> Iterator[None]:
    """Add the `UserError` of the block to the faults, if there is one, instead of raising it."""
    try:
        yield
    except UserError as error:
        faults.append(str(error))


def find_shortages(recipe: Recipe, run: RunDirectory, *, processes: int, system: Path = Path("/")) -> list[str]:
    """Return in a sentence each what `processes` training processes of this machine would run out of.

    `system` is the root of /proc and /sys.
    """
    found = [find_disk_shortage(recipe, run), find_memory_shortage(processes=processes, system=system)]
    return [sentence for sentence in found if sentence is not None]


def find_disk_shortage(recipe: Recipe, run: RunDirectory) -> str | None:
    """Compare the free disk with the checkpoints that are still to come, each as large as the newest one."""
    place = next(path for path in (run.path, *run.path.parents) if path.exists())
    free = shutil.disk_usage(place).free
    advice = "make room, or name another place with --run"
    entries = read_catalog(run.checkpoints)
    if not entries:
        if free >= MIN_DISK_BYTES:
            return None
        return f"the disk of {place} has {byte_size(free)} free, and a run wants {byte_size(MIN_DISK_BYTES)}; {advice}"
    config, newest = recipe.checkpoint, entries[-1]
    staying = 0
    total_steps = run.read_status().total_steps
    if config.keep_every_steps is not None:
        staying = total_steps // config.keep_every_steps - newest.step // config.keep_every_steps
        entries = [entry for entry in entries if entry.step % config.keep_every_steps]
    coming = max(1, config.keep_last + config.keep_best + 1 - len(entries)) + staying  # one is in flight
    if free >= coming * newest.num_bytes:
        return None
    return (
        f"the disk of {place} has {byte_size(free)} free, and {counted(coming, 'more checkpoint')} of "
        f"{byte_size(newest.num_bytes)} are planned; {advice}, or lower checkpoint.keep_last={config.keep_last}"
    )


def find_memory_shortage(*, processes: int, system: Path = Path("/")) -> str | None:
    """Compare the memory that is left, also of a container's or a job's share, with the least that training takes."""
    free = available_memory_bytes(system)
    if free is None or free >= processes * MIN_MEMORY_BYTES:
        return None
    wanting = counted(processes, "training process wants", "training processes want")
    return (
        f"this machine has {byte_size(free)} of memory left, and {wanting} at least "
        f"{byte_size(MIN_MEMORY_BYTES)} each; end other programs, or take fewer processes"
    )


def find_rendezvous_fault(host: str, port: int, *, is_own: bool) -> str | None:
    """Return why the nodes cannot meet at `host`:`port`, by what this one can see.

    `is_own` where this node is to listen there. A host that answers and refuses is well: its node does not listen yet.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        return f"the rendezvous host {host} has no address here ({error.strerror}); give one that every node knows"
    with socket.socket(family, kind, protocol) as end:
        end.settimeout(_CONNECT_TIMEOUT_S)
        try:
            if is_own:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                end.bind(address)
            else:
                end.connect(address)
        except ConnectionRefusedError:
            return None
        except OSError as error:
            if not is_own:
                reason = error.strerror or f"no answer in {_CONNECT_TIMEOUT_S:.0f} s"
                return f"the rendezvous {host}:{port} cannot be reached ({reason}); check the address and the firewall"
            if error.errno == errno.EADDRNOTAVAIL:
                return f"the rendezvous host {host} is not this machine, whose node rank is 0; give its own address"
            return f"port {port} of {host} cannot be opened here ({error.strerror}); give a free one"
    return None
