"""AUROC and average precision are scikit-learn's, exactly or nearly, however the samples come and on any processes."""

import json
import math
from pathlib import Path

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from distrain.distributed.world import World
from distrain.training.metrics.curves import CURVES, EXACT_SCORES, Curves
from tests.processes import run_ranks

CPU = torch.device("cpu")
ALONE = World(rank=0, size=1, local_rank=0, device=CPU)
# Classes, samples, and how far their logits are apart: little as early in training, or with many classes.
CASES = [(2, 2000, 0.02), (2, 2000, 1.0), (10, 2000, 0.1), (10, 2000, 3.0), (100, 5000, 0.1), (100, 5000, 0.5)]


def draw(classes: int, samples: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of a network that knows something, and the classes."""
    generator = torch.Generator().manual_seed(classes)
    targets = torch.randint(classes, (samples,), generator=generator)
    noise = torch.randn(samples, classes, generator=generator)
    return spread * (noise + 1.5 * torch.nn.functional.one_hot(targets, classes)), targets


def measure(
    logits: torch.Tensor, targets: torch.Tensor, *, most: int = EXACT_SCORES, batch_size: int = 64
) -> dict[str, float]:
    curves = Curves(logits.shape[1], set(CURVES), CPU, most=most)
    for start in range(0, len(targets), batch_size):
        curves.update(logits[start : start + batch_size], targets[start : start + batch_size])
    return curves.results(ALONE)


def of_sklearn(scores: torch.Tensor, has_output: torch.Tensor) -> dict[str, float]:
    """Return the means over the outputs, all of which some samples have and others have not."""
    columns = list(zip(has_output.long().numpy().T, scores.numpy().T, strict=True))
    found = {"auroc": roc_auc_score, "average_precision": average_precision_score}
    return {name: sum(area(*column) for column in columns) / len(columns) for name, area in found.items()}


def of_classes(logits: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    is_class = targets[:, None] == torch.arange(logits.shape[1])
    return of_sklearn(logits.double().log_softmax(dim=1), is_class)


@pytest.mark.parametrize(("classes", "samples", "spread"), CASES)
def test_areas_of_classes_are_those_of_scikit_learn(classes: int, samples: int, spread: float) -> None:
    logits, targets = draw(classes, samples, spread)
    expected = of_classes(logits, targets)
    assert measure(logits, targets) == pytest.approx(expected, abs=1e-7)
    nearly = measure(logits, targets, most=1000 * classes)  # rows a class, as 4,000 classes would have in the end
    assert nearly == pytest.approx(expected, abs=1e-3)
    assert nearly != measure(logits, targets)


def test_areas_of_labels_with_many_ties_are_those_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(600, 7, generator=generator).mul(3).round().div(3)
    logits[logits == 0] *= torch.tensor([1.0, -1.0]).repeat(600)[: int((logits == 0).sum())]  # both zeros
    targets = (logits + 2 * torch.randn(600, 7, generator=generator) > 1).float()
    assert measure(logits, targets) == pytest.approx(of_sklearn(logits, targets), abs=1e-12)
    assert measure(logits, targets, most=300) == measure(logits, targets), "equal scores take one place"


def test_bins_are_off_by_half_the_share_of_the_pairs_that_they_tie() -> None:
    logits, targets = draw(2, 2000, 0.1)
    curves = Curves(2, {"auroc"}, CPU, most=60)
    curves.update(logits, targets)
    found = curves.results(ALONE)["auroc"]
    rows, exact = curves._rows, of_classes(logits, targets)["auroc"]
    for output in range(2):
        without, having = rows.counts[rows.keys >> 32 == output].double().T
        tied = (without * having).sum() / (without.sum() * having.sum())
        assert tied > 0.01
    assert 1e-5 < abs(found - exact) < tied / 2


def test_result_depends_neither_on_the_order_nor_on_the_batches() -> None:
    logits, targets = draw(10, 2000, 0.5)
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(4))
    for most in (EXACT_SCORES, 5000, 300):
        found = measure(logits, targets, most=most)
        assert found == measure(logits[order], targets[order], most=most, batch_size=7)


def write_areas(world: World, folder: Path) -> None:
    logits, targets = draw(10, 2000, 0.5)
    found = []
    for most in (EXACT_SCORES, 5000, 300):
        curves = Curves(10, set(CURVES), CPU, most=most)
        for start in range(64 * world.rank, len(targets), 64 * world.size):
            curves.update(logits[start : start + 64], targets[start : start + 64])
        found.append(curves.results(world))
    (folder / f"{world.size}-{world.rank}.json").write_text(json.dumps(found))


def test_areas_have_the_same_bits_on_one_and_three_processes(tmp_path: Path) -> None:
    for size in (1, 3):
        run_ranks(write_areas, tmp_path, size, tmp_path)
    texts = [path.read_text() for path in tmp_path.glob("*.json")]
    assert len(texts) == 4
    assert len(set(texts)) == 1, texts


def test_area_under_the_curve_by_hand() -> None:
    """Label 0: of the 2 x 3 pairs 4 are in order, 1 is tied. Label 1 is nowhere: it has no pairs, and no say."""
    logits = torch.tensor([[3.0, 0], [1, 0], [2, 0], [1, 0], [0, 0]])
    targets = torch.tensor([[1.0, 0], [1, 0], [0, 0], [0, 0], [0, 0]])
    found = measure(logits, targets)
    assert found == pytest.approx({"auroc": (4 + 1 / 2) / 6, "average_precision": (1 / 1 + 2 / 4) / 2})
    assert math.isnan(measure(logits[2:], targets[2:])["auroc"])


def test_probabilities_near_zero_and_one_are_told_apart() -> None:
    logits = torch.tensor([[-9.0], [-8.5], [-8.0], [-7.0]])
    assert measure(logits, torch.tensor([[0.0], [0], [1], [1]]))["auroc"] == 1
    logits = torch.tensor([[-19.0, 9], [-18.5, 9], [-18.0, 9], [-17.0, 9]])
    assert measure(logits, torch.tensor([1, 1, 0, 0])) == {"auroc": 1, "average_precision": 1}


def test_score_that_is_not_a_number_makes_the_areas_none() -> None:
    logits, targets = draw(2, 20, 1.0)
    logits[3, 1] = math.nan
    assert all(math.isnan(value) for value in measure(logits, targets).values())
    logits[3, 1] = math.inf  # of a label this is certain, and of a class no probability
    assert not math.isnan(measure(logits, targets[:, None].expand(-1, 2).float())["auroc"])
