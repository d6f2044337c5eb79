"""Owns the counting of metrics on the device: whole numbers, so that the sum over any number of ranks is exact.

torchmetrics computes the metrics from the counts. Its own updates are not taken: they count by `torch.bincount`, which
waits for the device, or, where kernels must be deterministic, by a comparison of every sample with every bin.
"""

import inspect
from typing import Protocol

import torch
from torch import Tensor

from distrain.metrics.choice import ChosenMetrics

# AUROC and average precision tell two scores apart where one of these log-odds lies between them. See `Scores`.
LOWEST_LOG_ODDS, HIGHEST_LOG_ODDS, LOG_ODDS_STEP = -12.8, 12.8, 0.1
NUM_THRESHOLDS = round((HIGHEST_LOG_ODDS - LOWEST_LOG_ODDS) / LOG_ODDS_STEP) + 1


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
    """Return what counts the chosen metrics; together they give every one of them that is not a mean of floats."""
    size, names = len(chosen.classes), set(chosen.names)
    counters: list[Counter] = []
    if ranks := [rank for rank in (1, 5) if f"top{rank}" in names]:
        counters.append(TopRanks(ranks, device))
    if "exact_match" in names:
        counters.append(ExactMatch(device))
    if names & {*_RATES, "accuracy_per_class", "confusion_matrix"}:
        wanted = names & set(_RATES)
        if chosen.target == "class":
            classes = chosen.classes if "accuracy_per_class" in names else ()
            counters.append(Confusion(size, wanted, classes, device))
        else:
            counters.append(LabelConfusion(size, wanted, device))
    if wanted := names & set(_CURVES):
        counters.append(Scores(size, wanted, device))
    return counters


class TopRanks:
    """How many samples have their class among the first k of the network's: counts int64 [ranks]."""

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
    """How many samples have all their labels right, and no other: counts int64 [1]."""

    def __init__(self, device: torch.device) -> None:
        self.counts = torch.zeros(1, dtype=torch.int64, device=device)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count a batch."""
        self.counts += ((logits > 0) == (targets > 0.5)).all(dim=1).sum()

    def results(self, counts: Tensor, num_samples: int) -> dict[str, float]:
        """Return the fraction."""
        return {"exact_match": counts.item() / num_samples}


class Confusion:
    """The confusion matrix of classes: counts int64 [classes, classes], a row a true class, a column a predicted one.

    `classes` are the names by which the accuracy of each class is told; none where it is not wanted.
    """

    def __init__(self, num_classes: int, rates: set[str], classes: tuple[str, ...], device: torch.device) -> None:
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
        self._rates = rates
        self._classes = classes

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count a batch."""
        places = targets * logits.shape[1] + logits.argmax(dim=1)
        self.counts.view(-1).index_add_(0, places, torch.ones_like(places))

    def results(self, counts: Tensor, num_samples: int) -> dict[str, float]:
        """Return the rates of the classes, and the accuracy of each that has samples."""
        hits, samples, predicted = counts.diag(), counts.sum(dim=1), counts.sum(dim=0)
        found = _rates(self._rates, hits, predicted - hits, samples - hits, num_samples, is_multilabel=False)
        if self._classes:
            rows = zip(self._classes, hits.tolist(), samples.tolist(), strict=True)
            found |= {f"top1/{name}": own / of for name, own, of in rows if of}  # without a sample: no accuracy
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

    def results(self, counts: Tensor, num_samples: int) -> dict[str, float]:
        """Return the rates of the labels."""
        hits, false, missed = counts[:, 1, 1], counts[:, 0, 1], counts[:, 1, 0]
        return _rates(self._rates, hits, false, missed, num_samples, is_multilabel=True)


class Scores:
    """How many samples with and without each class or label have a score between two thresholds.

    Counts int64 [without, with; outputs; thresholds + 1]. A score is the log-odds of a class or label; the thresholds
    are 257, every 0.1 from -12.8 to 12.8, and so tell probabilities apart near 0 and 1 as well as near 0.5. Two samples
    between the same thresholds count as tied. The area under the ROC curve is thus within half the share of such pairs,
    among all pairs of a sample with the class and one without, of what it is without thresholds.
    """

    def __init__(self, size: int, curves: set[str], device: torch.device) -> None:
        self.counts = torch.zeros(2, size, NUM_THRESHOLDS + 1, dtype=torch.int64, device=device)
        self._curves = curves
        self._thresholds = torch.linspace(LOWEST_LOG_ODDS, HIGHEST_LOG_ODDS, NUM_THRESHOLDS, device=device)
        self._labels = torch.arange(size, device=device)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count a batch."""
        if targets.is_floating_point():
            is_so, log_odds = targets > 0.5, logits
        else:
            is_so, log_odds = targets[:, None] == self._labels, _log_odds_of_classes(logits)
        bins = torch.bucketize(log_odds.contiguous(), self._thresholds, right=True)
        _, size, num_bins = self.counts.shape
        places = ((is_so * size + self._labels) * num_bins + bins).flatten()
        self.counts.view(-1).index_add_(0, places, torch.ones_like(places))

    def results(self, counts: Tensor, num_samples: int) -> dict[str, float]:  # noqa: ARG002 - the protocol's
        """Return the mean area over what has samples with it and without it; NaN where nothing has."""
        at_least = torch.cat([counts.flip(2).cumsum(2).flip(2), torch.zeros_like(counts[:, :, :1])], dim=2)
        cells = torch.stack([at_least[:, :, :1] - at_least, at_least], dim=-1)  # [truth, size, thresholds, prediction]
        has_both = (at_least[:, :, 0] > 0).all(dim=0)  # else there is no pair, and no curve
        found = {}
        for name in sorted(self._curves):
            each = _area(name, cells.permute(2, 1, 0, 3))[has_both]
            found[name] = each.mean().item()  # NaN where no class has both
        return found


def _log_odds_of_classes(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(dim=1)
    return log_p - torch.log(-torch.expm1(log_p))


def _rates(
    wanted: set[str], hits: Tensor, false: Tensor, missed: Tensor, num_samples: int, *, is_multilabel: bool
) -> dict[str, float]:
    """Return the means over classes or labels of what follows from true and false positives and false negatives."""
    if not wanted:
        return {}
    from torchmetrics import classification  # a second of imports, only where it computes something

    kind, size_name = ("Multilabel", "num_labels") if is_multilabel else ("Multiclass", "num_classes")
    states = {"tp": hits, "fp": false, "fn": missed, "tn": num_samples - hits - false - missed}
    found = {}
    for name in sorted(wanted):
        metric = getattr(classification, f"{kind}{_RATES[name]}")(
            **{size_name: len(hits)}, average="macro", validate_args=False
        )
        metric.merge_state({state: counts.double() for state, counts in states.items()})
        found[name] = float(inspect.unwrap(metric.compute)())  # its wrapper would gather over the ranks by itself
    return found


def _area(name: str, cells: Tensor) -> Tensor:
    """Return the area under a curve, float64 [size], of cells int64 [thresholds, size, truth, prediction]."""
    from torchmetrics import classification

    thresholds = torch.linspace(0, 1, len(cells))  # their number counts: the cells are there already
    metric = getattr(classification, _CURVES[name])(
        cells.shape[1], average="none", thresholds=thresholds, validate_args=False
    )
    metric.merge_state({"confmat": cells.double()})
    areas: Tensor = inspect.unwrap(metric.compute)()
    return areas


# torchmetrics' names: of rates less their beginning, which is Multiclass or Multilabel.
_RATES = {"f1": "F1Score", "precision": "Precision", "recall": "Recall"}
_CURVES = {"auroc": "MultilabelAUROC", "average_precision": "MultilabelAveragePrecision"}
