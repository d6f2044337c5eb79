"""Averages the network's outputs over several views of each image in an evaluation."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from distrain.config import Eval

Predict = Callable[[torch.Tensor], torch.Tensor]  # a network


def predict_with_tta(model: Predict, images: torch.Tensor, config: Eval) -> torch.Tensor:
    """Return the network's outputs [n, outputs] for images [n, channels, height, width], averaged over `eval`'s views.

    A moved image is as large as before, its border mirrored; the two moved ones count half, the image itself the other
    half. Each view is a pass of its own, so that every rank makes the same number of them. As in Jordan, "94% on
    CIFAR-10 in 3.29 Seconds on a Single GPU", 2024, https://arxiv.org/abs/2404.00498.
    """
    if not config.flips and config.shift is None:
        return model(images)
    own = _predict_flips(model, images, config)
    if config.shift is None:
        return own
    height, width = images.shape[-2:]
    padded = F.pad(images, [config.shift] * 4, mode="reflect")
    moved = [padded[:, :, start : start + height, start : start + width] for start in (0, 2 * config.shift)]
    return own / 2 + sum(_predict_flips(model, view, config) for view in moved) / 4


def _predict_flips(model: Predict, images: torch.Tensor, config: Eval) -> torch.Tensor:
    outputs = model(images).float()
    return (outputs + model(images.flip(-1)).float()) / 2 if config.flips else outputs
