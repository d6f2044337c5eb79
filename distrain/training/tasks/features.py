"""Makes a network also return the features of its images: what enters its head."""

from functools import partial

import torch
from torch import nn

from distrain.errors import ModelError
from distrain.tensors.module_state import TASK_LAYERS

_KEPT = "features_of_this_pass"


def count_features(network: nn.Module, head: str, *, name: str) -> int:
    """Return how many numbers enter the head of a network; raises `ModelError`, with `name`, where that is unknown."""
    layer = network.get_submodule(head)
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        raise ModelError(f"{name}: its head {head} is {type(layer).__name__}, and features are those of a linear layer")
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def return_features(network: nn.Module, head: str, layers: nn.Module | None = None) -> None:
    """Let a pass in training return (outputs, features [n, features]), and one in evaluation the outputs alone.

    The features have passed through `layers`, which become a part of the network: its `task_layers`. They are called
    within the network's pass, as strategies that reduce or gather weights need it. By hooks, as networks of torchvision
    and the user have no method for features.
    """
    if layers is not None:
        if hasattr(network, TASK_LAYERS):
            raise ModelError(f"the network has a layer {TASK_LAYERS} of its own; rename it")
        network.add_module(TASK_LAYERS, layers)
    network.get_submodule(head).register_forward_pre_hook(_keep_inputs)
    network.register_forward_hook(partial(_with_features, head=head))


def _keep_inputs(head: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    setattr(head, _KEPT, inputs[0])


def _with_features(
    network: nn.Module, _: object, outputs: torch.Tensor, *, head: str
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    layer = network.get_submodule(head)
    features: torch.Tensor = getattr(layer, _KEPT)
    delattr(layer, _KEPT)
    if not network.training:
        return outputs
    if features.ndim > 2:  # of a convolution: the mean over the positions
        features = features.flatten(2).mean(dim=2)
    layers = network._modules.get(TASK_LAYERS)
    return outputs, features if layers is None else layers(features)
