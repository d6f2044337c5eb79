"""Adapts both ends of a network to the data: the head to its classes, and the first layer to its channels."""

import torch
from torch import nn

from distrain.errors import ModelError
from distrain.messages import nearest

APPENDED = "appended"  # the name of an appended head, whose weights are appended.weight and appended.bias
_LAYERS = (nn.Linear, nn.Conv2d)
_AUXILIARY = "InceptionAux"  # the class of the heads that torchvision's GoogLeNet and Inception use only in training


def find_head(model: nn.Module, *, name: str, head_name: str | None = None) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Return the path and the module of the head: an appended one, else `head_name`, else the last linear layer.

    In a network without linear layers, such as SqueezeNet, it is the last convolution. Layers have the order of the
    network's modules. Raises `ModelError` where there is no such layer.
    """
    layers = {path: module for path, module in model.named_modules() if isinstance(module, _LAYERS)}
    if APPENDED in layers:
        return APPENDED, layers[APPENDED]
    if head_name is not None:
        if head_name not in layers:
            raise ModelError(
                f"model.head_name={head_name} is not a linear or convolutional layer of {name}"
                f"{nearest(head_name, reversed(layers)) or f'; its last one is {next(reversed(layers), None)}'}"
            )
        return head_name, layers[head_name]
    linears = [path for path, module in layers.items() if isinstance(module, nn.Linear)]
    if not layers:
        raise ModelError(f"{name} has no linear layer that could be its head; write your own factory")
    path = (linears or list(layers))[-1]
    return path, layers[path]


def find_heads(model: nn.Module, *, name: str, head_name: str | None = None) -> list[str]:
    """Return the paths of all layers that output logits: that of `find_head`, and torchvision's auxiliary heads.

    Raises `ModelError` as `find_head` does.
    """
    path, _ = find_head(model, name=name, head_name=head_name)
    if path == APPENDED or head_name is not None:
        return [path]
    auxiliary = [
        [f"{outer}.{inner}" for inner, layer in module.named_modules() if isinstance(layer, nn.Linear)][-1]
        for outer, module in model.named_modules()
        if type(module).__name__ == _AUXILIARY
    ]
    return [path, *auxiliary]


def replace_heads(model: nn.Module, num_classes: int, *, name: str, head_name: str | None = None) -> None:
    """Replace each head of `model` with a newly initialised layer of the same kind with `num_classes` outputs."""
    for path in find_heads(model, name=name, head_name=head_name):
        _replace_head(model, path, num_classes)


def append_head(model: nn.Module, num_classes: int, *, name: str, head_name: str | None = None) -> None:
    """Append a linear layer named `appended` with `num_classes` outputs to the whole network.

    All other layers keep their names, so that weights of the original network still fit.
    """
    _, head = find_head(model, name=name, head_name=head_name)
    num_outputs = head.out_features if isinstance(head, nn.Linear) else head.out_channels
    model.add_module(APPENDED, nn.Linear(num_outputs, num_classes))
    model.register_forward_hook(_through_appended)


def _through_appended(model: nn.Module, _: object, outputs: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model.get_submodule(APPENDED)(outputs)
    return logits


def replace_first_layer(model: nn.Module, in_channels: int, *, name: str, keep_weights: bool) -> None:
    """Replace the first convolution of `model` with one for `in_channels`, its weights converted by `fit_channels`.

    Without `keep_weights` they are initialised. Raises `ModelError` where the network has no convolution.
    """
    path, first = next(((p, m) for p, m in model.named_modules() if isinstance(m, nn.Conv2d)), ("", None))
    if first is None or first.groups != 1:
        raise ModelError(f"{name} needs images with 3 channels, but these have {in_channels}; write your own factory")
    replacement = _convolution_like(first, in_channels, first.out_channels)
    if keep_weights:
        with torch.no_grad():
            replacement.weight.copy_(fit_channels(first.weight, in_channels))
            if replacement.bias is not None and first.bias is not None:
                replacement.bias.copy_(first.bias)
    _replace(model, path, replacement)


def fit_channels(weight: torch.Tensor, in_channels: int) -> torch.Tensor:
    """Convert a convolution's weight [out, channels, height, width] to [out, in_channels, height, width].

    The mean is preserved: an image with the same values in all channels gives the same activations. New channels reuse
    the old ones cyclically, and copies of an old channel are divided by their number. With fewer new channels than old
    ones, the old channels that map to the same new one are summed.
    """
    num_old = weight.shape[1]
    if in_channels < num_old:
        return torch.stack([weight[:, first::in_channels].sum(dim=1) for first in range(in_channels)], dim=1)
    old = torch.arange(in_channels) % num_old
    return weight[:, old] / old.bincount()[old].view(1, -1, 1, 1)


def _replace_head(model: nn.Module, path: str, num_classes: int) -> None:
    head = model.get_submodule(path)
    if isinstance(head, nn.Linear):
        _replace(model, path, nn.Linear(head.in_features, num_classes, bias=head.bias is not None))
    elif isinstance(head, nn.Conv2d):
        _replace(model, path, _convolution_like(head, head.in_channels, num_classes))


def _convolution_like(layer: nn.Conv2d, in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(
        in_channels,
        out_channels,
        layer.kernel_size,  # type: ignore[arg-type]  # a pair, which torch annotates as a tuple of any length
        stride=layer.stride,  # type: ignore[arg-type]
        padding=layer.padding,  # type: ignore[arg-type]
        dilation=layer.dilation,  # type: ignore[arg-type]
        groups=layer.groups,
        bias=layer.bias is not None,
        padding_mode=layer.padding_mode,
    )


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent_path, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(parent_path), attribute, module)
