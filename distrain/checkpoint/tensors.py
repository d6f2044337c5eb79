"""Owns which tensors are the training, and their names.

`model.<name>`, `optimizer.<parameter's name>.<key>`, and where the recipe keeps moving averages and slow weights
`average.<name>` and `slow.<name>`.
"""

import torch
import xxhash
from torch import nn

from distrain.sharding import whole

Tensors = dict[str, torch.Tensor]

MODEL = "model."
AVERAGE = "average."
SLOW = "slow."


def gather_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """Return all tensors of the training by name; they share their memory with the model and the optimizer."""
    tensors = model_tensors(model)
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{optimizer_prefix(name)}{key}"] = value
    return tensors


def model_tensors(model: nn.Module) -> Tensors:
    """Return the weights and buffers by the names that they have in a checkpoint."""
    return {f"{MODEL}{name}": tensor for name, tensor in model.state_dict().items()}


def changed_by_update(model: nn.Module, tensors: Tensors) -> set[str]:
    """Return which of a training's tensors change in the update alone: all but buffers, which forward passes change."""
    weights = {f"{MODEL}{name}" for name, _ in model.named_parameters()}
    return {name for name in tensors if name in weights or not name.startswith(MODEL)}


def optimizer_prefix(parameter_name: str) -> str:
    """Return how the names of a parameter's optimizer state begin in a checkpoint."""
    return f"optimizer.{parameter_name}."


def average_tensors(averages: Tensors) -> Tensors:
    """Return the moving averages by the names that they have in a checkpoint."""
    return {f"{AVERAGE}{name}": tensor for name, tensor in averages.items()}


def slow_tensors(slow: Tensors) -> Tensors:
    """Return the slow weights by the names that they have in a checkpoint."""
    return {f"{SLOW}{name}": tensor for name, tensor in slow.items()}


def weights_digest(model: nn.Module) -> str:
    """Return the digest of all weights and buffers."""
    return digest(model.state_dict())


def digest(tensors: Tensors) -> str:
    """Return the xxh3-128 digest of tensors by name: equal digests are equal bits.

    All ranks call it together, since a sharded tensor is gathered.
    """
    hashed = xxhash.xxh3_128()
    for name, tensor in sorted(tensors.items()):
        hashed.update(f"{name}:{tensor.dtype}:{list(tensor.shape)}".encode())
        hashed.update(whole(tensor).detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()
