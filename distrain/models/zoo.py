"""Owns the way from a recipe's model section to a network: built-in, torchvision's by name, or the user's own."""

import difflib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from distrain.errors import ModelError
from distrain.models.heads import find_head, replace_head
from distrain.models.nets import CifarCnn, DigitsCnn
from distrain.recipe import Model
from distrain.references import is_reference, load_reference

NETS: dict[str, Callable[[int, int], nn.Module]] = {
    "digits-cnn": DigitsCnn,
    "cifar-cnn": CifarCnn,
}


def build_model(config: Model, *, num_classes: int, in_channels: int) -> nn.Module:
    """Build the network with `num_classes` outputs on the CPU; its draws come from torch's global generator.

    A reference `package.module:factory` is called as `factory(num_classes=...)`. Raises `ModelError` for a name that
    nobody knows and for weights that do not fit.
    """
    pretrained = config.weights == "imagenet"
    if is_reference(config.name):
        model: nn.Module = load_reference(config.name, key="model.name")(num_classes=num_classes)
    elif config.name in NETS:
        model = NETS[config.name](num_classes, in_channels)
    elif config.name in _classifiers():
        model = _torchvision_model(config.name, pretrained=pretrained)
        replace_head(model, num_classes, name=config.name)
    else:
        near = difflib.get_close_matches(config.name, [*NETS, *_classifiers()], n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; take {', '.join(NETS)}, or a torchvision classifier"
        raise ModelError(f"there is no model {config.name!r}{hint}")
    if pretrained and config.name not in _classifiers():
        raise ModelError(f"model.weights=imagenet is for torchvision's models, and model.name is {config.name}")
    if config.weights is not None and not pretrained:
        _load_weights(model, config.weights)
    return model


def _classifiers() -> list[str]:
    from torchvision import models  # takes a second to import: only where it is used

    return list(models.list_models(module=models))


def _torchvision_model(name: str, *, pretrained: bool) -> nn.Module:
    from torchvision import models

    # GoogLeNet and Inception have extra heads and give a tuple with them: they are trained without.
    arguments: dict[str, Any] = {"aux_logits": False} if name in {"googlenet", "inception_v3"} else {}
    if name in {"googlenet", "inception_v3"} and not pretrained:
        arguments["init_weights"] = True
    if pretrained and arguments:
        raise ModelError(f"model.weights=imagenet is not offered for {name}, whose weights have extra heads")
    try:
        model: nn.Module = models.get_model(name, weights="DEFAULT" if pretrained else None, **arguments)
    except OSError as error:
        raise ModelError(
            f"the ImageNet weights of {name} could not be downloaded ({error}); give a file with "
            f"--set model.weights=FILE, or start from random weights with --set model.weights=null"
        ) from None
    return model


def _load_weights(model: nn.Module, file: str) -> None:
    path = Path(file).expanduser()
    if not path.is_file():
        raise ModelError(f"model.weights={file}: there is no such file")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's own words advise to switch this protection off
        raise ModelError(
            f"model.weights={file} is refused: it is not a file of tensors, or names what could run code; "
            f"save the model's state_dict()"
        ) from None
    except Exception as error:  # noqa: BLE001 - torch, pickle, zip and safetensors each have exceptions of their own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"model.weights={file} cannot be read as tensors by name: {reason}") from None
    if not (isinstance(state, dict) and all(isinstance(tensor, torch.Tensor) for tensor in state.values())):
        raise ModelError(f"model.weights={file} does not hold tensors by name; save the model's state_dict()")
    expected = model.state_dict()
    misfits = [key for key, tensor in expected.items() if key not in state or state[key].shape != tensor.shape]
    # A head for other classes is what fine-tuning replaces: these layers keep their new weights.
    head, _ = find_head(model, name=file)
    heads = {key for key in misfits if key.rpartition(".")[0] == head}
    if rest := [key for key in misfits if key not in heads]:
        raise ModelError(f"model.weights={file} does not fit the model: {rest[0]} is missing or of another shape")
    model.load_state_dict({**state, **{key: expected[key] for key in heads}}, strict=False)
