"""Finds the blocks of a network: what is compiled as one, and what FSDP gathers at once."""

from torch import nn

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
MAX_SHARE = 0.1  # of a network's weights: a larger block is divided into the blocks that it is made of, if any
MIN_SHARE = 0.01  # a smaller layer outside of all blocks is not worth a transfer of its own


def find_blocks(network: nn.Module) -> list[nn.Module]:
    """Return the outermost modules below a network that are made of others and whose class comes more than once."""
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


def divide(network: nn.Module) -> list[nn.Module]:
    """Return the modules whose weights are gathered together, inner ones first; the network has what is left.

    These are its blocks, and of what lies around them the layers that are large enough. A weight that two modules
    share is in none of them.
    """
    total = _num_weights(network)
    blocks = find_blocks(network)
    found = _with_inner_blocks(blocks, most=MAX_SHARE * total)
    found += _around(network, blocks, least=MIN_SHARE * total)
    uses = _num_uses(network)
    return [module for module in found if all(uses[weight] == n for weight, n in _num_uses(module).items())]


def _with_inner_blocks(blocks: list[nn.Module], *, most: float) -> list[nn.Module]:
    """Return blocks, those of more than `most` weights after the blocks that they are made of themselves."""
    found: list[nn.Module] = []
    for block in blocks:
        if _num_weights(block) > most:
            found += _with_inner_blocks(find_blocks(block), most=most)
        found.append(block)
    return found


def _around(network: nn.Module, blocks: list[nn.Module], *, least: float) -> list[nn.Module]:
    """Return the children of a network that hold no block, the entries of a sequence one by one."""
    inside = {inner for block in blocks for inner in block.modules()}
    found: list[nn.Module] = []

    def descend(module: nn.Module) -> None:
        for child in module.children():
            if child in inside or _num_weights(child) < max(1, least):
                continue
            is_around = not inside.isdisjoint(child.modules())
            if is_around or type(child) in _CONTAINERS or not _is_callable(child):
                descend(child)
            else:
                found.append(child)

    descend(network)
    return found


def _is_callable(module: nn.Module) -> bool:
    """Whether a module has a forward pass; some only hold others, which their network calls one by one."""
    return type(module).forward is not nn.Module.forward


def _num_weights(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _num_uses(module: nn.Module) -> dict[nn.Parameter, int]:
    uses: dict[nn.Parameter, int] = {}
    for _, weight in module.named_parameters(remove_duplicate=False):
        uses[weight] = uses.get(weight, 0) + 1
    return uses
