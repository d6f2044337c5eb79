"""Resized crops and resizing: torchvision's pixels from the same draws, and boxes with torchvision's probabilities."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from distrain.data.loading.sampler import MicroBatch
from distrain.data.sources.base import empty_batch
from distrain.data.transforms.resize import RandomResizedCrop, Resize, from_torchvision

BATCH = MicroBatch(np.arange(30))


def photographs(dtype: torch.dtype) -> list[torch.Tensor]:
    """A channels-last image as decoders give it, the same contiguous, and a grey one."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (61, 83, 3), dtype=torch.uint8, generator=generator).to(dtype)
    return [
        pixels.permute(2, 0, 1),
        pixels.permute(2, 0, 1).contiguous(),
        pixels[..., :1].permute(2, 0, 1).contiguous(),
    ]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest", "nearest-exact"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [32, [100, 20]])
def test_crop_is_that_of_torchvision_with_the_same_box(
    size: Any, mode: str, antialias: bool, dtype: torch.dtype
) -> None:
    interpolation = v2.InterpolationMode(mode)
    crop = from_torchvision(v2.RandomResizedCrop(size, interpolation=interpolation, antialias=antialias))
    assert isinstance(crop, RandomResizedCrop)
    size = [size, size] if isinstance(size, int) else size
    for row in crop.draw(BATCH, seed=1, index=0):
        for image in photographs(dtype):
            box = crop.box(61, 83, row)
            expected = reference.resized_crop(image, *box, size, interpolation=interpolation, antialias=antialias)
            assert torch.equal(crop.apply(image, row), expected)
            out = empty_batch(expected, 3)[1]
            assert torch.equal(crop.apply(image, row, out), expected)


@pytest.mark.parametrize("size", [[20, 30], [61, 83]])
def test_bytes_are_resized_into_out_only_where_shape_and_dtype_match(size: list[int]) -> None:
    image = photographs(torch.uint8)[0]
    resize = from_torchvision(v2.Resize(size))
    assert isinstance(resize, Resize)
    expected, nothing = resize.apply(image, np.empty(0)), np.empty(0)
    batch = empty_batch(expected, 3).fill_(7)
    written = resize.apply(image, nothing, out := batch[1])
    assert torch.equal(written, expected)
    assert (written is out) == (size != [61, 83] and torch.backends.cpu.get_cpu_capability().startswith("AVX"))
    assert (batch[::2] == 7).all()
    for other in (batch[1].contiguous(), batch[1].float(), batch[1, :, :19]):
        before = other.clone()
        assert torch.equal(resize.apply(image, nothing, other), expected)
        assert torch.equal(other, before)


@pytest.mark.parametrize(
    ("height", "width", "arguments"),
    [
        (60, 80, {}),
        (40, 300, {}),  # often no attempt lies within it
        (50, 50, {"scale": (0.5, 0.9), "ratio": (0.5, 3.0)}),
        (20, 300, {"scale": (0.9, 1.0)}),
    ],
)
def test_boxes_are_drawn_with_the_probabilities_of_torchvision(
    height: int, width: int, arguments: dict[str, Any]
) -> None:
    theirs = v2.RandomResizedCrop(8, **arguments)
    crop = from_torchvision(theirs)
    assert isinstance(crop, RandomResizedCrop)
    count = 1000
    numbers = crop.draw(MicroBatch(np.arange(count)), seed=2, index=0)
    ours = np.array([crop.box(height, width, row) for row in numbers])
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    drawn = [theirs.make_params([image]) for _ in range(count)]
    expected = np.array([[box["top"], box["left"], box["height"], box["width"]] for box in drawn])
    for column in range(4):
        assert ks_2samp(ours[:, column], expected[:, column]).pvalue > 1e-4
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()


@pytest.mark.parametrize(
    "arguments",
    [
        {"size": 32},
        {"size": [20, 90]},
        {"size": 32, "interpolation": v2.InterpolationMode.BICUBIC},
        {"size": 32, "antialias": False},
        {"size": 60, "max_size": 70},
        {"size": None, "max_size": 40},
    ],
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_resized_image_is_that_of_torchvision(arguments: dict[str, Any], dtype: torch.dtype) -> None:
    theirs = v2.Resize(**arguments)
    ours = from_torchvision(theirs)
    assert ours is not None
    [numbers] = ours.draw(MicroBatch(np.zeros(1, dtype=np.int64)), seed=0, index=0)
    for image in photographs(dtype):
        assert torch.equal(ours.apply(image, numbers), theirs(image))
