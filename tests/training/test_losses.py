"""The losses are means over samples, are what their papers say, and refuse data that they are not for."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from distrain.config import Loss
from distrain.config.metrics import Target
from distrain.errors import ModelError, RecipeError
from distrain.training.losses import LossFunction, build_loss, check_loss

SAMPLES, CLASSES = 37, 5


def build(target: Target = "class", **config: object) -> LossFunction:
    loss = Loss.model_validate(config)
    return build_loss(loss, num_classes=CLASSES, target=target, device=torch.device("cpu"))


def draw(target: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(SAMPLES, CLASSES, generator=generator) * 3
    targets = {
        "class": torch.randint(0, CLASSES, (SAMPLES,), generator=generator),
        "shares": torch.rand(SAMPLES, CLASSES, generator=generator).softmax(dim=1),  # as mixing samples gives them
        "labels": (torch.rand(SAMPLES, CLASSES, generator=generator) < 0.3).float(),
        "values": torch.randn(SAMPLES, CLASSES, generator=generator),
    }
    return logits, targets[target]


@pytest.mark.parametrize(
    ("config", "drawn"),
    [
        ({"name": "cross_entropy", "label_smoothing": 0.1}, "class"),
        ({"name": "cross_entropy", "label_smoothing": 0.1}, "shares"),
        ({"name": "bce", "pos_weight": 2}, "class"),
        ({"name": "bce", "pos_weight": [1, 2, 3, 4, 5]}, "labels"),
        ({"name": "bce"}, "shares"),
        ({"name": "focal"}, "class"),
        ({"name": "focal"}, "shares"),
        ({"name": "focal", "gamma": 1.5, "alpha": 0.25}, "labels"),
        ({"name": "l1"}, "class"),
        ({"name": "l1"}, "values"),
        ({"name": "mse"}, "shares"),
        ({"name": "mse"}, "values"),
    ],
)
def test_loss_of_a_batch_is_the_mean_of_its_parts_weighted_by_their_sizes(
    config: dict[str, object], drawn: str
) -> None:
    loss = build({"labels": "labels", "values": "values"}.get(drawn, "class"), **config)  # type: ignore[arg-type]
    logits, targets = draw(drawn)
    whole = loss(logits, targets)
    assert whole.shape == ()
    parts = torch.stack([loss(logits[a:b], targets[a:b]) * (b - a) / SAMPLES for a, b in [(0, 8), (8, 9), (9, 37)]])
    assert parts.sum().item() == pytest.approx(whole.item(), rel=1e-6)


@pytest.mark.parametrize("name", ["cross_entropy", "bce", "focal", "l1", "mse"])
def test_shares_that_are_all_of_one_class_are_that_class(name: str) -> None:
    logits, targets = draw("class")
    loss = build(name=name)
    torch.testing.assert_close(loss(logits, targets), loss(logits, F.one_hot(targets, CLASSES).float()))


def test_losses_of_a_class_count_one_for_it_and_zero_for_the_others() -> None:
    logits, targets = torch.tensor([[2.0, -1.0, 0.0, 0.0, 0.0]]), torch.tensor([0])
    assert build(name="mse")(logits, targets).item() == pytest.approx((1 + 1) / 5)
    assert build(name="l1")(logits, targets).item() == pytest.approx((1 + 1) / 5)
    surprises = [0.126928, 0.313262, 0.693147, 0.693147, 0.693147]  # -log of sigmoid(2), sigmoid(1) and 3 x a half
    assert build(name="bce")(logits, targets).item() == pytest.approx(sum(surprises) / 5, abs=1e-5)
    weighted = build(name="bce", pos_weight=3)(logits, targets).item()
    assert weighted == pytest.approx((sum(surprises) + 2 * surprises[0]) / 5, abs=1e-5)


def test_focal_loss_without_focus_is_the_cross_entropy_and_with_it_that_of_the_paper() -> None:
    logits, targets = draw("class")
    torch.testing.assert_close(build(name="focal", gamma=0)(logits, targets), F.cross_entropy(logits, targets))
    logits, labels = draw("labels")
    ours = build("labels", name="focal", gamma=2, alpha=0.25)(logits, labels)
    torch.testing.assert_close(ours, sigmoid_focal_loss(logits, labels, alpha=0.25, gamma=2, reduction="mean"))


@pytest.mark.parametrize("target", ["class", "labels"])
def test_focal_loss_of_a_network_that_is_certain_has_a_gradient(target: Target) -> None:
    logits = torch.full((1, CLASSES), -200.0)
    logits[0, 0] = 200
    logits.requires_grad_()
    targets = torch.tensor([0]) if target == "class" else torch.eye(CLASSES)[:1]
    loss = build(target, name="focal", gamma=0.5)(logits, targets)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(0)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("target", "config", "words"),
    [
        (
            "labels",
            {"name": "cross_entropy"},
            "loss.name=cross_entropy is not for data whose target is labels; use bce",
        ),
        ("values", {"name": "bce"}, "loss.name=bce is not for data whose target is values; use l1, mse, or your own"),
        ("values", {"name": "focal"}, "loss.name=focal is not for"),
        ("labels", {"name": "mse"}, "loss.name=mse is not for"),
        ("labels", {"name": "bce", "pos_weight": [1, 2]}, "loss.pos_weight has 2 numbers and the data has 5 outputs"),
        ("class", {"name": "focal", "alpha": 0.25}, "loss.alpha=0.25 weights positive against negative labels"),
    ],
)
def test_loss_that_does_not_go_with_the_data_is_one_sentence(
    target: Target, config: dict[str, object], words: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        build(target, **config)
    assert words in str(caught.value)


def test_outputs_of_another_shape_than_the_values_are_not_broadcast() -> None:
    with pytest.raises(ModelError, match=r"outputs of shape \[8, 1\] and the targets are \[8, 5\]"):
        build("values", name="mse")(torch.zeros(8, 1), torch.zeros(8, 5))


def test_loss_of_the_user_takes_any_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("my_losses")
    module.half = lambda logits, targets: (logits - targets).mean() / 2  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_losses", module)
    assert build("values", name="my_losses:half")(torch.ones(2, 5), torch.zeros(2, 5)).item() == 0.5


def test_module_as_a_loss_is_made_where_its_class_is_named_and_must_not_learn() -> None:
    made = build("values", name="torch.nn:HuberLoss")
    assert made(torch.ones(2, 5), torch.zeros(2, 5)).item() == 0.5
    with pytest.raises(RecipeError, match=r"loss\.name=torch\.nn:PReLU has a trainable weight, weight, which nothing"):
        build("values", name="torch.nn:PReLU")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            torch.zeros(3),
            r"loss\.name=mine:loss gives float32 \[3\] at \S+, in <lambda>; return the mean over the samples, one",
        ),
        (torch.tensor(1), r"gives int64 \[\]"),
        (None, r"gives None"),
        (0.5, r"gives 0\.5"),
        (torch.tensor(0.5), r"gives a number without a gradient at \S+, in <lambda>; compute it from the logits"),
    ],
)
def test_own_loss_must_give_one_number(given: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        check_loss(lambda *_: given, Loss(name="mine:loss"), torch.zeros(3, dtype=torch.int64), num_outputs=2)
    check_loss(lambda *_: given, Loss(name="mse"), torch.zeros(3, dtype=torch.int64), num_outputs=2)
    check_loss(F.cross_entropy, Loss(name="mine:loss"), torch.zeros(3, dtype=torch.int64), num_outputs=2)
