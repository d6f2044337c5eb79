"""Builds the network that a recipe names: built-in, or from torchvision, timm or the user."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from distrain.config import Model
from distrain.config.user_code import find_refusal, is_reference, load_reference, takes_argument
from distrain.errors import ModelError, WeightsUnreachableError
from distrain.messages import first_line, nearest
from distrain.models.alexnet import AlexNet5
from distrain.models.cifar import CifarPlain, CifarSimpleV3
from distrain.models.cifar_fast import CifarFast
from distrain.models.heads import append_head, find_heads, replace_first_layer, replace_heads
from distrain.models.lenet import LeNet
from distrain.models.nets import CifarCnn, DigitsCnn
from distrain.models.unet import UNet
from distrain.models.weight_sets import StoredWeights
from distrain.models.weights import load_weights

NETS: dict[str, Callable[..., nn.Module]] = {
    "digits-cnn": DigitsCnn,
    "cifar-cnn": CifarCnn,
    "cifar-fast": CifarFast,
    "lenet": LeNet,
    "cifar-plain": CifarPlain,
    "cifar-simple-v3": CifarSimpleV3,
    "alexnet-5": AlexNet5,
    "unet": UNet,
}
TIMM = "timm."


def build_model(config: Model, *, num_classes: int, in_channels: int, stored: StoredWeights | None = None) -> nn.Module:
    """Build the network with `num_classes` outputs on the CPU, initialised with torch's global generator.

    A reference `package.module:factory` is called as `factory(num_classes=..., **arguments)`, without `num_classes`
    where its signature does not take it. `stored` is the content of model.weights, where that is not a file. Raises
    `ModelError` for an unknown name, for arguments that the factory does not accept, and for weights that do not fit.
    """
    model = _build(config, num_classes=num_classes, in_channels=in_channels)
    has_own_head = is_reference(config.name) or config.name in NETS or config.name.startswith(TIMM)
    if config.head == "append":
        append_head(model, num_classes, name=config.name, head_name=config.head_name)
    elif config.head_name is not None or not has_own_head:
        replace_heads(model, num_classes, name=config.name, head_name=config.head_name)
    if config.weights is not None and config.weights != "imagenet":
        load_weights(
            model,
            config.weights,
            stored=stored,
            entry=config.weights_entry,
            heads=head_paths(config, model),
            num_classes=num_classes,
            is_partial=config.partial,
        )
    return model


def build_published(config: Model, *, in_channels: int) -> nn.Module:
    """Build a network of timm with its published weights and its own head; raises `ModelError` as `build_model` does.

    Raises `WeightsUnreachableError` where the weights cannot be downloaded.
    """
    published = config.model_copy(update={"weights": "imagenet"})
    return _timm_model(published, num_classes=None, in_channels=in_channels)


def head_paths(config: Model, model: nn.Module) -> list[str]:
    """Return the paths of the layers of a built network that output logits; empty where they are unknown.

    There are several where a network was distilled or has auxiliary heads.
    """
    has_own_head = config.name.startswith(TIMM) and config.head == "replace" and config.head_name is None
    if has_own_head and (paths := _timm_heads(model)):
        return paths
    try:
        return find_heads(model, name=config.name, head_name=config.head_name)
    except ModelError:
        return []


def _build(config: Model, *, num_classes: int, in_channels: int) -> nn.Module:
    """Return the network; those of distrain, timm and the user have a head for the classes already."""
    name, wants_imagenet = config.name, config.weights == "imagenet"
    if name.startswith(TIMM):
        return _timm_model(config, num_classes=num_classes, in_channels=in_channels)
    if not is_reference(name) and name not in NETS:
        if name not in (known := _classifiers()):
            hint = nearest(name, [*NETS, *known], count=1)
            hint = hint or f"; use {', '.join(NETS)}, a torchvision classifier, or timm.NAME"
            raise ModelError(f"model.name={name}: unknown model{hint}")
        model = _torchvision_model(config, is_pretrained=wants_imagenet)
        if in_channels != 3:
            replace_first_layer(model, in_channels, name=name, keep_weights=wants_imagenet)
        return model
    if wants_imagenet:
        raise ModelError(f"model.weights=imagenet is for torchvision's and timm's models, but model.name is {name}")
    if is_reference(name):
        factory = load_reference(name, key="model.name")
        outputs = {"num_classes": num_classes} if takes_argument(factory, "num_classes") else {}
        return _checked(_call(factory, {**outputs, **config.arguments}, name=name), name=name)
    arguments = {"num_classes": num_classes, "in_channels": in_channels, **config.arguments}
    return _call(NETS[name], arguments, name=name)


def _checked(made: object, *, name: str) -> nn.Module:
    """Return the result of a user's factory; raises `ModelError` unless it is a network with weights."""
    if not isinstance(made, nn.Module):
        raise ModelError(f"model.name={name} returns {made!r:.60}; return a torch.nn.Module")
    if any(is_lazy(tensor) for tensor in made.parameters()):
        raise ModelError(
            f"model.name={name} has lazy layers, which get their weights in their first pass; give them the sizes of "
            f"their inputs, or run that pass in {name.partition(':')[2]}"
        )
    return made


def _call(factory: Callable[..., nn.Module], arguments: dict[str, Any], *, name: str) -> nn.Module:
    """Call a factory after checking that it accepts the arguments; errors raised inside it are not changed."""
    if (refusal := find_refusal(factory, arguments)) is not None:
        raise ModelError(f"model.name={name} with model.arguments: {refusal}")
    return factory(**arguments)


def _classifiers() -> list[str]:
    from torchvision import models  # takes a second to import

    return list(models.list_models(module=models))


def _torchvision_model(config: Model, *, is_pretrained: bool) -> nn.Module:
    from torchvision import models

    name = config.name
    # GoogLeNet and Inception return a tuple with their auxiliary heads: they are trained without these.
    arguments: dict[str, Any] = {"aux_logits": False} if name in {"googlenet", "inception_v3"} else {}
    if name in {"googlenet", "inception_v3"} and not is_pretrained:
        arguments["init_weights"] = True
    if is_pretrained and arguments:
        raise ModelError(f"model.weights=imagenet is not supported for {name}, whose weights have extra heads")
    try:
        model: nn.Module = models.get_model(
            name, weights="DEFAULT" if is_pretrained else None, **{**arguments, **config.arguments}
        )
    except OSError as error:
        raise _no_download(name, error) from None
    except (TypeError, ValueError) as error:
        raise _wrong_arguments(config, error) from None
    return model


def _timm_model(config: Model, *, num_classes: int | None, in_channels: int) -> nn.Module:
    try:
        import timm  # takes seconds to import
    except ModuleNotFoundError:
        raise ModelError(
            f"model.name={config.name} needs timm, which is not installed; pip install 'distrain[timm]'"
        ) from None
    name = config.name.removeprefix(TIMM)
    if not timm.is_model(name):
        hint = nearest(name, timm.list_models()) or "; `timm.list_models()` in Python lists them"
        raise ModelError(f"timm has no model {name!r}{hint}")
    arguments = {"in_chans": in_channels, **config.arguments}
    if config.head == "replace" and config.head_name is None and num_classes is not None:
        arguments["num_classes"] = num_classes
    try:
        model: nn.Module = timm.create_model(name, pretrained=config.weights == "imagenet", **arguments)
    except OSError as error:
        raise _no_download(config.name, error) from None
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise _wrong_arguments(config, error) from None
    return model


def _timm_heads(model: nn.Module) -> list[str]:
    """Return the paths of a timm network's heads, by its configuration and its `get_classifier`."""
    known = dict(model.named_modules())
    named = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    paths = [path for path in ([named] if isinstance(named, str) else named) if path in known]
    get_classifier: Any = getattr(model, "get_classifier", tuple)  # encoders have none
    classifier = get_classifier()
    layers = classifier if isinstance(classifier, tuple) else (classifier,)
    for path, module in known.items():
        is_named = any(other == path or other.startswith(f"{path}.") for other in paths)
        if any(module is layer for layer in layers) and not is_named and any(True for _ in module.parameters()):
            paths.append(path)
    return paths


def _no_download(name: str, error: OSError) -> WeightsUnreachableError:
    return WeightsUnreachableError(
        f"the ImageNet weights of {name} could not be downloaded ({first_line(error)}); use a file with "
        f"--set model.weights=FILE, or start from random weights with --set model.weights=null"
    )


def _wrong_arguments(config: Model, error: Exception) -> ModelError:
    weights = " and model.weights=imagenet" if config.weights == "imagenet" else ""
    given = f"model.arguments={config.arguments}{weights}"
    return ModelError(f"model.name={config.name} with {given} cannot be built: {first_line(error)}")
