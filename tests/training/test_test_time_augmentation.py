"""Evaluation averages the outputs over the views of an image that the recipe asks for."""

import pytest
import torch
from torch import nn

from distrain.config import Eval
from distrain.training.test_time_augmentation import predict_with_tta


class FirstPixel(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :, 0, 0]


IMAGE = torch.arange(16.0).view(1, 1, 4, 4)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (Eval(), 0),
        (Eval(flips=True), (0 + 3) / 2),
        # Moved up left by one pixel the corner shows the 5; moved down right it shows the same, mirrored at the border.
        (Eval(shift=1), 0 / 2 + (5 + 5) / 4),
        (Eval(flips=True, shift=1), (0 + 3) / 4 + (5 + 6 + 5 + 6) / 8),
    ],
)
def test_outputs_are_averaged_over_the_views(config: Eval, expected: float) -> None:
    assert predict_with_tta(FirstPixel(), IMAGE, config).item() == pytest.approx(expected)
