"""A loss weighted by class has one value for a batch, however the batch is cut."""

import numpy as np
import pytest
import torch

from distrain.config import Loss, load_recipe
from distrain.errors import DataError, RecipeError, UserError
from distrain.training.class_weights import resolve_class_weights
from distrain.training.losses import LossFunction, build_loss

NAMES = ["ants", "bees", "cats"]


def test_balanced_weights_make_the_classes_count_the_same() -> None:
    counts = np.array([6, 2, 1])
    weights = resolve_class_weights("balanced", classes=NAMES, counts=lambda: counts)
    assert weights is not None
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights * torch.from_numpy(counts), torch.full((3,), 3.0), check_dtype=False)


def test_weights_given_need_no_counts() -> None:
    def no_counts() -> np.ndarray:
        raise DataError("the labels are not known")

    assert resolve_class_weights(None, classes=NAMES, counts=no_counts) is None
    given = resolve_class_weights((1, 0, 2.5), classes=NAMES, counts=no_counts)
    assert given is not None
    assert given.tolist() == [1, 0, 2.5]


@pytest.mark.parametrize(
    ("wanted", "kind", "sentence"),
    [
        ("balanced", DataError, "class 'bees' has no training samples, so loss.class_weights=balanced has no weight"),
        ((1.0, 2.0), RecipeError, "loss.class_weights has 2 numbers and the data has 3 classes"),
    ],
)
def test_weights_that_cannot_be_are_one_sentence(
    wanted: str | tuple[float, ...], kind: type[UserError], sentence: str
) -> None:
    with pytest.raises(kind) as caught:
        resolve_class_weights(
            Loss(class_weights=wanted).class_weights, classes=NAMES, counts=lambda: np.array([1, 0, 2])
        )
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("value", ["foo", "[]", "[1, -1]", "[1, .inf]", "[true]", "[a]", "3", "{a: 1}"])
def test_weights_that_are_no_weights_are_one_sentence(value: str) -> None:
    with pytest.raises(RecipeError, match=r"^loss\.class_weights=.*: give balanced, or a list with a number"):
        load_recipe("digits", overrides=[f"loss.class_weights={value}"])


def test_weights_that_are_all_zero_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"^loss\.class_weights=\[0, 0\.0\]: give a number above 0 for one class"):
        load_recipe("digits", overrides=["loss.class_weights=[0, 0.0]"])


def test_weights_survive_the_recipe_of_a_run() -> None:
    for value in ("balanced", "[1, 2.5, 0]"):
        recipe = load_recipe("digits", overrides=[f"loss.class_weights={value}"])
        assert Loss.model_validate(recipe.model_dump(mode="json")["loss"]) == recipe.loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_loss_is_the_same_at_every_cut(smoothing: float) -> None:
    logits, targets = torch.randn(24, 3, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 5 % 3
    weights = torch.tensor([0.2, 1.0, 4.0])
    loss = build(smoothing, weights)
    whole = loss(logits, targets)
    for size in (1, 5, 8):
        cuts = tuple(range(size, 24, size))
        pieces = zip(logits.tensor_split(cuts), targets.tensor_split(cuts), strict=True)
        torch.testing.assert_close(sum(loss(piece, own) * len(own) / 24 for piece, own in pieces), whole)
    if not smoothing:
        by_hand = [-float(weights[y]) * float(row.log_softmax(0)[y]) for row, y in zip(logits, targets, strict=True)]
        assert float(whole) == pytest.approx(sum(by_hand) / 24)
    same = build(smoothing, torch.ones(3))(logits, targets)
    torch.testing.assert_close(same, build(smoothing, None)(logits, targets))


def test_weights_are_cross_entropys() -> None:
    with pytest.raises(RecipeError, match=r"loss\.class_weights=balanced is not used by focal"):
        load_recipe("digits", overrides=["loss={name: focal, class_weights: balanced}"])


def build(smoothing: float, weights: torch.Tensor | None) -> LossFunction:
    config = Loss(label_smoothing=smoothing)
    return build_loss(config, num_classes=3, target="class", device=torch.device("cpu"), class_weights=weights)
