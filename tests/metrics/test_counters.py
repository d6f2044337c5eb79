"""Counters give what can be counted by hand, and what torchmetrics gives on all samples at once."""

import math

import pytest
import torch
from torchmetrics.functional import classification

from distrain.metrics import Target
from distrain.metrics.choice import ChosenMetrics
from distrain.metrics.counters import Scores, build_counters

CPU = torch.device("cpu")


def measure(target: Target, names: str, *batches: tuple[torch.Tensor, torch.Tensor]) -> dict[str, float]:
    classes = tuple("abcdefg"[: batches[0][0].shape[1]])
    chosen = ChosenMetrics(target=target, classes=classes, names=tuple(names.split()), best="", shown=())
    counters = build_counters(chosen, CPU)
    for logits, targets in batches:
        for counter in counters:
            counter.update(logits, targets)
    num_samples = sum(len(targets) for _, targets in batches)
    return {name: v for c in counters for name, v in c.results(c.counts, num_samples).items()}


def test_classes_by_hand() -> None:
    predicted, true = [0, 0, 1, 1, 2, 0], [0, 0, 0, 1, 1, 1]  # nothing is of class 2
    logits = torch.eye(3)[predicted]
    batches = [(logits[:4], torch.tensor(true[:4])), (logits[4:], torch.tensor(true[4:]))]
    found = measure("class", "top1 f1 precision recall accuracy_per_class", *batches)
    assert found.pop("top1/a") == 2 / 3
    assert found.pop("top1/b") == 1 / 3
    assert found == pytest.approx(
        {
            "top1": 3 / 6,
            "precision": (2 / 3 + 1 / 2 + 0) / 3,
            "recall": (2 / 3 + 1 / 3 + 0) / 3,
            "f1": (2 / 3 + 2 / 5 + 0) / 3,  # 2 hits of 3 predicted and 3 true; 1 of 2 and 3; 0 of 1 and 0
        }
    )


def test_labels_by_hand() -> None:
    logits = torch.tensor([[1.0, -1], [1, 1], [-1, 1], [-1, -1]])
    targets = torch.tensor([[1.0, 0], [0, 1], [0, 0], [1, 0]])
    found = measure("labels", "f1 precision recall exact_match", (logits, targets))
    assert found == pytest.approx(
        {"exact_match": 1 / 4, "precision": 1 / 2, "recall": 3 / 4, "f1": (1 / 2 + 2 / 3) / 2}
    )


def test_area_under_the_curve_by_hand() -> None:
    """Label 0: of the 2 x 3 pairs 4 are in order, 1 is tied. Label 1 is nowhere: it has no pairs, and no say."""
    logits = torch.tensor([[3.0, 0], [1, 0], [2, 0], [1, 0], [0, 0]])
    targets = torch.tensor([[1.0, 0], [1, 0], [0, 0], [0, 0], [0, 0]])
    assert measure("labels", "auroc", (logits, targets))["auroc"] == pytest.approx((4 + 1 / 2) / 6)
    assert math.isnan(measure("labels", "auroc", (logits[2:], targets[2:]))["auroc"])


@pytest.mark.parametrize("target", ["class", "labels"])
def test_metrics_are_those_of_torchmetrics_on_all_samples_at_once(target: Target) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(600, 7, generator=generator) * 3
    if target == "class":
        targets = (logits + 4 * torch.randn(600, 7, generator=generator)).argmax(dim=1)
        expected = {
            "top1": classification.multiclass_accuracy(logits, targets, 7, average="micro"),
            "top5": classification.multiclass_accuracy(logits, targets, 7, average="micro", top_k=5),
            "f1": classification.multiclass_f1_score(logits, targets, 7),
            "auroc": classification.multiclass_auroc(logits, targets, 7),
            "average_precision": classification.multiclass_average_precision(logits, targets, 7),
        }
    else:
        yes = (logits + 4 * torch.randn(600, 7, generator=generator) > 1).long()
        expected = {
            "exact_match": classification.multilabel_exact_match(logits, yes, 7),
            "f1": classification.multilabel_f1_score(logits, yes, 7),
            "auroc": classification.multilabel_auroc(logits, yes, 7),
            "average_precision": classification.multilabel_average_precision(logits, yes, 7),
        }
        targets = yes.float()
    batches = zip(logits.split(64), targets.split(64), strict=True)  # type: ignore[no-untyped-call]
    found = measure(target, " ".join(expected), *batches)
    for name, value in expected.items():
        tolerance = 5e-3 if name in {"auroc", "average_precision"} else 1e-6  # of the thresholds, and of float32
        assert found[name] == pytest.approx(value.item(), abs=tolerance), name


def test_area_under_the_curve_is_off_by_half_the_share_of_pairs_between_the_same_thresholds() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(300, 1, generator=generator) * 0.2  # scores so near that many fall together
    targets = (torch.rand(300, 1, generator=generator) < 0.4).float()
    scores = Scores(1, {"auroc"}, CPU)
    scores.update(logits, targets)
    without, with_it = scores.counts[:, 0].double()
    tolerance = 0.5 * ((without * with_it).sum() / (without.sum() * with_it.sum())).item()
    exact = classification.binary_auroc(logits[:, 0], targets[:, 0].long()).item()
    found = scores.results(scores.counts, 300)["auroc"]
    assert found != exact
    assert found == pytest.approx(exact, abs=tolerance)


def test_probabilities_near_zero_are_told_apart() -> None:
    """A label that is rare: its probabilities are all below a thousandth, and rightly ordered."""
    logits = torch.tensor([[-9.0], [-8.5], [-8.0], [-7.0]])
    assert measure("labels", "auroc", (logits, torch.tensor([[0.0], [0], [1], [1]])))["auroc"] == 1
    logits = torch.tensor([[-9.0, 0], [-8.5, 0], [-8.0, 0], [-7.0, 0]])
    assert measure("class", "auroc", (logits, torch.tensor([1, 1, 0, 0])))["auroc"] == 1
