"""Defines AlexNet at half width, one of the two columns of the paper: a common beginner's network for flowers.

Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional neural networks", 2012.
"""

import torch
from torch import nn

from distrain.models.input_size import check_size


class AlexNet5(nn.Module):
    """Five convolutions, 48-128-192-192-128 wide, and three linear layers, for images of 224x224 pixels.

    14.6 million weights for five classes. `dropout` applies to both hidden linear layers.
    """

    def __init__(self, num_classes: int, in_channels: int, *, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 48, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),  # [n, 48, 27, 27]
            nn.Conv2d(48, 128, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),  # [n, 128, 13, 13]
            nn.Conv2d(128, 192, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(192, 192, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(192, 128, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),  # [n, 128, 6, 6]
        )
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(128 * 6 * 6, 2048),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(2048, 2048),
            nn.ReLU(inplace=True),
            nn.Linear(2048, num_classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [n, num_classes]."""
        check_size(images, 224, name="alexnet-5")
        logits: torch.Tensor = self.classifier(self.features(images).flatten(1))
        return logits
