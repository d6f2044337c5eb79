"""Defines LeNet as in the PyTorch tutorial on CIFAR-10, with the tutorial's layer names.

LeCun et al., "Gradient-based learning applied to document recognition", 1998, with ReLU and max-pooling;
https://pytorch.org/tutorials/beginner/blitz/cifar10_tutorial.html.
"""

import torch
import torch.nn.functional as F
from torch import nn

from distrain.models.input_size import check_size


class LeNet(nn.Module):
    """Two 5x5 convolutions and three linear layers, for images of 32x32 pixels; 62 thousand weights."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [n, num_classes]."""
        check_size(images, 32, name="lenet")
        features = self.pool(F.relu(self.conv1(images)))  # [n, 6, 14, 14]
        features = self.pool(F.relu(self.conv2(features)))  # [n, 16, 5, 5]
        features = F.relu(self.fc2(F.relu(self.fc1(features.flatten(1)))))
        logits: torch.Tensor = self.fc3(features)
        return logits
