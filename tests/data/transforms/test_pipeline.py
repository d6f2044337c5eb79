"""Transforms in YAML are built, and draw from the sample's seed alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

from distrain.config import Augment, load_recipe
from distrain.data.loading.sampler import MicroBatch
from distrain.data.sources.files import read_image
from distrain.data.transforms.pipeline import Normalize, build_transforms
from distrain.errors import RecipeError

RECIPES = {
    "imagenet reference": """[
        RandomResizedCrop: {size: 96, interpolation: bicubic, antialias: true}, RandomHorizontalFlip: {p: 0.5},
        TrivialAugmentWide: {interpolation: bilinear}, RandomErasing: {p: 1.0}]""",
    "trivial augment": "[TrivialAugmentWide, CenterCrop: {size: 200}]",
    "rand augment": "[RandAugment: {num_ops: 2, magnitude: 9, interpolation: nearest}, CenterCrop: {size: 200}]",
    "auto augment": "[AutoAugment, CenterCrop: {size: 200}]",
    "auto augment of cifar10": "[AutoAugment: {policy: cifar10, interpolation: bilinear}, CenterCrop: {size: 200}]",
    "aug mix": "[AugMix: {severity: 3, interpolation: bilinear}, CenterCrop: {size: 200}]",
    "random erasing": "[CenterCrop: {size: 200}, RandomErasing: {p: 1.0, value: [124, 116, 104]}]",
    "resize": "[RandomRotation: {degrees: 9, interpolation: bilinear}, Resize: {size: 48, interpolation: bicubic}]",
}


@pytest.fixture(scope="module")
def photograph(real_images: Path) -> torch.Tensor:
    return read_image(str(next((real_images / "hymenoptera").rglob("*.jpg"))))


@pytest.mark.parametrize("text", RECIPES.values(), ids=RECIPES)
def test_transforms_of_known_recipes_give_the_same_image_for_the_same_sample(
    photograph: torch.Tensor, text: str
) -> None:
    augment = load_recipe("cifar10", overrides=[f"augment.train={text}"]).augment
    results = []
    for sample in (0, 1, 2, 3, 0, 1, 2, 3):
        pipeline = build_transforms(augment.train, key="augment.train")
        assert pipeline is not None
        drawn = pipeline.draw(MicroBatch(np.array([sample])), seed=7)
        results.append(drawn.apply_seeded_rest(drawn.apply_leading(photograph, 0), 0))
    assert {result.shape for result in results} == {results[0].shape}
    assert all(result.dtype == torch.uint8 for result in results)
    assert all(torch.equal(first, again) for first, again in zip(results[:4], results[4:], strict=True))
    assert any(not torch.equal(results[0], other) for other in results[1:4])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "Resize: {size: 32, interpolation: bilinaer}",
            "unknown interpolation 'bilinaer'; use nearest, nearest-exact, bilinear or bicubic",
        ),
        ("AutoAugment: {policy: coco}", "unknown policy 'coco'; use imagenet, cifar10 or svhn"),
        ("RandomCropp: {size: 32}", r"augment.train: unknown transform 'RandomCropp'; did you mean RandomCrop\?"),
        ("cutout", r"unknown transform 'cutout'; did you mean Cutout\?"),
    ],
)
def test_error_lists_the_known_values_for_an_unknown_one(text: str, sentence: str) -> None:
    augment = load_recipe("cifar10", overrides=[f"augment.train=[{text}]"]).augment
    with pytest.raises(RecipeError, match=sentence):
        build_transforms(augment.train, key="augment.train")


@pytest.mark.parametrize(
    ("text", "num_leading", "num_rest", "is_batched"),
    [
        ("[RandomCrop: {size: 8, padding: 1}, RandomHorizontalFlip, Cutout: {size: 2}]", 3, 0, True),
        ("[RandomResizedCrop: {size: 8}, AlternatingFlip]", 2, 0, False),
        ("[Resize: {size: 9}, CenterCrop: {size: 8}]", 2, 0, False),
        ("[RandomHorizontalFlip, ColorJitter, RandomCrop: {size: 8}, Cutout: {size: 2}]", 1, 3, False),
        ("[RandomCrop: {size: 8, padding: 1, padding_mode: symmetric}, RandomHorizontalFlip]", 0, 2, False),
        ("[RandomCrop: {size: 8, pad_if_needed: true}]", 0, 1, False),
    ],
)
def test_seeded_transforms_lead_and_the_rest_runs_in_one_thread(
    text: str, num_leading: int, num_rest: int, is_batched: bool
) -> None:
    pipeline = build_transforms(load_recipe("cifar10", overrides=[f"augment.train={text}"]).augment.train, key="train")
    assert pipeline is not None
    assert (len(pipeline.leading), len(pipeline.rest)) == (num_leading, num_rest)
    assert pipeline.is_thread_safe == (num_rest == 0)
    assert pipeline.is_batched == is_batched
    image = torch.randint(0, 256, (3, 12, 12), dtype=torch.uint8)
    assert pipeline(image).shape == (3, 8, 8)


def test_normalised_images_are_contiguous_whatever_the_format_of_the_loader() -> None:
    normalize = Normalize(
        Augment(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)), num_channels=3, device=torch.device("cpu")
    )
    for dtype in (torch.uint8, torch.float32):
        images = torch.arange(96).reshape(2, 3, 4, 4).to(dtype)
        laid = images.to(memory_format=torch.channels_last)
        assert normalize(laid).is_contiguous()
        assert torch.equal(normalize(laid), normalize(images))
