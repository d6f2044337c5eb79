"""Makes pixels of any range and number of channels visible."""

import torch

_ROUNDING = 1e-3  # by which normalising and its inverse may leave the range from 0 to 1


def to_visible(pixels: torch.Tensor) -> torch.Tensor:
    """Return pixels [n, channels, height, width], floats or bytes, as bytes: uint8 [n, 1 or 3, height, width].

    Where any floats are not from 0 to 1, each image is stretched from its own range. Channels that are not RGB become
    one grey, and values that are not finite black.
    """
    pixels = pixels.double() / 255 if pixels.dtype == torch.uint8 else pixels.double()
    if pixels.shape[1] not in {1, 3}:
        pixels = pixels.mean(dim=1, keepdim=True)
    is_finite = pixels.isfinite()
    lowest = pixels.where(is_finite, torch.inf).amin(dim=(1, 2, 3), keepdim=True)
    highest = pixels.where(is_finite, -torch.inf).amax(dim=(1, 2, 3), keepdim=True)
    if lowest.min() < -_ROUNDING or highest.max() > 1 + _ROUNDING:
        pixels = (pixels - lowest) / (highest - lowest).clamp_min(1e-9)
    return pixels.where(is_finite, 0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
