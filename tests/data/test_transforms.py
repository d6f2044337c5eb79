"""Transforms written in YAML build and draw from the sample's seed alone."""

from pathlib import Path

import pytest
import torch
from torchvision.io import decode_image

from distrain.data.transforms import build_transforms, seed_sample
from distrain.errors import RecipeError
from distrain.recipe import load_recipe

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
    image: torch.Tensor = decode_image(str(next((real_images / "hymenoptera").rglob("*.jpg"))))
    return image


@pytest.mark.parametrize("text", RECIPES.values(), ids=RECIPES)
def test_ingredients_of_known_recipes_give_the_same_image_for_the_same_sample(
    photograph: torch.Tensor, text: str
) -> None:
    augment = load_recipe("cifar10", overrides=[f"augment.train={text}"]).augment
    results = []
    for sample in (0, 1, 2, 3, 0, 1, 2, 3):
        pipeline = build_transforms(augment.train, key="augment.train")
        assert pipeline is not None
        seed_sample(7, 0, sample)
        results.append(pipeline(photograph))
    assert {result.shape for result in results} == {results[0].shape}
    assert all(result.dtype == torch.uint8 for result in results)
    assert all(torch.equal(first, again) for first, again in zip(results[:4], results[4:], strict=True))
    assert any(not torch.equal(results[0], other) for other in results[1:4])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "Resize: {size: 32, interpolation: bilinaer}",
            "there is no interpolation 'bilinaer'; take nearest, nearest-exact, bilinear, bicubic",
        ),
        ("AutoAugment: {policy: coco}", "there is no policy 'coco'; take imagenet, cifar10, svhn"),
    ],
)
def test_word_that_torchvision_does_not_have_is_said_with_those_that_it_has(text: str, sentence: str) -> None:
    augment = load_recipe("cifar10", overrides=[f"augment.train=[{text}]"]).augment
    with pytest.raises(RecipeError, match=sentence):
        build_transforms(augment.train, key="augment.train")
