"""A batch is prepared by (seed, step, micro-batch) alone, and mixed targets say what the mixed images are."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torchvision.models import VisionTransformer

from distrain.config import Recipe, load_recipe
from distrain.data.sources.base import Batch
from distrain.data.transforms.pipeline import Normalize
from distrain.errors import ModelError, RecipeError
from distrain.training.device.batch_transforms import BatchTransform, check_mixing, check_own_transforms, check_sizes

CLASSES = 10


def recipe(*overrides: str) -> Recipe:
    return load_recipe("digits", overrides=["augment.mean=null", "augment.std=null", *overrides])


def preparation(*overrides: str) -> BatchTransform:
    asked = recipe(*overrides)
    normalize = Normalize(asked.augment, num_channels=1, device=torch.device("cpu"))
    return BatchTransform(asked, normalize, steps_per_epoch=5, num_classes=CLASSES)


def batch(count: int = 16, side: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 1, side, side, generator=generator), torch.arange(count) % CLASSES


def own_shares(targets: torch.Tensor) -> torch.Tensor:
    return targets.gather(1, batch()[1][:, None]).squeeze(1)


def test_without_mixing_targets_stay_as_they_are_and_nothing_is_drawn() -> None:
    images, targets = batch()
    before = torch.get_rng_state()
    prepared, same = preparation()(images, targets, step=0, index=0)
    assert same is targets
    assert torch.equal(prepared, images)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("overrides", [["augment.mixup=0.4"], ["augment.cutmix=1.0"]])
def test_a_sample_has_the_share_of_its_class_that_it_has_of_the_image(overrides: list[str]) -> None:
    images, targets = batch()
    mixed, shares = preparation(*overrides)(images, targets, step=3, index=1)
    assert shares.dtype == torch.float32
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(16))
    share = float(own_shares(shares)[0])
    assert 0 < share < 1
    if "augment.cutmix=1.0" in overrides:
        assert float((mixed == images).float().mean()) == pytest.approx(share)
    else:
        torch.testing.assert_close(mixed, share * images + (1 - share) * images.roll(1, 0))


def test_mixing_is_a_function_of_seed_step_and_micro_batch() -> None:
    def shares(seed: int, step: int, index: int) -> float:
        torch.manual_seed(torch.seed())
        mixed = preparation("augment.mixup=0.4", f"train.seed={seed}")(*batch(), step=step, index=index)
        return float(own_shares(mixed[1])[0])

    assert shares(0, 3, 1) == shares(0, 3, 1)
    assert len({shares(0, 3, 1), shares(1, 3, 1), shares(0, 4, 1), shares(0, 3, 2)}) == 4


def test_mix_prob_is_the_share_of_mixed_micro_batches_and_each_kind_has_half_of_them() -> None:
    prepare = preparation("augment.mixup=1.0", "augment.cutmix=1.0", "augment.mix_prob=0.6")
    images, targets = batch()
    kinds = {"none": 0, "cutmix": 0, "mixup": 0}
    for step in range(400):
        mixed, shares = prepare(images, targets, step=step, index=0)
        if torch.equal(mixed, images):
            assert torch.equal(shares, F.one_hot(targets, CLASSES).float()) or float(own_shares(shares)[0]) == 1
            kinds["none"] += 1
        else:
            kinds["cutmix" if bool((mixed == images).any()) else "mixup"] += 1
    assert kinds["none"] == pytest.approx(160, abs=40)
    assert kinds["mixup"] == pytest.approx(kinds["cutmix"], abs=45)


def test_images_have_the_size_of_their_epoch() -> None:
    prepare = preparation("augment.sizes=[[0, 4], [2, 12], [3, 8]]")
    sides = [prepare(*batch(), step=step, index=0)[0].shape[-2:] for step in (0, 9, 10, 14, 15, 99)]
    assert sides == [(4, 4), (4, 4), (12, 12), (12, 12), (8, 8), (8, 8)]
    assert prepare.largest_step == 10


@pytest.mark.parametrize(
    ("loss", "targets", "micro_batch_size", "sentence"),
    [
        (F.nll_loss, torch.tensor([1, 2]), 16, "loss.name=cross_entropy does not accept the shares of classes"),
        (F.cross_entropy, torch.tensor([0.5, 1.5]), 16, "samples of one class each"),
        (F.cross_entropy, torch.tensor([1, 2]), 1, "raise train.micro_batch_size"),
    ],
)
def test_what_cannot_be_mixed_is_said(loss: Any, targets: torch.Tensor, micro_batch_size: int, sentence: str) -> None:
    asked = recipe("augment.cutmix=1.0")
    with pytest.raises(RecipeError, match=sentence):
        check_mixing(asked, loss, targets, num_classes=CLASSES, micro_batch_size=micro_batch_size)
    check_mixing(recipe(), loss, targets, num_classes=CLASSES, micro_batch_size=micro_batch_size)
    check_mixing(asked, F.cross_entropy, torch.tensor([1, 2]), num_classes=CLASSES, micro_batch_size=2)


def test_network_that_takes_one_size_alone_is_refused_for_others() -> None:
    network = VisionTransformer(16, 8, 1, 1, 16, 16, num_classes=CLASSES).eval()
    check_sizes(recipe("augment.sizes=[[0, 16]]"), network, num_channels=3)
    with pytest.raises(ModelError, match="does not accept images of 24x24 pixels"):
        check_sizes(recipe("augment.sizes=[[0, 16], [1, 24]]"), network, num_channels=3)


def tinted(amount: float) -> Any:
    return lambda images, targets: (images + amount * torch.rand(len(images), 1, 1, 1), targets.flip(0))


def halved() -> Any:
    return lambda images, targets: (images[::2], targets)


def images_only() -> Any:
    return lambda images, targets: images


def shares() -> Any:
    return lambda images, targets: (images, torch.full((len(images), 3), 1 / 3))


def own(name: str, **arguments: object) -> str:
    return f"augment.batch=[{{'tests.training.device.test_batch_transforms:{name}': {arguments}}}]"


def test_own_transform_of_a_batch_is_drawn_by_step_and_micro_batch_alone() -> None:
    images, targets = batch()
    prepare = preparation(own("tinted", amount=0.5))
    first, flipped = prepare(images, targets, step=3, index=1)
    torch.rand(5)
    again, _ = prepare(images, targets, step=3, index=1)
    other, _ = prepare(images, targets, step=3, index=2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(flipped, targets.flip(0))
    assert torch.equal(prepare.inputs(images, step=3), images)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("halved", ["gives images [8, 1, 8, 8] and targets [16]", "in <lambda> for 16 samples"]),
        ("images_only", ["gives Tensor", "return (images, targets)"]),
        ("shares", ["loss.name=cross_entropy does not accept the targets [16, 3]"]),
        ("CLASSES", ["is 10", "name a function or a class"]),
    ],
)
def test_own_transform_that_gives_no_batch_is_refused(name: str, words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        prepare, asked = preparation(own(name)), recipe(own(name))
        check_own_transforms(asked, prepare, *batch(), F.cross_entropy, num_outputs=CLASSES)
    assert all(word in str(caught.value) for word in words), caught.value
