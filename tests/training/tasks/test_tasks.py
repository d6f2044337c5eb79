"""What the tasks compute, against plain formulas."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from distrain.config import load_recipe
from distrain.config.metrics import Target
from distrain.data.sources.targets import NO_CLASS
from distrain.errors import DataError, ModelError
from distrain.export.write_bundle import write_bundle
from distrain.training.losses import build_loss
from distrain.training.setup.data import set_up_data
from distrain.training.tasks.build import build_task
from distrain.training.tasks.protocol import TaskSetup
from distrain.training.tasks.teacher import open_teacher
from tests.export.factories import make_bundle
from tests.masks import write_masks
from tests.training.test_build import ALONE, PROFILE, recipe_with, session_of

CLASSES = ["a", "b", "c"]


def setup_of(network: nn.Module, *overrides: str, target: Target = "class", heads: tuple[str, ...] = ()) -> TaskSetup:
    recipe = load_recipe("digits", overrides=["augment={}", *overrides])
    return TaskSetup(
        recipe=recipe,
        network=network,
        heads=heads,
        classes=CLASSES,
        target=target,
        loss=build_loss(recipe.loss, num_classes=3, target=target, device=ALONE.device),
        images=torch.rand(2, 1, 8, 8),
        device=ALONE.device,
        num_devices=1,
        is_training=True,
    )


def test_segmentation_is_measured_by_intersections_over_unions() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, 3, 4, 4, generator=generator)
    masks = torch.randint(2, (5, 4, 4), generator=generator).to(torch.uint8)  # class c is in no mask
    masks[:, 0] = NO_CLASS
    overrides = ["task=segmentation", "data={source: maskfolder, target: mask, batch_size: 4}", "loss={}"]
    task = build_task(setup_of(nn.Identity(), *overrides, target="mask"))
    parts = [task.evaluate(nn.Identity(), (logits[part], masks[part])) for part in (slice(0, 2), slice(2, 5))]
    sums = {name: parts[0][name] + parts[1][name] for name in parts[0]}
    found = task.metrics(sums, 5)  # type: ignore[attr-defined]  # one of the optional methods
    guesses, counted = logits.argmax(dim=1), masks != NO_CLASS
    ratios = []
    for number in range(3):
        own, said = (masks == number) & counted, (guesses == number) & counted
        ratios.append((own & said).sum() / (own | said).sum())
    assert found["iou"] == pytest.approx(float(torch.stack(ratios).mean()))
    assert found["pixel_accuracy"] == pytest.approx(float((guesses == masks)[counted].double().mean()))
    per_pixel = F.cross_entropy(logits, masks.long(), ignore_index=NO_CLASS, reduction="none")
    assert found["loss"] == pytest.approx(float(per_pixel.mean()))


def test_views_are_compared_as_in_simclr() -> None:
    outputs = torch.randn(8, 5, generator=torch.Generator().manual_seed(2))
    overrides = ["task={name: self-supervised, dimensions: 5, temperature: 0.5}", "loss={}", "data.repeats=2"]
    task = build_task(setup_of(nn.Identity(), *overrides))
    found = task.loss(nn.Identity(), (outputs, torch.zeros(8)))["loss"]
    terms = []
    for i in range(8):
        alike = [math.exp(F.cosine_similarity(outputs[i], outputs[j], dim=0) / 0.5) for j in range(8)]
        terms.append(-math.log(alike[i ^ 1] / (sum(alike) - alike[i])))
    assert found.item() == pytest.approx(sum(terms) / 8, rel=1e-5)


def test_micro_batch_has_each_sample_twice_with_other_augmentation() -> None:
    recipe = recipe_with(
        *("task={name: self-supervised, dimensions: 5}", "loss={}", "data.repeats=2", "data.drop_last=true"),
        "augment.train=[RandomCrop: {size: 8, padding: 3}]",
    )
    data = set_up_data(recipe, PROFILE, ALONE)
    micro_batch = next(iter(data.sampler.micro_batches([0])))
    assert micro_batch.indices[::2].tolist() == micro_batch.indices[1::2].tolist()
    assert not torch.equal(data.first[0][::2], data.first[0][1::2])


class Fixed(nn.Module):
    """A network whose outputs are given, with a head before them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
        self.fc = nn.Linear(7, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.body(images))
        return logits


def test_student_learns_from_labels_outputs_and_features(tmp_path: Path) -> None:
    write_bundle(make_bundle(), tmp_path / "teacher")
    student = Fixed()
    config = f"teacher: {tmp_path / 'teacher'}, logit_weight: 0.3, temperature: 2, feature_weight: 0.7"
    setup = setup_of(student, f"task={{name: distillation, {config}}}", "loss={}", heads=("fc",))
    task = build_task(setup)
    images, targets = torch.rand(6, 1, 8, 8), torch.tensor([0, 1, 2, 2, 1, 0])
    found = task.loss(student.train(), (images, targets))
    teacher = open_teacher(setup, uses_outputs=True)
    theirs, their_features = teacher(images)
    outputs = student.fc(student.body(images))
    features = student.get_submodule("task_layers")(student.body(images))
    assert their_features is not None
    soft = (theirs / 2).softmax(dim=1)
    distance = 4 * (soft * (soft.log() - (outputs / 2).log_softmax(dim=1))).sum(dim=1).mean()
    labels, apart = F.cross_entropy(outputs, targets), 1 - F.cosine_similarity(features, their_features, dim=1).mean()
    assert found["logit_loss"].item() == pytest.approx(distance.item(), rel=1e-4)
    assert found["loss"].item() == pytest.approx((0.7 * labels + 0.3 * distance + 0.7 * apart).item(), rel=1e-5)
    assert student.eval()(images).shape == (6, 3)
    assert all(weight.grad is None for weight in teacher.network.parameters())


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("a", "b"), "has 2 classes, and the data has 3"),
        (("a", "c", "b"), "number 1 is 'c' there and 'b' here"),
    ],
)
def test_teacher_with_other_classes_is_refused_unless_only_its_features_count(
    tmp_path: Path, classes: tuple[str, ...], words: str
) -> None:
    write_bundle(make_bundle(classes=classes), tmp_path / "teacher")
    network, config = Fixed(), f"name: distillation, teacher: {tmp_path / 'teacher'}"
    with pytest.raises(ModelError, match=words):
        build_task(setup_of(network, f"task={{{config}}}", heads=("fc",)))
    only = setup_of(network, f"task={{{config}, logit_weight: 0, feature_weight: 1}}", heads=("fc",))
    assert build_task(only).loss(network, (torch.rand(2, 1, 8, 8), torch.tensor([0, 1])))["loss"].requires_grad


def test_teacher_from_timm_reads_a_file(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("resnet10t", num_classes=3, in_chans=1).state_dict(), tmp_path / "weights.pth")
    torch.save(timm.create_model("resnet10t", num_classes=4, in_chans=1).state_dict(), tmp_path / "other.pth")
    config = f"name: distillation, teacher: timm.resnet10t, teacher_weights: {tmp_path}"
    teacher = open_teacher(setup_of(Fixed(), f"task={{{config}/weights.pth}}"), uses_outputs=True)
    assert teacher.num_features == 512
    with pytest.raises(ModelError, match=r"task\.teacher_weights=.* does not fit the model: fc\.weight is 4x512"):
        open_teacher(setup_of(Fixed(), f"task={{{config}/other.pth}}"), uses_outputs=True)


def test_teacher_gets_images_in_its_own_normalisation(tmp_path: Path) -> None:
    write_bundle(make_bundle(), tmp_path / "teacher")  # mean 0.3, standard deviation 0.4
    images = torch.rand(2, 1, 8, 8)
    found = [
        open_teacher(
            setup_of(Fixed(), f"task={{name: distillation, teacher: {tmp_path / 'teacher'}}}", *augment),
            uses_outputs=True,
        )(given)[0]
        for augment, given in (
            ([], images),
            (["augment={mean: [0.1], std: [0.5]}"], (images - 0.1) / 0.5),
            (["augment={mean: [0.3], std: [0.4]}"], (images - 0.3) / 0.4),
        )
    ]
    assert torch.allclose(found[0], found[1], atol=1e-5)
    assert torch.allclose(found[0], found[2], atol=1e-5)


MASKS = [
    *("task=segmentation", "loss={}", "model={name: unet, arguments: {width: 4, depth: 1}}"),
    "train={epochs: 1, micro_batch_size: 4}",
]


def test_image_and_mask_are_transformed_alike(tmp_path: Path) -> None:
    write_masks(tmp_path / "masks", train=8, val=4)
    for split in ("train", "val"):  # the images are their own masks
        for mask in (tmp_path / "masks" / split / "masks").iterdir():
            Image.open(mask).save(tmp_path / "masks" / split / "images" / mask.name)
    recipe = load_recipe(
        "digits",
        overrides=[
            *MASKS,
            f"data={{source: maskfolder, path: {tmp_path / 'masks'}, target: mask, batch_size: 8}}",
            "augment={train: [{RandomCrop: {size: 10}}, RandomHorizontalFlip, {RandomRotation: {degrees: [90, 90]}}]}",
        ],
    )
    data = set_up_data(recipe, PROFILE, ALONE)
    images, masks = data.first
    assert images.shape == (4, 3, 10, 10)
    assert masks.dtype == torch.uint8
    assert torch.equal(images[:, 0], masks)
    assert data.train_source.classes == ("background", "rectangle", "cross")


def break_size(folder: Path) -> None:
    Image.new("L", (7, 9)).save(folder / "train" / "masks" / "003.png")


def break_numbers(folder: Path) -> None:
    Image.new("L", (16, 16), 9).save(folder / "train" / "masks" / "003.png")


def break_mode(folder: Path) -> None:
    Image.new("RGB", (16, 16)).save(folder / "train" / "masks" / "003.png")


def break_pair(folder: Path) -> None:
    (folder / "train" / "masks" / "003.png").unlink()


def break_classes(folder: Path) -> None:
    (folder / "classes.txt").unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_size, r"masks/003\.png has a mask 9x7 and an image 16x16"),
        (break_numbers, r"masks/003\.png has 9 in its mask, outside 0 to 2"),
        (break_mode, r"masks/003\.png has mode RGB"),
        (break_pair, r"images/003\.png has no mask of the same name"),
        (break_classes, r"classes\.txt cannot be read"),
    ],
)
def test_mask_that_does_not_fit_is_named(tmp_path: Path, damage: object, words: str) -> None:
    write_masks(tmp_path / "masks", train=4, val=2)
    assert callable(damage)
    damage(tmp_path / "masks")
    data = f"data={{source: maskfolder, path: {tmp_path / 'masks'}, target: mask, batch_size: 4}}"
    with pytest.raises(DataError, match=words):
        session_of(tmp_path / "run", *MASKS, "augment={}", data)


def test_network_without_masks_is_refused(tmp_path: Path) -> None:
    write_masks(tmp_path / "masks", train=4, val=2)
    data = f"data={{source: maskfolder, path: {tmp_path / 'masks'}, target: mask, batch_size: 4}}"
    with pytest.raises(ModelError, match=r"gives \[4, 3\] for images \[4, 3, 16, 16\]"):
        session_of(tmp_path / "run", *MASKS, "model={name: digits-cnn}", "augment={}", data)
