"""Computes AUROC and average precision, exactly up to `EXACT_SCORES` scores, and beyond it from bins of the scores.

The result is a function of the scores alone: neither their order nor the number of processes that they lie on counts.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distrain.distributed.world import World
from distrain.training.metrics.selection import ChosenMetrics

EXACT_SCORES = 2**22  # samples x classes or labels
CURVES = ("auroc", "average_precision")
_SCORE_BITS = 32
_GRID_BITS = 24  # of the finest grid's steps, which are 2^-24 wide; it reaches from -128 to 128
_COARSEST = _SCORE_BITS + 1


@dataclass(frozen=True)
class _Rows:
    """How many samples without and with an output have which score: keys int64 [n], counts int64 [n, 2].

    A key is the output, shifted by 32 bits, and the score as a whole number of 32 bits in the same order: at `level` 0
    the bits of a float32, at level n the step of a grid of steps of 2^(n - 1 - 24), as wide for all scores.
    """

    keys: Tensor
    counts: Tensor
    level: int = 0


class Curves:
    """Collects the scores of samples with and without each class or label, on the device, for `results`.

    A score is the log-odds of a class or label, float32; equal scores are ties, as in scikit-learn. Where there are
    more than `most` different ones, all are put on a grid, the finest that leaves few enough. Scores on the same step
    are ties from then on: AUROC is then off by half the share of the pairs of such scores at most.
    """

    def __init__(self, size: int, curves: set[str], device: torch.device, *, most: int = EXACT_SCORES) -> None:
        self._curves = sorted(curves)
        self._most = most
        self._outputs = torch.arange(size, device=device)
        self._rows = _Rows(self._outputs.new_empty(0), self._outputs.new_empty(0, 2))
        self._fresh: list[tuple[Tensor, Tensor]] = []  # keys int64 and whether the sample has the output, bool
        self._num_fresh = 0
        self._num_nan = torch.zeros((), dtype=torch.int64, device=device)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: logits float32 [n, outputs], targets as the source gives; waits for the device occasionally."""
        if targets.is_floating_point():
            has_output, scores = targets > 0.5, logits
        else:
            has_output, scores = targets[:, None] == self._outputs, _log_odds_of_classes(logits)
        self._num_nan += scores.isnan().sum()
        keys = (self._outputs << _SCORE_BITS) | _to_whole(scores)
        self._fresh.append((keys.flatten(), has_output.flatten()))
        self._num_fresh += keys.numel()
        if self._num_fresh > self._most:
            self._compact()

    def results(self, world: World) -> dict[str, float]:
        """Return the mean areas over what has samples with it and without it, the same on all ranks, which all call it.

        NaN where nothing has both, or a score is NaN.
        """
        self._compact()
        if world.size > 1:
            self._gather(world)
        if int(self._num_nan):
            return dict.fromkeys(self._curves, math.nan)
        areas = _areas(self._rows)
        return {name: float(areas[name].mean()) if len(areas[name]) else math.nan for name in self._curves}

    def _compact(self) -> None:
        if self._fresh:
            keys, has_output = (torch.cat(parts) for parts in zip(*self._fresh, strict=True))
            self._fresh, self._num_fresh = [], 0
            counts = torch.stack([~has_output, has_output], dim=1).long()
            self._rows = _merge([self._rows, _Rows(keys, counts)], self._most)

    def _gather(self, world: World) -> None:
        """Gather the rows of all ranks, as a sum in which each row comes from one rank, which is exact."""
        own = self._rows
        sizes = torch.zeros(3, world.size, dtype=torch.int64, device=own.keys.device)
        sizes[:, world.rank] = torch.stack([self._num_nan, *sizes.new_tensor([len(own.keys), own.level])])
        num_nan, lengths, levels = world.all_reduce(sizes).tolist()
        self._num_nan.fill_(sum(num_nan))
        for sender, (length, level) in enumerate(zip(lengths, levels, strict=True)):
            table = own.keys.new_zeros(length, 3)
            if sender == world.rank:
                table[:, 0], table[:, 1:] = own.keys, own.counts
            world.all_reduce(table)
            if sender != world.rank:
                self._rows = _merge([self._rows, _Rows(table[:, 0], table[:, 1:], level)], self._most)


def _merge(parts: list[_Rows], most: int) -> _Rows:
    """Count equal scores in one row, on the finest level that leaves no more than `most` rows.

    That level depends on all the scores alone: what is too fine for some of them is too fine for all.
    """
    level = max(part.level for part in parts)
    keys, order = torch.cat([_coarsen(part.keys, part.level, level) for part in parts]).sort()
    while level < _COARSEST and int((keys.diff() != 0).sum()) >= most:
        keys, level = _coarsen(keys, level, level + 1), level + 1  # they stay in order
    keys, places = torch.unique_consecutive(keys, return_inverse=True)
    counts = torch.cat([part.counts for part in parts])[order]
    return _Rows(keys, counts.new_zeros(len(keys), 2).index_add_(0, places, counts), level)


def _coarsen(keys: Tensor, level: int, to: int) -> Tensor:
    if level == to:
        return keys
    if level == 0:
        scores = _to_score(keys & 0xFFFFFFFF).double().nan_to_num(nan=0.0)
        half = 2 ** (_SCORE_BITS - 1)
        steps = (scores * 2**_GRID_BITS).floor().clamp(-half, half - 1).long() + half
        keys = (keys >> _SCORE_BITS << _SCORE_BITS) | steps
    return keys >> (to - 1) << (to - 1)


def build_curves(chosen: ChosenMetrics, device: torch.device) -> Curves | None:
    """Return the accumulator of the chosen areas under curves; None where none is chosen."""
    wanted = {*chosen.names} & {*CURVES}
    return Curves(len(chosen.classes), wanted, device) if wanted else None


def _log_odds_of_classes(logits: Tensor) -> Tensor:
    """Return float32 [n, classes], 0 for a class with the share that all have on average.

    float32 resolves scores best near 0, and where a network knows little, all of them are there. The computation
    is in float64, since the probability of a class that is nearly certain is 1 in float32.
    """
    log_p = logits.double().log_softmax(dim=1)
    return (log_p - torch.log(-torch.expm1(log_p)) + math.log(max(1, logits.shape[1] - 1))).float()


def _to_whole(scores: Tensor) -> Tensor:
    """Return whole numbers int64 below 2^32 in the order of float32 scores: their bits, turned where they are negative.

    See Herf, "Radix Tricks", 2001, http://stereopsis.com/radix.html.
    """
    bits = (scores.float() + 0.0).contiguous().view(torch.int32).long() & 0xFFFFFFFF  # + 0.0: there is one zero only
    return torch.where(bits >> 31 == 1, 0xFFFFFFFF - bits, bits + 2**31)


def _to_score(whole: Tensor) -> Tensor:
    """Return the float32 scores that `_to_whole` made whole numbers of."""
    bits = torch.where(whole >> 31 == 1, whole - 2**31, 0xFFFFFFFF - whole)
    return torch.where(bits >> 31 == 1, bits - 2**32, bits).int().view(torch.float32)


def _areas(rows: _Rows) -> dict[str, NDArray[np.float64]]:
    """Return both areas float64, one for each output that has samples with it and without it."""
    outputs = (rows.keys >> _SCORE_BITS).cpu().numpy()
    without, having = rows.counts.cpu().numpy().T
    starts = np.flatnonzero(np.diff(outputs, prepend=-1))
    lengths = np.diff(starts, append=len(outputs))
    sums = np.add.reduceat(having, starts), np.add.reduceat(without, starts)
    num_having, num_without = (np.repeat(total, lengths) for total in sums)

    def below(counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many samples of the same output have a lower score, int64 [rows]."""
        before: NDArray[np.int64] = np.cumsum(counts) - counts
        return before - np.repeat(before[starts], lengths)

    pairs = having * (2 * below(without) + without)  # in order, twice; a tie counts half
    true, false = num_having - below(having), num_without - below(without)  # with this score or a higher one
    steps = having * true / (true + false)
    has_both = (sums[0] > 0) & (sums[1] > 0)  # otherwise there is no curve
    with_it, without_it = (total[has_both] for total in sums)
    return {
        "auroc": np.add.reduceat(pairs, starts)[has_both] / (2 * with_it * without_it),
        "average_precision": np.add.reduceat(steps, starts)[has_both] / with_it,
    }
