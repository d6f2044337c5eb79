"""Finds the blocks of a network: the units that are compiled, those that FSDP gathers, and those that run again."""

from torch import nn

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
MAX_SHARE = 0.1  # of a network's weights: a larger block is divided into its inner blocks, if any
MIN_SHARE = 0.01  # a smaller layer outside all blocks is not worth a separate transfer


def find_blocks(network: nn.Module) -> list[nn.Module]:
    """Return the outermost modules of a network that contain others and whose class occurs more than once."""
    counts: dict[type[nn.Module], int] = {}
    for module in network.modules():
        counts[type(module)] = counts.get(type(module), 0) + 1
    found: list[nn.Module] = []

    def descend(module: nn.Module) -> None:
        for child in module.children():
            is_composed = any(True for _ in child.children()) and type(child) not in _CONTAINERS
            if is_composed and counts[type(child)] > 1 and _is_callable(child):
                found.append(child)
            else:
                descend(child)

    descend(network)
    return found


def find_recomputed(network: nn.Module) -> list[nn.Module]:
    """Return the modules whose activations are computed again: the blocks, else the innermost sequences of layers.

    A single one would save nothing, so then there are none.
    """
    if blocks := find_blocks(network):
        return blocks
    sequences = [part for part in network.modules() if type(part) is nn.Sequential and len(part) > 1]
    inner: list[nn.Module] = [
        part for part in sequences if not any(type(child) is nn.Sequential for child in part.children())
    ]
    return inner if len(inner) > 1 else []


def divide(network: nn.Module) -> list[nn.Module]:
    """Return the modules whose weights are gathered together, inner ones first; the network keeps the other weights.

    They are its blocks, and the layers outside them that are large enough. A weight that two modules share belongs to
    none of them.
    """
    total = _num_weights(network)
    blocks = find_blocks(network)
    found = _with_inner_blocks(blocks, max_weights=MAX_SHARE * total)
    found += _layers_outside(network, blocks, min_weights=MIN_SHARE * total)
    uses = _num_uses(network)
    return [module for module in found if all(uses[weight] == n for weight, n in _num_uses(module).items())]


def _with_inner_blocks(blocks: list[nn.Module], *, max_weights: float) -> list[nn.Module]:
    """Return the blocks, those with more than `max_weights` weights preceded by their inner blocks."""
    found: list[nn.Module] = []
    for block in blocks:
        if _num_weights(block) > max_weights:
            found += _with_inner_blocks(find_blocks(block), max_weights=max_weights)
        found.append(block)
    return found


def _layers_outside(network: nn.Module, blocks: list[nn.Module], *, min_weights: float) -> list[nn.Module]:
    """Return the layers of a network outside its blocks, the entries of containers one by one."""
    inside = {inner for block in blocks for inner in block.modules()}
    found: list[nn.Module] = []

    def descend(module: nn.Module) -> None:
        for child in module.children():
            if child in inside or _num_weights(child) < max(1, min_weights):
                continue
            contains_block = not inside.isdisjoint(child.modules())
            if contains_block or type(child) in _CONTAINERS or not _is_callable(child):
                descend(child)
            else:
                found.append(child)

    descend(network)
    return found


def _is_callable(module: nn.Module) -> bool:
    """Whether a module has a forward pass; some only contain others, which the network calls one by one."""
    return type(module).forward is not nn.Module.forward


def _num_weights(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _num_uses(module: nn.Module) -> dict[nn.Parameter, int]:
    uses: dict[nn.Parameter, int] = {}
    for _, weight in module.named_parameters(remove_duplicate=False):
        uses[weight] = uses.get(weight, 0) + 1
    return uses
