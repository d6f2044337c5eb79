"""Defines the small networks of the built-in recipes: images [n, channels, height, width] to logits [n, classes]."""

from itertools import pairwise

import torch
from torch import nn


class DigitsCnn(nn.Module):
    """Three 3x3 convolutions with BatchNorm, for images of about 8x8 pixels; 0.1 million weights."""

    def __init__(self, num_classes: int, in_channels: int, *, dropout: float = 0.2) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _convolution(in_channels, 32),
            _convolution(32, 64),
            nn.MaxPool2d(2),
            _convolution(64, 128),
            nn.AdaptiveAvgPool2d(2),
        )
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(128 * 4, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [n, num_classes]."""
        logits: torch.Tensor = self.fc(self.dropout(self.features(images).flatten(1)))
        return logits


class CifarCnn(nn.Module):
    """Six 3x3 convolutions with BatchNorm, 32-64-128 wide, for images of about 32x32 pixels; 0.3 million weights."""

    def __init__(self, num_classes: int, in_channels: int, *, dropout: float = 0.2) -> None:
        super().__init__()
        widths = (in_channels, 32, 64, 128)
        blocks = [
            nn.Sequential(_convolution(before, width), _convolution(width, width), nn.MaxPool2d(2))
            for before, width in pairwise(widths)
        ]
        self.features = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(2))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(128 * 4, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [n, num_classes]."""
        logits: torch.Tensor = self.fc(self.dropout(self.features(images).flatten(1)))
        return logits


def _convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),  # BatchNorm has a bias
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
