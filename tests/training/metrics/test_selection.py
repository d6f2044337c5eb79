"""What is measured, by the kind of target and by what the recipe names; what is best, and in which words."""

import math
from typing import Any

import pytest

from distrain.config import Eval
from distrain.config.metrics import Target, format_loss, format_metric, is_better, score
from distrain.errors import RecipeError
from distrain.training.metrics.selection import ChosenMetrics, choose_metrics


def choose(target: Target, size: int = 10, **config: Any) -> ChosenMetrics:
    return choose_metrics(Eval.model_validate(config), target=target, classes=[str(i) for i in range(size)])


@pytest.mark.parametrize(
    ("target", "size", "config", "names", "best", "shown"),
    [
        ("class", 10, {}, ["top1", "top5"], "top1", ["top1"]),
        ("class", 5, {}, ["top1"], "top1", ["top1"]),
        ("labels", 3, {}, ["f1", "auroc", "exact_match"], "f1", ["f1"]),
        ("values", 1, {}, ["mae", "rmse"], "mae", ["mae"]),
        ("class", 10, {"best": "loss"}, ["top1", "top5"], "loss", ["top1"]),
        ("class", 10, {"best": "f1"}, ["top1", "top5", "f1"], "f1", ["f1"]),
        (
            "class",
            10,
            {"metrics": ["f1", "confusion_matrix"]},
            ["f1", "confusion_matrix", "top1"],
            "top1",
            ["top1", "f1"],
        ),
        ("class", 10, {"metrics": []}, ["top1"], "top1", ["top1"]),
        ("values", 2, {"metrics": ["rmse"], "best": "rmse"}, ["rmse"], "rmse", ["rmse"]),
    ],
)
def test_metrics_follow_the_target_and_the_recipe(
    target: Target, size: int, config: dict[str, Any], names: list[str], best: str, shown: list[str]
) -> None:
    chosen = choose(target, size, **config)
    assert (list(chosen.names), chosen.best, list(chosen.shown)) == (names, best, shown)


@pytest.mark.parametrize(
    ("target", "size", "config", "words"),
    [
        ("class", 10, {"metrics": ["mae"]}, "eval.metrics names mae, which is not for data whose target is class"),
        ("values", 1, {"metrics": ["mae", "top1"]}, "names top1, which is not for data whose target is values"),
        ("labels", 4, {"best": "top1"}, "eval.best names top1, which is not for data whose target is labels"),
        ("class", 4, {"metrics": ["top5"]}, "eval.metrics names top5, and the data has 4 classes"),
    ],
)
def test_metric_that_does_not_go_with_the_data_is_one_sentence(
    target: Target, size: int, config: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        choose(target, size, **config)


@pytest.mark.parametrize(
    ("name", "now", "before", "wins"),
    [
        ("top1", 0.5, None, True),
        ("top1", 0.5, 0.4, True),
        ("top1", 0.5, 0.5, False),
        ("mae", 0.4, 0.5, True),
        ("rmse", 0.5, 0.4, False),
        ("loss", -1.0, 0.0, True),
        ("loss", math.nan, None, False),
        ("auroc", math.nan, 0.1, False),
        ("auroc", 0.1, math.nan, True),
    ],
)
def test_best_is_the_highest_or_the_lowest_and_never_nan(
    name: str, now: float, before: float | None, wins: bool
) -> None:
    best = None if before is None else {f"val/{name}": before}
    assert is_better(name, {f"val/{name}": now}, best) is wins


def test_evaluation_without_the_metric_has_no_score() -> None:
    assert score("top1", {"val/loss": 1.0}) is None


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("top1", 0.9944, "top-1 99.44%"),
        ("loss", 0.31954, "val loss 0.3195"),
        ("f1", 0.87654, "F1 87.65%"),
        ("mae", 1234.56, "MAE 1235"),
        ("rmse", 0.00012345, "RMSE 0.0001234"),
        ("mae", math.nan, "MAE nan"),
    ],
)
def test_metric_is_told_as_a_person_reads_it(name: str, value: float, words: str) -> None:
    assert format_metric(name, {f"val/{name}": value}) == words


@pytest.mark.parametrize(
    ("loss", "text"), [(0.12345, "0.1235"), (99999.0, "99999.0000"), (19937288519680.0, "1.994e+13"), (math.nan, "nan")]
)
def test_large_loss_is_shown_in_few_characters(loss: float, text: str) -> None:
    assert format_loss(loss) == text
    assert format_metric("loss", {"val/loss": loss}) == f"val loss {text}"
