"""Defines two networks from tutorials on CIFAR-10, for images of 32x32 pixels: a plain one and one with BatchNorm."""

from itertools import pairwise

import torch
from torch import nn

from distrain.models.input_size import check_size


class CifarPlain(nn.Module):
    """Three 5x5 convolutions, each followed only by max-pooling, and two linear layers.

    0.15 million weights. Max-pooling is its only nonlinearity.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in pairwise((in_channels, 32, 32, 64)):
            layers += [nn.Conv2d(before, width, 5, padding=2), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(64 * 4 * 4, 64), nn.Linear(64, num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [n, num_classes]."""
        check_size(images, 32, name="cifar-plain")
        logits: torch.Tensor = self.classifier(self.features(images).flatten(1))
        return logits


class CifarSimpleV3(nn.Module):
    """Three pairs of 3x3 convolutions, 32-64-128 wide, each with ReLU and then BatchNorm; a pair ends in max-pooling.

    0.3 million weights.
    """

    def __init__(self, num_classes: int, in_channels: int, *, dropout: float = 0.4) -> None:
        super().__init__()
        pairs = [
            nn.Sequential(*_convolution(before, width), *_convolution(width, width), nn.MaxPool2d(2))
            for before, width in pairwise((in_channels, 32, 64, 128))
        ]
        self.features = nn.Sequential(*pairs)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(128 * 4 * 4, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [n, num_classes]."""
        check_size(images, 32, name="cifar-simple-v3")
        logits: torch.Tensor = self.fc(self.dropout(self.features(images).flatten(1)))
        return logits


def _convolution(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.BatchNorm2d(out_channels),
    ]
