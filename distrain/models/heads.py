"""Replaces the two ends of a network: a head with one output for each class, a first layer for the images' channels."""

import torch
from torch import nn

from distrain.errors import ModelError
from distrain.messages import nearest

APPENDED = "appended"  # the name of an appended head, and so of its weights: appended.weight, appended.bias
_LAYERS = (nn.Linear, nn.Conv2d)
_AUXILIARY = "InceptionAux"  # the class of the heads that torchvision's GoogLeNet and Inception have in training only


def find_head(model: nn.Module, *, name: str, head_name: str | None = None) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Return the path and the module of the head: an appended one, else `head_name`, else the last linear layer.

    Of a network without linear layers it is the last convolution, as in SqueezeNet. Layers stand in the network's own
    order of modules. Raises `ModelError` where there is no such layer.
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
        raise ModelError(f"{name} has no linear layer that could be its head; write a factory of your own")
    path = (linears or list(layers))[-1]
    return path, layers[path]


def find_heads(model: nn.Module, *, name: str, head_name: str | None = None) -> list[str]:
    """Return the paths of all layers that give logits: that of `find_head`, and those of torchvision's auxiliary heads.

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
    """Replace each head of `model` by a layer of the same kind with `num_classes` outputs, newly initialised."""
    for path in find_heads(model, name=name, head_name=head_name):
        _replace_head(model, path, num_classes)


def append_head(model: nn.Module, num_classes: int, *, name: str, head_name: str | None = None) -> None:
    """Let `num_classes` outputs follow those of the whole network, by a new linear layer with the name `appended`.

    All other layers keep their names, so that weights of the network itself still fit.
    """
    _, head = find_head(model, name=name, head_name=head_name)
    num_outputs = head.out_features if isinstance(head, nn.Linear) else head.out_channels
    model.add_module(APPENDED, nn.Linear(num_outputs, num_classes))
    model.register_forward_hook(_through_appended)


def _through_appended(model: nn.Module, _: object, outputs: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model.get_submodule(APPENDED)(outputs)
    return logits


def replace_first_layer(model: nn.Module, in_channels: int, *, name: str, keep_weights: bool) -> None:
    """Replace the first convolution of `model` by one for `in_channels`, with its weights as `fit_channels` has them.

    Where `keep_weights` is not set, they are newly drawn. Raises `ModelError` where the network has none.
    """
    path, first = next(((p, m) for p, m in model.named_modules() if isinstance(m, nn.Conv2d)), ("", None))
    if first is None or first.groups != 1:
        raise ModelError(
            f"{name} takes images of 3 channels, and these have {in_channels}; write a factory of your own"
        )
    replacement = _convolution_like(first, in_channels, first.out_channels)
    if keep_weights:
        with torch.no_grad():
            replacement.weight.copy_(fit_channels(first.weight, in_channels))
            if replacement.bias is not None and first.bias is not None:
                replacement.bias.copy_(first.bias)
    _replace(model, path, replacement)


def fit_channels(weight: torch.Tensor, in_channels: int) -> torch.Tensor:
    """Return a convolution's weight [out, channels, height, width] as one [out, in_channels, height, width].

    The mean is preserved: an image with the same values in all channels gives the same activations. New channels take
    the old ones in turn; an old channel that several take is divided among them, and where there are fewer new channels
    than old ones, those that fall together are summed.
    """
    num_old = weight.shape[1]
    if in_channels < num_old:
        return torch.stack([weight[:, first::in_channels].sum(dim=1) for first in range(in_channels)], dim=1)
    places = torch.arange(in_channels) % num_old
    return weight[:, places] / places.bincount()[places].view(1, -1, 1, 1)


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
