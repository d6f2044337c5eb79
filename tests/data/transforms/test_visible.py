"""Any pixels are made visible: bytes as they are, other ranges stretched, other channels as one grey."""

import pytest
import torch

from distrain.data.transforms.visible import to_visible


def test_bytes_stay_as_they_are_and_other_ranges_are_stretched() -> None:
    pixels = torch.arange(12).view(1, 3, 2, 2) * 20
    assert torch.equal(to_visible(pixels / 255), pixels.to(torch.uint8))
    assert torch.equal(to_visible(pixels.to(torch.uint8)), pixels.to(torch.uint8))
    others = torch.stack([torch.tensor([-3.0, 0.0, 1.0, 5.0]), torch.full((4,), 1e30)]).view(2, 1, 2, 2)
    assert to_visible(others)[0].flatten().tolist() == [0, 96, 128, 255]
    assert not to_visible(others)[1].any()


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_any_channels_and_values_become_grey_or_rgb(channels: int, bad: float) -> None:
    pixels = torch.full((2, channels, 5, 4), 0.5)
    pixels[0, :, 0, 0] = bad
    pixels[1] = bad
    seen = to_visible(pixels)
    assert (seen.dtype, seen.shape) == (torch.uint8, (2, 3 if channels == 3 else 1, 5, 4))
    assert seen[0, 0, 0].tolist() == [0, 128, 128, 128]
    assert not seen[1].any()
