"""Builds the losses: functions of (logits, targets) that return the mean over the samples of a batch.

Because it is a mean over samples, the loss of a batch is the mean of the losses of its parts, weighted by their sizes.
Training splits a batch into micro-batches and relies on this.
"""

from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from distrain.config import Loss
from distrain.config.metrics import Target
from distrain.config.user_code import find_refusal, is_reference, load_reference
from distrain.data.sources.targets import NO_CLASS
from distrain.errors import ModelError, RecipeError, UserError
from distrain.messages import counted, first_line
from distrain.system.exits import user_frame
from distrain.tensors.module_state import LossFunction as LossFunction
from distrain.training.own_code import check_value

_FITTING: dict[str, tuple[Target, ...]] = {
    "cross_entropy": ("class", "mask"),
    "bce": ("class", "labels"),
    "focal": ("class", "labels"),
    "l1": ("class", "values"),
    "mse": ("class", "values"),
}
_MIN_COMPLEMENT = torch.finfo(torch.float32).eps  # below it, a power less than 1 would have an infinite gradient


def build_loss(
    config: Loss,
    *,
    num_classes: int,
    target: Target,
    device: torch.device,
    class_weights: torch.Tensor | None = None,
) -> LossFunction:
    """Return the loss of a recipe: a function of logits [n, classes] and targets that returns the mean, a scalar.

    Targets are classes int64 [n], or float32 [n, classes]: the share of each class, a 0 or 1 for each label, or values;
    or masks uint8 [n, height, width], and then logits are [n, classes, height, width].
    `class_weights` float32 [classes] are those of the recipe, resolved. Raises `RecipeError` for a loss that is not for
    the target, and for a number of weights that is not the data's.
    """
    if is_reference(config.name):
        return _user_loss(config.name, device)
    if target not in _FITTING[config.name]:
        fitting = ", ".join(name for name, targets in _FITTING.items() if target in targets)
        raise RecipeError(
            f"loss.name={config.name} is not for data whose target is {target}; use {fitting}, or your own as "
            "package.module:function"
        )
    if config.name == "cross_entropy":
        smoothing = config.label_smoothing or 0.0
        if target == "mask":
            weights = None if class_weights is None else class_weights.to(device)
            return partial(_pixel_cross_entropy, class_weights=weights, label_smoothing=smoothing)
        if class_weights is None:
            return partial(F.cross_entropy, label_smoothing=smoothing)
        return partial(_weighted_cross_entropy, class_weights=class_weights.to(device), label_smoothing=smoothing)
    if config.name == "bce":
        return partial(_binary_cross_entropy, pos_weight=_pos_weight(config, num_classes, device))
    if config.name == "focal":
        return _build_focal(config, target)
    return _absolute_error if config.name == "l1" else _squared_error


def _user_loss(name: str, device: torch.device) -> LossFunction:
    """Return the user's function or module; if the name is a class, an instance of it."""
    function = load_reference(name, key="loss.name")
    if isinstance(function, type) and issubclass(function, nn.Module):
        if (refusal := find_refusal(function, {})) is not None:
            raise RecipeError(
                f"loss.name={name} is a class that is called without arguments ({refusal}); name a function of logits "
                f"and targets instead, or give its arguments defaults"
            )
        function = function()
    if isinstance(function, nn.Module):
        trainable = [weight for weight, value in function.named_parameters() if value.requires_grad]
        if trainable:
            raise RecipeError(
                f"loss.name={name} has a trainable weight, {trainable[0]}, which nothing would train; move it to the "
                f"network, whose outputs the loss receives"
            )
        function = function.to(device)
    return cast("LossFunction", function)


def check_loss(function: LossFunction, config: Loss, targets: torch.Tensor, *, num_outputs: int) -> None:
    """Raise `RecipeError` if a user-defined loss does not return one number for logits and `targets`.

    Also if a library's loss, such as one of torch.nn, raises for them. Errors of the user's own code are not caught.
    """
    if not is_reference(config.name):
        return
    num_samples = 2 if num_outputs != 2 else 3  # not equal to the outputs, where a wrong loss might broadcast
    targets = targets[torch.arange(num_samples, device=targets.device) % len(targets)]
    logits = torch.zeros(num_samples, num_outputs, device=targets.device, requires_grad=True)
    try:
        value = function(logits, targets)
    except Exception as error:
        if isinstance(error, UserError | torch.OutOfMemoryError) or user_frame(error) is not None:
            raise
        reason = first_line(error)
        numbers = "" if targets.is_floating_point() else ", or cross_entropy, which accepts classes"
        raise RecipeError(
            f"loss.name={config.name} does not accept logits {_describe(logits)} and targets {_describe(targets)} "
            f"({reason}); use a loss that does{numbers}"
        ) from error
    check_value(value, function, name=f"loss.name={config.name}", logits=logits)


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _weighted_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, *, class_weights: torch.Tensor, label_smoothing: float
) -> torch.Tensor:
    """Return the sum of the weighted losses divided by the number of samples.

    torch's mean divides by the sum of the weights, which differs between micro-batches: the mean over a batch would
    then depend on how it is split.
    """
    total = F.cross_entropy(logits, targets, weight=class_weights, label_smoothing=label_smoothing, reduction="sum")
    return total / len(targets)


def _pixel_cross_entropy(
    logits: torch.Tensor, masks: torch.Tensor, *, class_weights: torch.Tensor | None, label_smoothing: float
) -> torch.Tensor:
    """Return the sum of the losses of the pixels of masks uint8 [n, height, width], divided by the number of pixels.

    Pixels without a class add nothing, but are in that number: it would else differ between micro-batches.
    """
    total = F.cross_entropy(
        logits.float(),
        masks.long(),
        weight=class_weights,
        ignore_index=NO_CLASS,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    return total / masks.numel()


def _pos_weight(config: Loss, num_classes: int, device: torch.device) -> torch.Tensor | None:
    weights = config.pos_weight
    if weights is None:
        return None
    if len(weights) not in {1, num_classes}:
        raise RecipeError(
            f"loss.pos_weight has {counted(len(weights), 'number')} and the data has {counted(num_classes, 'output')}; "
            "give one number, or one for each"
        )
    return torch.tensor(weights, device=device).expand(num_classes)


def _binary_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, *, pos_weight: torch.Tensor | None
) -> torch.Tensor:
    """Treat every class or label as a separate binary decision; return the mean over samples and classes or labels.

    For classes see Wightman et al., "ResNet strikes back", 2021, https://arxiv.org/abs/2110.00476.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), _dense(targets, logits), pos_weight=pos_weight)


def _build_focal(config: Loss, target: Target) -> LossFunction:
    """Return the focal loss, which gives less weight to well-classified samples.

    Lin et al., "Focal Loss for Dense Object Detection", 2017, https://arxiv.org/abs/1708.02002. With classes, the
    softmax gives the probability, so that gamma=0 is the cross-entropy; with labels, as in the paper, a sigmoid for
    each, and the mean is over samples and labels.
    """
    gamma = 2.0 if config.gamma is None else config.gamma
    if target == "labels":
        positive, negative = (1.0, 1.0) if config.alpha is None else (config.alpha, 1 - config.alpha)
        return partial(_focal_of_labels, gamma=gamma, positive=positive, negative=negative)
    if config.alpha is not None:
        raise RecipeError(
            f"loss.alpha={config.alpha} weights positive against negative labels, and the data has classes; "
            "--set loss.alpha=null unsets it"
        )
    return partial(_focal_of_classes, gamma=gamma)


def _focal_of_classes(logits: torch.Tensor, targets: torch.Tensor, *, gamma: float) -> torch.Tensor:
    cross_entropy_terms = -logits.float().log_softmax(dim=1)
    return (_dense(targets, logits) * _focused(cross_entropy_terms, gamma)).sum(dim=1).mean()


def _focal_of_labels(
    logits: torch.Tensor, targets: torch.Tensor, *, gamma: float, positive: float, negative: float
) -> torch.Tensor:
    share, logits = _dense(targets, logits), logits.float()
    positive_loss = positive * share * _focused(F.softplus(-logits), gamma)
    negative_loss = negative * (1 - share) * _focused(F.softplus(logits), gamma)
    return (positive_loss + negative_loss).mean()


def _focused(cross_entropy_terms: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return -(1 - p)^gamma log p of -log p."""
    complement = -torch.expm1(-cross_entropy_terms)
    return cross_entropy_terms * complement.clamp_min(_MIN_COMPLEMENT) ** gamma


def _absolute_error(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean over samples and outputs; classes are one-hot encoded."""
    return F.l1_loss(logits.float(), _dense(targets, logits))


def _squared_error(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean over samples and outputs; classes are one-hot encoded.

    For classes see Hui and Belkin, "Evaluation of Neural Architectures Trained with Square Loss vs Cross-Entropy in
    Classification Tasks", 2021, https://arxiv.org/abs/2006.07322.
    """
    return F.mse_loss(logits.float(), _dense(targets, logits))


def _dense(targets: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return float32 targets in the shape of the logits; raises `ModelError` if the shapes do not match."""
    if not targets.is_floating_point():
        return F.one_hot(targets, logits.shape[1]).float()
    if targets.shape != logits.shape:  # it would be broadcast
        raise ModelError(
            f"the model gives outputs of shape {list(logits.shape)} and the targets are {list(targets.shape)}, samples "
            "by outputs; let the model give one output for each target"
        )
    return targets
