"""Defines the network of the fastest CIFAR-10 training, for images of 32x32 pixels.

Sources: Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024, https://arxiv.org/abs/2404.00498, and before
it Page, "How to train your ResNet", 2018, and tysam-code's hlb-CIFAR10, 2023.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from distrain.models.input_size import check_size

PATCH = 2  # pixels per side
MIN_VARIANCE = 5e-4  # added to the variance of each direction, so that those without contrast are not amplified


class CifarFast(nn.Module):
    """A whitening 2x2 convolution, three groups of two 3x3 convolutions, and a linear layer; 1.97 million weights.

    The whitening convolution stays as `initialize_from` sets it, except for its bias; its outputs are those of each
    X
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        *,
        widths: tuple[int, int, int] = (64, 256, 256),
        logit_scale: float = 1 / 9,
    ) -> None:
        super().__init__()
        num_directions = 2 * in_channels * PATCH**2
        self.whiten = nn.Conv2d(in_channels, num_directions, PATCH)
        self.whiten.weight.requires_grad = False
        nn.init.zeros_(self.whiten.bias)  # type: ignore[arg-type]  # it has one
        self.groups = nn.Sequential(*(Group(*pair) for pair in pairwise((num_directions, *widths))))
        self.head = nn.Linear(widths[-1], num_classes, bias=False)
        self.logit_scale = logit_scale

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [n, num_classes]."""
        check_size(images, 32, name="cifar-fast")
        features = self.groups(F.gelu(self.whiten(images)))  # [n, 256, 3, 3]
        logits: torch.Tensor = self.head(features.amax(dim=(2, 3))) * self.logit_scale
        return logits

    def initialize_from(self, images: torch.Tensor) -> None:
        """Make the first convolution whiten the patches of `images` float32 [n, channels, height, width]."""
        directions = whitening_directions(images, PATCH)
        self.whiten.weight.copy_(torch.cat([directions, -directions]))


class Group(nn.Module):
    """Two 3x3 convolutions, initialised as the identity, each with BatchNorm and GELU; the first with max-pooling."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _convolution(in_channels, out_channels), _norm(out_channels)
        self.conv2, self.norm2 = _convolution(out_channels, out_channels), _norm(out_channels)
        self.pool = nn.MaxPool2d(2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return [n, out_channels, height / 2, width / 2], rounded down."""
        features = F.gelu(self.norm1(self.pool(self.conv1(features))))
        return F.gelu(self.norm2(self.conv2(features)))


def whitening_directions(images: torch.Tensor, size: int) -> torch.Tensor:
    """Return the principal components of the images' patches, each divided by its standard deviation.

    float32 [channels x size x size, channels, size, size], sorted by descending variance. As the weight of a
    convolution they give uncorrelated outputs with variance 1, except for `MIN_VARIANCE`.
    """
    channels = images.shape[1]
    patches = (
        images.unfold(2, size, 1).unfold(3, size, 1).permute(0, 2, 3, 1, 4, 5)
    )  # [n, rows, columns, c, size, size]
    flat = patches.reshape(-1, channels * size**2).double()
    variances, components = torch.linalg.eigh(flat.T @ flat / len(flat))  # the images have mean 0
    signs = components.gather(0, components.abs().argmax(dim=0, keepdim=True)).sign()  # eigh does not define the sign
    scaled = components * signs / (variances.clamp_min(0) + MIN_VARIANCE).sqrt()
    directions: torch.Tensor = scaled.T.flip(0).reshape(-1, channels, size, size).float()
    return directions


def _convolution(in_channels: int, out_channels: int) -> nn.Conv2d:
    layer = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(layer.weight[:in_channels])
    return layer


def _norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    layer.weight.requires_grad = False
    return layer
