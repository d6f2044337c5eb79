"""Owns the look ahead: what this machine would run out of, or cannot reach, told before a GPU hour is spent.

What is asked for is compared with a stated minimum, and with what is known from the run itself. None of it is certain,
so `distrain fit --no-preflight` skips it; contradictions and missing files are found elsewhere and cannot be skipped.
"""

import errno
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from distrain.batching import Batching
from distrain.checkpoint import take_inventory
from distrain.errors import UserError
from distrain.recipe import Recipe, TransformList
from distrain.rundir import RunDirectory

MEBIBYTE = 2**20
LEAST_DISK_BYTES = 200 * MEBIBYTE  # where nothing is known of the size of a checkpoint
LEAST_MEMORY_BYTES = 512 * MEBIBYTE  # of a training process: torch alone takes most of it
LEAST_WORKER_BYTES = 8 * MEBIBYTE  # of shared memory for a loader process, where batches are small or not known
BATCHES_IN_FLIGHT = 3  # of a loader process: two are fetched ahead, one is being made
SHARED_MEMORY = Path("/dev/shm")
_CONNECT_TIMEOUT_S = 5.0
_IN_THREADS = frozenset(  # transforms with draws of their own, which need no loader processes
    {"RandomCrop", "RandomResizedCrop", "RandomHorizontalFlip", "RandomVerticalFlip"}
    | {"AlternatingFlip", "Cutout", "Resize", "CenterCrop"}
)
_CROPS = frozenset({"RandomResizedCrop", "RandomCrop", "CenterCrop"})  # transforms whose result has a fixed size


@contextmanager
def noted(faults: list[str]) -> Iterator[None]:
    """Add the `UserError` of the block to the faults, if there is one, instead of raising it."""
    try:
        yield
    except UserError as error:
        faults.append(str(error))


def find_shortages(
    recipe: Recipe,
    run: RunDirectory,
    batching: Batching | None,
    *,
    processes: int,
    shared_memory: Path = SHARED_MEMORY,
    system: Path = Path("/"),
) -> list[str]:
    """Return in a sentence each what `processes` training processes of this machine would run out of.

    `batching` is None where it could not be solved, `shared_memory` the folder that
    loader processes share tensors in, `system` the root of /proc and /sys.
    """
    found = [
        find_disk_shortage(recipe, run),
        find_shared_memory_shortage(recipe, batching, processes=processes, folder=shared_memory),
        find_memory_shortage(processes=processes, system=system),
    ]
    return [sentence for sentence in found if sentence is not None]


def find_disk_shortage(recipe: Recipe, run: RunDirectory) -> str | None:
    """Compare the free disk with the checkpoints that are still to come, each as large as the newest one."""
    place = next(path for path in (run.path, *run.path.parents) if path.exists())
    free = shutil.disk_usage(place).free
    advice = "make room, or name another place with --run"
    entries = take_inventory(run.checkpoints)
    if not entries:
        if free >= LEAST_DISK_BYTES:
            return None
        return f"the disk of {place} has {_size(free)} free, and a run wants {_size(LEAST_DISK_BYTES)}; {advice}"
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
        f"the disk of {place} has {_size(free)} free, and {coming} more checkpoints of {_size(newest.num_bytes)} are "
        f"planned; {advice}, or lower checkpoint.keep_last={config.keep_last}"
    )


def find_shared_memory_shortage(
    recipe: Recipe, batching: Batching | None, *, processes: int, folder: Path
) -> str | None:
    """Compare the free shared memory with the batches that loader processes hold in it."""
    workers = recipe.data.num_workers * processes
    if workers == 0 or not folder.is_dir() or _reads_in_threads(recipe):
        return None
    train_bytes = 0 if batching is None else _image_bytes(recipe.augment.train) * batching.micro_batch_size
    eval_bytes = _image_bytes(recipe.augment.eval) * recipe.eval.batch_size
    each = max(LEAST_WORKER_BYTES, BATCHES_IN_FLIGHT * (train_bytes + eval_bytes))  # both loaders live in evaluation
    free = shutil.disk_usage(folder).free
    if free >= workers * each:
        return None
    return (
        f"{folder} has {_size(free)} free, and {workers} loader processes want {_size(each)} each; enlarge it "
        f"(docker run --shm-size), or lower data.num_workers={recipe.data.num_workers}"
    )


def find_memory_shortage(*, processes: int, system: Path = Path("/")) -> str | None:
    """Compare the memory that is left, also of a container's or a job's share, with the least that training takes."""
    free = available_memory_bytes(system)
    if free is None or free >= processes * LEAST_MEMORY_BYTES:
        return None
    plural = "es want" if processes > 1 else " wants"
    return (
        f"this machine has {_size(free)} of memory left, and {processes} training process{plural} at least "
        f"{_size(LEAST_MEMORY_BYTES)} each; end other programs, or take fewer processes"
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


def available_memory_bytes(system: Path = Path("/")) -> int | None:
    """Return what programs may still take, of the machine and of the control groups of this process; None if unknown.

    Reads /proc/meminfo (proc_meminfo(5)) and the memory controllers of control groups, versions 1 and 2.
    """
    left: list[int] = []
    with suppress(OSError, ValueError, StopIteration):
        lines = (system / "proc/meminfo").read_text().splitlines()
        left.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")))
    with suppress(OSError):
        for line in (system / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                left += _left_in_groups(system / "sys/fs/cgroup", path, "memory.max", "memory.current")
            elif "memory" in controllers.split(","):
                root = system / "sys/fs/cgroup/memory"
                left += _left_in_groups(root, path, "memory.limit_in_bytes", "memory.usage_in_bytes")
    return min(left, default=None)


def _left_in_groups(root: Path, path: str, limit: str, usage: str) -> Iterator[int]:
    """Yield what is left in a control group and in those around it; files that the kernel would drop count as left."""
    group = root / path.lstrip("/")
    for folder in (group, *group.parents):
        with suppress(OSError, ValueError):  # no such group in this container, or a limit of `max`
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            cached = int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
            yield int((folder / limit).read_text()) - int((folder / usage).read_text()) + cached
        if folder == root:
            return


def _reads_in_threads(recipe: Recipe) -> bool:
    """Whether the loader is threads, as far as names tell; they share memory without asking for any."""
    if recipe.data.loader != "auto":
        return recipe.data.loader == "threads"
    is_decoding = all(
        ":" not in part.source and not part.source.startswith("torchvision.") for part in recipe.data.parts
    )
    names = {transform.name for transform in (*recipe.augment.train, *recipe.augment.eval)}
    return is_decoding and names <= _IN_THREADS


def _image_bytes(transforms: TransformList) -> int:
    """Return the bytes of an RGB image of uint8 where a crop gives it a fixed size; 0 where it is not known."""
    for transform in reversed(transforms):
        size = transform.arguments.get("size")
        if transform.name in _CROPS and isinstance(size, int):
            return 3 * size * size
        if transform.name in {*_CROPS, "Resize"} and isinstance(size, list) and len(size) == 2:
            return 3 * int(size[0]) * int(size[1])
    return 0


def _size(num_bytes: int) -> str:
    mebibytes = num_bytes / MEBIBYTE
    return f"{mebibytes / 1024:.1f} GiB" if mebibytes >= 1024 else f"{mebibytes:.1f} MiB"
