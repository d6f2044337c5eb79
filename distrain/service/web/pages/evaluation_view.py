"""Makes what the page of a run shows of its evaluations: the confusion matrix as a heat map, classes and mistakes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from distrain.config.metrics import format_evaluation
from distrain.messages import counted
from distrain.runs.directory import RunDirectory
from distrain.runs.evaluations import EvaluationResult, Mistake, format_badness, read_evaluations
from distrain.service.web.rendering import as_address

MAX_SHOWN = 5  # evaluations
MAX_HEAT = 32  # classes of a heat map; of more, only the pairs are listed that are confused most often
_MAX_PAIRS = 20
_SHADES = 6
_ADDED = {"train": "training split", "val": "validation split"}


@dataclass(frozen=True)
class HeatCell:
    """How often a class is predicted as another one; `shade` is 0 to 6 with its share of the true class."""

    count: int
    shade: int
    is_hit: bool


@dataclass(frozen=True)
class MistakeView:
    """One of the worst mistakes; `picture` is its address."""

    mistake: Mistake
    badness: str
    picture: str | None


@dataclass(frozen=True, kw_only=True)
class EvaluationView:
    """An evaluation as the page shows it."""

    result: EvaluationResult
    title: str
    metrics: str
    class_names: tuple[str, ...]
    heat: tuple[tuple[HeatCell, ...], ...]  # empty for more than `MAX_HEAT` classes
    pairs: tuple[tuple[str, str, int], ...]  # true class, predicted class, how often
    mistakes: tuple[MistakeView, ...]


def read_evaluation_views(run: RunDirectory) -> list[EvaluationView]:
    """Return the newest evaluations of a run, the newest first."""
    return [_view(run, result) for result in read_evaluations(run)[:MAX_SHOWN]]


def shades(counts: Sequence[Sequence[int]]) -> list[list[HeatCell]]:
    """Return the cells of a heat map for a confusion matrix, in which a row is a true class."""
    rows = []
    for number, row in enumerate(counts):
        total = sum(row)
        rows.append(
            [
                HeatCell(count, _shade(count / total if total else 0.0), is_hit=column == number)
                for column, count in enumerate(row)
            ]
        )
    return rows


def _shade(share: float) -> int:
    """Return 0 for nothing, else 1 to 6; the root of the share keeps rare mistakes visible."""
    return 0 if share <= 0 else max(1, round(share**0.5 * _SHADES))


def _view(run: RunDirectory, result: EvaluationResult) -> EvaluationView:
    matrix = result.read_confusion()
    heat: list[list[HeatCell]] = []
    pairs: list[tuple[str, str, int]] = []
    if matrix is not None:
        from distrain.runs.confusion import confused_pairs

        pairs = confused_pairs(list(matrix.classes), matrix.counts, _MAX_PAIRS)
        if len(matrix.classes) <= MAX_HEAT:
            heat = shades(matrix.counts.tolist())
    samples, made = counted(result.num_samples, "sample"), time.strftime("%F %T", time.localtime(result.made))
    split = _ADDED.get(str(result.split), str(result.split))
    return EvaluationView(
        result=result,
        title=f"step {result.step:,} ({result.weights} weights) on {samples} of the {split}, {made}",
        metrics=format_evaluation(result.metrics, split=""),
        class_names=() if matrix is None else matrix.classes,
        heat=tuple(map(tuple, heat)),
        pairs=tuple(pairs),
        mistakes=tuple(
            MistakeView(each, format_badness(each, result.target), _picture(run, result, each))
            for each in result.mistakes
        ),
    )


def _picture(run: RunDirectory, result: EvaluationResult, mistake: Mistake) -> str | None:
    if mistake.image is None:
        return None
    name = mistake.image.rpartition("/")[2]
    folder, evaluation, file = (as_address(part) for part in (run.path.name, result.name, name))
    return f"/runs/{folder}/evaluations/{evaluation}/mistakes/{file}"
