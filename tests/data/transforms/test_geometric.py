"""Crops, flips and cutout: torchvision's pixels and probabilities, and the same bits alone and in a batch."""

from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from distrain.config import Augment
from distrain.data.loading.sampler import MicroBatch
from distrain.data.transforms.geometric import ADDED, Batched, Seeded, from_torchvision
from distrain.data.transforms.pipeline import build_transforms
from distrain.errors import RecipeError

CROPS: dict[str, dict[str, Any]] = {
    "no padding": {"size": 9},
    "one padding": {"size": 12, "padding": 4},
    "pair": {"size": [12, 10], "padding": [1, 3]},
    "four": {"size": [13, 9], "padding": [1, 2, 3, 4], "fill": 77},
    "a fill a channel": {"size": 15, "padding": 5, "fill": [10, 200, 30]},
    "reflect": {"size": 14, "padding": 4, "padding_mode": "reflect"},
    "edge": {"size": 14, "padding": [4, 2], "padding_mode": "edge"},
    "whole": {"size": [12, 16]},
}
LISTS: dict[str, list[Any]] = {
    **{f"crop, {name}": [{"RandomCrop": arguments}] for name, arguments in CROPS.items()},
    "horizontal flip": ["RandomHorizontalFlip"],
    "vertical flip": [{"RandomVerticalFlip": {"p": 0.3}}],
    "alternating flip": ["AlternatingFlip"],
    "center crop": [{"CenterCrop": {"size": 7}}],
    "center crop of more than there is": [{"CenterCrop": {"size": [20, 5]}}],
    "cutout": [{"Cutout": {"size": 5}}],
    "cutout in a colour": [{"Cutout": {"size": 4, "fill": [10, 20, 30]}}],
    "airbench": [{"RandomCrop": {"size": 12, "padding": 2, "padding_mode": "reflect"}}, "AlternatingFlip"],
    "all": [
        {"RandomCrop": {"size": 12, "padding": 2}},
        "RandomHorizontalFlip",
        "RandomVerticalFlip",
        {"Cutout": {"size": 4}},
    ],
}


def built(*listed: Any) -> Seeded:
    transforms = build_transforms(Augment.model_validate({"train": listed}).train, key="augment.train")
    assert transforms is not None
    assert not transforms.rest
    return transforms.leading[0]


def batch(count: int, *, epoch: int = 0, copies: int | None = None) -> MicroBatch:
    return MicroBatch(np.arange(count), epoch, None if copies is None else np.full(count, copies))


def pictures(count: int) -> torch.Tensor:
    return torch.randint(1, 256, (count, 3, 12, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("listed", LISTS.values(), ids=LISTS)
def test_batch_has_the_bits_of_its_images_alone(listed: list[Any]) -> None:
    check_batch(listed, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("listed", LISTS.values(), ids=LISTS)
def test_batch_on_a_gpu_has_the_bits_of_its_images_alone(listed: list[Any]) -> None:
    check_batch(listed, "cuda")


def check_batch(listed: list[Any], device: str) -> None:
    transforms = build_transforms(Augment.model_validate({"train": listed}).train, key="augment.train")
    assert transforms is not None
    assert transforms.is_batched
    images = pictures(40)
    before = images.clone()
    drawn = transforms.draw(MicroBatch(np.arange(40) * 7, 3), seed=5)
    parameters = [torch.from_numpy(rows).to(device) for rows in drawn.to_parameters((12, 16))]
    whole = drawn.apply_parameters(parameters, images.to(device)).cpu()  # as on a GPU, which the CPU does as well
    assert torch.equal(whole, drawn.apply_to_batch(images))
    for position, image in enumerate(images):
        assert torch.equal(drawn.apply_leading(image, position), whole[position])
        decoded = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # channels last
        assert torch.equal(drawn.apply_leading(decoded, position), whole[position])
    assert torch.equal(images, before)  # what is held must not change


@pytest.mark.parametrize("arguments", CROPS.values(), ids=CROPS)
def test_crop_is_that_of_torchvision_with_the_same_corner(arguments: dict[str, Any]) -> None:
    crop = built({"RandomCrop": arguments})
    numbers = crop.draw(batch(20), seed=1, index=0)
    height, width = np.broadcast_to(arguments["size"], 2).tolist()
    for image, row in zip(pictures(20), numbers, strict=True):
        padded = image
        if "padding" in arguments:
            mode = arguments.get("padding_mode", "constant")
            padded = reference.pad(image, arguments["padding"], fill=arguments.get("fill", 0), padding_mode=mode)
        top, left = (int(u * (n - m + 1)) for u, n, m in zip(row, padded.shape[1:], (height, width), strict=True))
        assert torch.equal(crop.apply(image, row), reference.crop(padded, top, left, height, width))


def test_crops_come_from_every_position_equally_often_as_those_of_torchvision_do() -> None:
    image = torch.arange(81, dtype=torch.uint8).reshape(1, 9, 9)  # a crop of one pixel tells its place
    crop = built({"RandomCrop": {"size": 1}})
    numbers = crop.draw(batch(40_500), seed=2, index=0)
    places = crop.apply_to_batch(image.expand(40_500, 1, 9, 9), numbers).flatten()  # type: ignore[attr-defined]
    counts = torch.bincount(places, minlength=81)
    assert (counts - 500).abs().max() < 5 * 500**0.5


@pytest.mark.parametrize(("name", "probability"), [("RandomHorizontalFlip", 0.3), ("RandomVerticalFlip", 0.5)])
def test_flip_is_that_of_torchvision_with_its_probability(name: str, probability: float) -> None:
    flip = built({name: {"p": probability}})
    numbers = flip.draw(batch(10_000), seed=3, index=1)[:, 0]
    assert abs(numbers.mean() - probability) < 5 * (probability * (1 - probability) / 10_000) ** 0.5
    image = pictures(1)[0]
    turned = reference.horizontal_flip(image) if "Horizontal" in name else reference.vertical_flip(image)
    assert torch.equal(flip.apply(image, np.ones(1)), turned)
    assert torch.equal(flip.apply(image, np.zeros(1)), image)


def test_alternating_flip_shows_each_sample_both_ways_in_two_epochs() -> None:
    flip = built("AlternatingFlip")
    epochs = [flip.draw(batch(10_000, epoch=epoch), seed=4, index=0)[:, 0] for epoch in range(4)]
    assert (epochs[0] + epochs[1] == 1).all()
    assert (epochs[0] == epochs[2]).all()
    assert (epochs[1] == epochs[3]).all()
    assert abs(epochs[0].mean() - 0.5) < 0.025
    assert (flip.draw(batch(10_000, copies=1), seed=4, index=0)[:, 0] == epochs[1]).all()
    assert (flip.draw(batch(10_000), seed=5, index=0)[:, 0] != epochs[0]).any()


@pytest.mark.parametrize("size", [1, 4, 5, 40])
def test_cutout_sets_a_square_around_its_centre_and_nothing_else(size: int) -> None:
    cutout = built({"Cutout": {"size": size}})
    numbers = cutout.draw(batch(300), seed=6, index=0)
    middles = (numbers * [12, 16]).astype(int)
    assert {0, 11} <= set(middles[:, 0].tolist()) <= set(range(12))
    assert {0, 15} <= set(middles[:, 1].tolist()) <= set(range(16))
    for image, row, (y, x) in zip(pictures(300), numbers, middles.tolist(), strict=True):
        expected = image.clone()
        top, left = max(0, y - size // 2), max(0, x - size // 2)
        expected[:, top : y - size // 2 + size, left : x - size // 2 + size] = 0
        assert torch.equal(cutout.apply(image, row), expected)


@pytest.mark.parametrize(
    "listed", ["RandomHorizontalFlip", {"Cutout": {"size": 3}}, {"RandomResizedCrop": {"size": 4}}]
)
def test_draws_depend_on_seed_epoch_sample_copy_and_index_alone(listed: Any) -> None:
    transform = built(listed)
    order = np.array([9, 2, 7, 300])
    drawn = transform.draw(MicroBatch(order, 4, np.array([0, 1, 2, 0])), seed=8, index=1)
    for row, index, copy in zip(drawn, order, (0, 1, 2, 0), strict=True):
        alone = transform.draw(MicroBatch(np.array([index]), 4, np.array([copy])), seed=8, index=1)
        assert np.array_equal(alone[0], row)
    many = [
        transform.draw(MicroBatch(np.arange(100), epoch, np.full(100, copy)), seed=seed, index=place).tobytes()
        for seed in (0, 1)
        for epoch in (0, 1)
        for copy in (0, 1)
        for place in (0, 1)
    ]
    assert len(set(many)) == 16
    without = transform.draw(MicroBatch(np.arange(100)), seed=0, index=0)
    assert without.tobytes() == many[0]  # a sample that is read once is its copy 0


@pytest.mark.parametrize(
    ("listed", "sentence"),
    [
        ({"Cutout": {"size": 0}}, r"Cutout does not accept .*size is 0; use a whole number"),
        ({"Cutout": {"sise": 3}}, r"Cutout does not accept .*sise"),
        ({"AlternatingFlip": {"p": 0.5}}, r"AlternatingFlip does not accept"),
    ],
)
def test_wrong_arguments_are_one_sentence(listed: Any, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        built(listed)


def test_transform_that_cannot_be_applied_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="crop of 20x20 is larger than the image, which is 12x16 with its padding"):
        built({"RandomCrop": {"size": 20}}).apply(pictures(1)[0], np.zeros(2))
    with pytest.raises(ValueError, match=r"fill has 3 numbers, but the image has 1 channel$"):
        built({"Cutout": {"size": 2, "fill": [1, 2, 3]}}).apply(pictures(1)[0, :1], np.zeros(2))


def test_added_names_hide_none_of_torchvision() -> None:
    from torchvision.transforms import v2

    assert not any(hasattr(v2, name) for name in ADDED)
    assert from_torchvision(v2.ColorJitter()) is None
    assert isinstance(from_torchvision(v2.RandomCrop(3)), Batched)
