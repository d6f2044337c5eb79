"""Defines a small U-Net: images [n, channels, height, width] to logits [n, classes, height, width].

Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", 2015,
https://arxiv.org/abs/1505.04597, with BatchNorm, padded convolutions, and nearest neighbours on the way up.
"""

import torch
import torch.nn.functional as F
from torch import nn


class UNet(nn.Module):
    """Two 3x3 convolutions on each of `depth` + 1 scales, `width` wide on the largest; for images of any size."""

    def __init__(self, num_classes: int, in_channels: int, *, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        widths = [width * 2**scale for scale in range(depth + 1)]
        self.down = nn.ModuleList(_block(a, b) for a, b in zip([in_channels, *widths], widths, strict=False))
        self.up = nn.ModuleList(_block(a + b, a) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True))
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [n, num_classes, height, width]."""
        scales = [self.down[0](images)]
        for block in self.down[1:]:
            scales.append(block(F.max_pool2d(scales[-1], 2, ceil_mode=True)))
        found = scales.pop()
        for block in self.up:
            beside = scales.pop()
            found = F.interpolate(found, size=beside.shape[-2:], mode="nearest")
            found = block(torch.cat([beside, found], dim=1))
        logits: torch.Tensor = self.head(found)
        return logits


def _block(in_channels: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (in_channels, width):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
