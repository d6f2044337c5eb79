"""Names the tensors that make up the state of a run.

`model.<name>`, `optimizer.<parameter's name>.<key>`, and where the recipe keeps moving averages and slow weights
`average.<name>` and `slow.<name>`. Where modules have extra state, it is below `model.`, packed as `module_state`
says, and so does the state of a loss below `loss.`; what another rank than 0 has of them, below `ranks.<rank>.`.
"""

from collections.abc import Iterable

import torch
import xxhash
from torch import nn

from distrain.tensors.dtensor import full_tensor
from distrain.tensors.module_state import LOSS, MODEL, RANKS, is_part_of, pack, split
from distrain.tensors.module_state import Tensors as Tensors

AVERAGE = "average."
SLOW = "slow."


def gather_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """Return the weights, buffers and optimizer state by name; they share their memory with model and optimizer."""
    tensors = model_tensors(model)
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{optimizer_prefix(name)}{key}"] = value
    return tensors


def model_tensors(model: nn.Module) -> Tensors:
    """Return the weights and buffers by the names that they have in a checkpoint."""
    return {f"{MODEL}{name}": tensor for name, tensor in split(model)[0].items()}


def changed_by_update(model: nn.Module, tensors: Tensors) -> set[str]:
    """Return the tensors that change in the update alone; buffers, which forward passes change, are not among them."""
    weights = {f"{MODEL}{name}" for name, _ in model.named_parameters()}
    return {name for name in tensors if name in weights or not name.startswith((MODEL, LOSS, RANKS))}


def optimizer_prefix(parameter_name: str) -> str:
    """Return how the names of a parameter's optimizer state begin in a checkpoint."""
    return f"optimizer.{parameter_name}."


def average_tensors(averages: Tensors) -> Tensors:
    """Return the moving averages by the names that they have in a checkpoint."""
    return {f"{AVERAGE}{name}": tensor for name, tensor in averages.items()}


def slow_tensors(slow: Tensors) -> Tensors:
    """Return the slow weights by the names that they have in a checkpoint."""
    return {f"{SLOW}{name}": tensor for name, tensor in slow.items()}


def extra_names(
    stored: Iterable[str], *, network: set[str], has_loss: bool, rank: int, world_size: int
) -> dict[str, str]:
    """Return which of the `stored` tensors are a rank's extra state, by the names that they have as rank 0's.

    `network` names the network's extra state, not packed. Rank 0's is everyone's where the ranks were not as many.
    """
    own = f"{RANKS}{rank}."
    ranks = {name.removeprefix(RANKS).partition(".")[0] for name in stored if name.startswith(RANKS)}
    prefix = own if own.split(".")[1] in ranks and len(ranks) + 1 == world_size else ""
    names = {name.removeprefix(prefix): name for name in stored if name.startswith(prefix)}
    return {n: s for n, s in names.items() if is_part_of(n, network) or (has_loss and n.startswith(LOSS))}


def weights_digest(model: nn.Module) -> str:
    """Return the digest of all weights and buffers, and of extra state where modules have one."""
    live, extra = split(model)
    return digest(live | pack(extra, owner="the network"))


def digest(tensors: Tensors) -> str:
    """Return the xxh3-128 digest of tensors by name: equal digests are equal bits.

    All ranks call it together, since a sharded tensor is gathered.
    """
    hashed = xxhash.xxh3_128()
    for name, tensor in sorted(tensors.items()):
        hashed.update(f"{name}:{tensor.dtype}:{list(tensor.shape)}".encode())
        hashed.update(full_tensor(tensor).detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()
