"""Counts metrics on the device in whole numbers, so that the sum over any number of ranks is exact.

Not by torchmetrics: its updates count by `torch.bincount`, which waits for the device, or, where kernels must be
deterministic, by a comparison of every sample with every bin.
"""

from typing import Protocol

import torch
from torch import Tensor

from distrain.training.metrics.selection import ChosenMetrics

RATES = frozenset({"f1", "precision", "recall"})


class Counter(Protocol):
    """Counts something over batches; `counts` is int64, on the device, and a sum over the samples."""

    counts: Tensor

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count a batch, without waiting for the device: logits float32 [n, outputs], targets as the source gives."""
        ...

    def results(self, counts: Tensor, num_samples: int) -> dict[str, float]:
        """Return the metrics, by their names, of `counts` on the CPU, summed over all `num_samples`."""
        ...


def build_counters(chosen: ChosenMetrics, device: torch.device) -> list[Counter]:
    """Return the counters of the chosen metrics: all but means of floats and areas under curves."""
    size, names = len(chosen.classes), set(chosen.names)
    counters: list[Counter] = []
    if ranks := [rank for rank in (1, 5) if f"top{rank}" in names]:
        counters.append(TopRanks(ranks, device))
    if "exact_match" in names:
        counters.append(ExactMatch(device))
    if names & {*RATES, "accuracy_per_class", "confusion_matrix"} or chosen.has_small_confusion_matrix:
        wanted = names & RATES
        if chosen.target == "class":
            classes = chosen.classes if "accuracy_per_class" in names else ()
            counters.append(Confusion(size, wanted, classes, device))
        else:
            counters.append(LabelConfusion(size, wanted, device))
    return counters


class TopRanks:
    """How many samples have their class among the network's top k: counts int64 [ranks]."""

    def __init__(self, ranks: list[int], device: torch.device) -> None:
        self.counts = torch.zeros(len(ranks), dtype=torch.int64, device=device)
        self._ranks = ranks

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count a batch."""
        hits = [
            logits.argmax(dim=1) == targets
            if k == 1
            else (logits.topk(k, dim=1).indices == targets[:, None]).any(dim=1)
            for k in self._ranks
        ]
        self.counts += torch.stack(hits, dim=1).sum(dim=0)

    def results(self, counts: Tensor, num_samples: int) -> dict[str, float]:
        """Return a fraction for each rank."""
        return {f"top{k}": hits / num_samples for k, hits in zip(self._ranks, counts.tolist(), strict=True)}


class ExactMatch:
    """How many samples have exactly their labels predicted: counts int64 [1]."""

    def __init__(self, device: torch.device) -> None:
        self.counts = torch.zeros(1, dtype=torch.int64, device=device)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count a batch."""
        self.counts += ((logits > 0) == (targets > 0.5)).all(dim=1).sum()

    def results(self, counts: Tensor, num_samples: int) -> dict[str, float]:
        """Return the fraction."""
        return {"exact_match": counts.item() / num_samples}


class Confusion:
    """The confusion matrix of classes: counts int64 [classes, classes], [i, j] of class i that is predicted as class j.

    `classes` are the names by which the accuracy of each class is reported, or none.
    """

    def __init__(self, num_classes: int, rates: set[str], classes: tuple[str, ...], device: torch.device) -> None:
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
        self._rates = rates
        self._classes = classes

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count a batch."""
        places = targets * logits.shape[1] + logits.argmax(dim=1)
        self.counts.view(-1).index_add_(0, places, torch.ones_like(places))

    def results(self, counts: Tensor, num_samples: int) -> dict[str, float]:  # noqa: ARG002 - others divide by it
        """Return the rates of the classes, and the accuracy of each that has samples."""
        hits, samples, predicted = counts.diag(), counts.sum(dim=1), counts.sum(dim=0)
        found = _rates(self._rates, hits, predicted - hits, samples - hits, is_multilabel=False)
        if self._classes:
            rows = zip(self._classes, hits.tolist(), samples.tolist(), strict=True)
            found |= {f"top1/{name}": own / of for name, own, of in rows if of}  # absent without samples
        return found


class LabelConfusion:
    """A confusion matrix for each label: counts int64 [labels, truth, prediction]; a probability over 0.5 is a yes."""

    def __init__(self, num_labels: int, rates: set[str], device: torch.device) -> None:
        self.counts = torch.zeros(num_labels, 2, 2, dtype=torch.int64, device=device)
        self._rates = rates

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count a batch."""
        yes, is_so = logits > 0, targets > 0.5
        cells = torch.stack([~is_so & ~yes, ~is_so & yes, is_so & ~yes, is_so & yes], dim=2)
        self.counts += cells.sum(dim=0).view_as(self.counts)

    def results(self, counts: Tensor, num_samples: int) -> dict[str, float]:  # noqa: ARG002 - others divide by it
        """Return the rates of the labels."""
        hits, false, missed = counts[:, 1, 1], counts[:, 0, 1], counts[:, 1, 0]
        return _rates(self._rates, hits, false, missed, is_multilabel=True)


def _rates(wanted: set[str], hits: Tensor, false: Tensor, missed: Tensor, *, is_multilabel: bool) -> dict[str, float]:
    """Return unweighted means over classes or labels, of true and false positives and false negatives: int64 [classes].

    A rate is 0 where it has nothing to count. A class, but not a label, that is neither true nor predicted is not in
    the mean. These are the macro averages of scikit-learn and of torchmetrics.
    """
    ratios = {
        "f1": (2 * hits, 2 * hits + false + missed),
        "precision": (hits, hits + false),
        "recall": (hits, hits + missed),
    }
    is_present = torch.full_like(hits, is_multilabel, dtype=torch.bool) | (hits + false + missed > 0)
    return {
        name: (part.double() / whole.clamp(min=1))[is_present].mean().item()
        for name, (part, whole) in ratios.items()
        if name in wanted
    }
