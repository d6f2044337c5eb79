"""Names the tensors that make up the state of a run.

These are `model.<name>`, `optimizer.<parameter name>.<key>`, and if the recipe uses averages of the weights or
lookahead, `average.<name>` and `slow.<name>`. The extra state of modules is packed as described in `module_state` and
named `model.<name>`, the state of a loss `loss.<name>`; those of other ranks than 0 are below `ranks.<rank>.`. The
state of a schedule that has one is `schedule.<name>`.
"""

from collections.abc import Iterable

import torch
import xxhash
from torch import nn

from distrain.checkpoint.optimizer_state import optimizer_tensors
from distrain.tensors.dtensor import full_tensor
from distrain.tensors.module_state import LOSS, MODEL, RANKS, is_part_of, pack, split
from distrain.tensors.module_state import Tensors as Tensors

AVERAGE = "average."
SLOW = "slow."
SCHEDULE = "schedule."  # the state of a schedule that has one, packed
SWA_COUNT = "swa.count"  # of the weights in the stochastic average


def gather_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """Return the weights, buffers and optimizer state by name; they share memory with model and optimizer."""
    return model_tensors(model) | optimizer_tensors(model.named_parameters(), optimizer)


def model_tensors(model: nn.Module) -> Tensors:
    """Return the weights and buffers by their names in a checkpoint."""
    return {f"{MODEL}{name}": tensor for name, tensor in split(model)[0].items()}


def changed_by_update(model: nn.Module, tensors: Tensors) -> set[str]:
    """Return the names of the tensors that only the update changes: all but buffers and extra state."""
    weights = {f"{MODEL}{name}" for name, _ in model.named_parameters()}
    return {name for name in tensors if name in weights or not name.startswith((MODEL, LOSS, RANKS))}


def average_tensors(averages: Tensors) -> Tensors:
    """Return the moving averages by their names in a checkpoint."""
    return {f"{AVERAGE}{name}": tensor for name, tensor in averages.items()}


def slow_tensors(slow: Tensors) -> Tensors:
    """Return the slow weights of lookahead by their names in a checkpoint."""
    return {f"{SLOW}{name}": tensor for name, tensor in slow.items()}


def schedule_tensors(packed: Tensors) -> Tensors:
    """Return the packed state of a schedule by its names in a checkpoint."""
    return {f"{SCHEDULE}{name}": tensor for name, tensor in packed.items()}


def extra_names(
    stored: Iterable[str], *, network: set[str], has_loss: bool, rank: int, world_size: int
) -> dict[str, str]:
    """Map the names that a rank's extra state has on rank 0 to the `stored` names of that rank.

    `network` has the unpacked names of the network's extra state. If the checkpoint is from another number of ranks,
    every rank gets the state of rank 0.
    """
    rank_prefix = f"{RANKS}{rank}."
    ranks = {name.removeprefix(RANKS).partition(".")[0] for name in stored if name.startswith(RANKS)}
    prefix = rank_prefix if rank_prefix.split(".")[1] in ranks and len(ranks) + 1 == world_size else ""
    names = {name.removeprefix(prefix): name for name in stored if name.startswith(prefix)}
    return {n: s for n, s in names.items() if is_part_of(n, network) or (has_loss and n.startswith(LOSS))}


def weights_digest(model: nn.Module) -> str:
    """Return the digest of all weights and buffers, and of the extra state of modules."""
    live, extra = split(model)
    return digest(live | pack(extra, owner="the network"))


def digest(tensors: Tensors) -> str:
    """Return the xxh3-128 digest of tensors by name: equal digests mean equal bits.

    All ranks must call it together, since sharded tensors are gathered.
    """
    hashed = xxhash.xxh3_128()
    for name, tensor in sorted(tensors.items()):
        hashed.update(f"{name}:{tensor.dtype}:{list(tensor.shape)}".encode())
        hashed.update(full_tensor(tensor).detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()
