"""Counters give what can be counted by hand, and what scikit-learn gives on all samples at once."""

import pytest
import torch
from sklearn import metrics as sk

from distrain.config.metrics import Target
from distrain.training.metrics.accumulators import build_counters
from distrain.training.metrics.selection import ChosenMetrics

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


@pytest.mark.parametrize("target", ["class", "labels"])
def test_metrics_of_batches_are_those_of_scikit_learn_on_all_samples_at_once(target: Target) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(600, 7, generator=generator) * 3
    if target == "class":
        targets = (logits + 4 * torch.randn(600, 7, generator=generator)).argmax(dim=1)
        answers = logits.argmax(dim=1)
        expected = {
            "top1": sk.accuracy_score(targets, answers),
            "top5": sk.top_k_accuracy_score(targets, logits, k=5),
            "f1": sk.f1_score(targets, answers, average="macro"),
        }
    else:
        targets = (logits + 4 * torch.randn(600, 7, generator=generator) > 1).float()
        expected = {
            "exact_match": sk.accuracy_score(targets, logits > 0),
            "f1": sk.f1_score(targets, logits > 0, average="macro"),
        }
    batches = zip(logits.split(64), targets.split(64), strict=True)  # type: ignore[no-untyped-call]
    assert measure(target, " ".join(expected), *batches) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("target", ["class", "labels"])
def test_rates_are_those_of_scikit_learn_also_where_a_class_is_missing(target: Target) -> None:
    generator = torch.Generator().manual_seed(7)
    logits, truth = torch.randn(50, 7, generator=generator), torch.randn(50, 7, generator=generator)
    logits[:, 2] -= 9  # never the answer
    truth[:, 4] -= 9  # never there
    if target == "class":
        targets, answers = truth.argmax(dim=1), logits.argmax(dim=1)
        expected = {"top1": sk.accuracy_score(targets, answers)}
    else:
        targets, answers = (truth > 0).float(), (logits > 0).float()
        expected = {"exact_match": sk.accuracy_score(targets, answers)}
    present = range(7) if target == "labels" else sorted({*targets.tolist(), *answers.tolist()})
    rates = {"f1": sk.f1_score, "precision": sk.precision_score, "recall": sk.recall_score}
    for name, rate in rates.items():
        expected[name] = rate(targets, answers, average="macro", zero_division=0, labels=list(present))
    assert measure(target, " ".join(expected), (logits, targets)) == pytest.approx(expected, abs=1e-12)
