"""Owns head surgery: finding a network's last linear layer and giving it one output for each class of the data."""

from torch import nn

from distrain.errors import ModelError


def find_head(model: nn.Module, *, name: str) -> tuple[str, nn.Linear]:
    """Return the path and the module of the last `nn.Linear` of a network, in its own order of modules.

    Raises `ModelError` where it has none.
    """
    linears = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise ModelError(f"{name} has no linear layer that could be its head; write a factory of your own")
    return linears[-1]


def replace_head(model: nn.Module, num_classes: int, *, name: str) -> None:
    """Replace the head of `model` by a linear layer with `num_classes` outputs, newly drawn."""
    path, head = find_head(model, name=name)
    parent_path, _, attribute = path.rpartition(".")
    setattr(
        model.get_submodule(parent_path),
        attribute,
        nn.Linear(head.in_features, num_classes, bias=head.bias is not None),
    )
