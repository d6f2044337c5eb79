"""Metrics of torchmetrics and of the user give the same bits on any number of processes, or are refused."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from torch import Tensor, nn

from distrain.config import Eval
from distrain.config.metrics import Target
from distrain.data.loading.sampler import evaluation_order
from distrain.distributed.world import World
from distrain.errors import RecipeError
from distrain.training.device.precision import Precision
from distrain.training.evaluate import evaluate
from distrain.training.metrics.own import check_own_metrics
from distrain.training.metrics.selection import ChosenMetrics, choose_metrics
from tests.processes import run_ranks
from tests.training.outputs_task import build_outputs_task

SAMPLES, BATCH, OUTPUTS = 90, 16, 6
CLASSES = [f"class {i}" for i in range(OUTPUTS)]
ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
HERE = "tests.training.metrics.test_own"
MULTICLASS = {"task": "multiclass", "num_classes": OUTPUTS}
METRICS: dict[Target, list[Any]] = {
    "class": [
        {"name": "torchmetrics.Accuracy", "arguments": MULTICLASS | {"average": "micro"}},
        {"torchmetrics.CohenKappa": MULTICLASS},
        {"torchmetrics.AUROC": MULTICLASS | {"thresholds": 50}},
        {"torchmetrics.MulticlassHingeLoss": {"num_classes": OUTPUTS}},
        {f"{HERE}:confidence": {"power": 2}},
        f"{HERE}:Largest",
    ],
    "labels": [{"torchmetrics.F1Score": {"task": "multilabel", "num_labels": OUTPUTS, "average": "macro"}}],
    "values": [{"torchmetrics.MeanSquaredError": {"squared": False}}, {"torchmetrics.R2Score": {}}],
}


def confidence(power: int) -> Any:
    return lambda logits, targets: logits.softmax(dim=1).gather(1, targets[:, None])[:, 0] ** power


class Largest(torchmetrics.Metric):
    """The largest output of any sample."""

    higher_is_better = False
    largest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("largest", torch.tensor(-math.inf), dist_reduce_fx="max")

    def update(self, probabilities: Tensor, targets: Tensor) -> None:
        self.largest = torch.maximum(self.largest, probabilities.max().float())

    def compute(self) -> Tensor:
        return self.largest


class Broken(Largest):
    """A metric that fails once all samples are known."""

    def compute(self) -> Tensor:
        if self.largest > 0.9:
            raise ArithmeticError("too large")
        return self.largest


def vector() -> Any:
    return lambda logits, targets: logits


def nothing() -> None:
    return None


def draw(target: Target) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    outputs = torch.randn(SAMPLES, OUTPUTS, generator=generator) * 2
    near = outputs + torch.randn(SAMPLES, OUTPUTS, generator=generator) * 2
    targets: dict[Target, Tensor] = {"class": near.argmax(dim=1), "labels": (near > 1).float(), "values": near}
    return outputs, targets[target]


def choose(target: Target, metrics: list[Any], **fields: object) -> ChosenMetrics:
    return choose_metrics(Eval.model_validate({"metrics": metrics, **fields}), target=target, classes=CLASSES)


def measure(
    world: World, target: Target, metrics: list[Any], *, batch: int = BATCH, errors: list[Exception] | None = None
) -> dict[str, float] | None:
    outputs, targets = draw(target)
    chosen = choose(target, metrics)
    check_own_metrics(chosen.own, targets[:2], num_outputs=OUTPUTS)
    own = evaluation_order(num_samples=SAMPLES, batch_size=batch, rank=world.rank, world_size=world.size)
    evaluation = evaluate(
        nn.Identity(),
        ((outputs[each.indices], targets[each.indices]) for each in own),
        num_batches=math.ceil(SAMPLES / batch),
        idle_batch=None,
        task=build_outputs_task(world, target, outputs, CLASSES),
        chosen=chosen,
        precision=Precision("fp32", world.device),
        world=world,
        must_break_off=lambda: False,
        errors=errors,
    )
    return None if evaluation is None else evaluation.metrics


def compare(world: World, expected: dict[Target, dict[str, float]], in_one_batch: dict[str, float]) -> None:
    for target, metrics in METRICS.items():
        assert measure(world, target, metrics) == expected[target]
    assert measure(world, "class", METRICS["class"], batch=SAMPLES) == in_one_batch  # the others have none
    errors: list[Exception] = []
    assert measure(world, "class", [f"{HERE}:Broken"], errors=errors) is None
    assert [str(error) for error in errors] == (["too large"] if world.is_rank_zero else [])


@pytest.mark.parametrize("world_size", [2, 3])
def test_own_metrics_have_the_same_bits_on_several_processes_and_fail_on_all_of_them(
    world_size: int, tmp_path: Path
) -> None:
    alone = {target: measure(ALONE, target, metrics) for target, metrics in METRICS.items()}
    run_ranks(compare, tmp_path, world_size, alone, measure(ALONE, "class", METRICS["class"], batch=SAMPLES))


def test_they_are_what_they_are_on_all_samples_at_once() -> None:
    found = measure(ALONE, "class", METRICS["class"])
    outputs, targets = draw("class")
    assert found is not None
    assert found["val/Accuracy"] == pytest.approx(found["val/top1"], abs=1e-7)
    kappa, hinge = torchmetrics.CohenKappa(**MULTICLASS), torchmetrics.HingeLoss(**MULTICLASS)  # type: ignore[arg-type]
    assert found["val/CohenKappa"] == float(kappa(outputs.softmax(dim=1), targets))
    assert found["val/MulticlassHingeLoss"] == pytest.approx(float(hinge(outputs.softmax(dim=1), targets)))
    assert found["val/confidence"] == pytest.approx(
        float(outputs.softmax(dim=1).gather(1, targets[:, None]).square().mean())
    )
    assert found["val/Largest"] == pytest.approx(float(outputs.softmax(dim=1).max()))
    labels = measure(ALONE, "labels", [*METRICS["labels"], "f1"])
    assert labels is not None
    assert labels["val/F1Score"] == pytest.approx(labels["val/f1"], abs=1e-7)
    values = measure(ALONE, "values", [*METRICS["values"], "rmse"])
    assert values is not None
    assert values["val/MeanSquaredError"] == pytest.approx(values["val/rmse"])


def test_direction_is_that_of_the_metric_or_of_the_recipe() -> None:
    stated = {"name": f"{HERE}:confidence", "arguments": {"power": 1}, "recorded_as": "sure", "higher_is_better": True}
    chosen = choose("class", [*METRICS["class"], stated], best="sure")
    assert chosen.best == "sure"
    assert chosen.own_directions == {
        "Accuracy": True,
        "CohenKappa": True,
        "AUROC": True,
        "MulticlassHingeLoss": False,
        "confidence": None,
        "Largest": False,
        "sure": True,
    }
    assert chosen.shown[0] == "sure"
    with pytest.raises(RecipeError, match="does not say whether higher is better"):
        choose("class", METRICS["class"], best="confidence")


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ({"torchmetrics.AUROC": MULTICLASS}, ["keeps every sample", "'preds'", "thresholds"]),
        ({"torchmetrics.PearsonCorrCoef": {}}, ["'mean_x'", "does not add up"]),
        ({"torchmetrics.Accuracy": MULTICLASS | {"average": "none"}}, ["gives a tensor [6]", "average: macro"]),
        ({"torchmetrics.Accuracy": {"task": "multiclass"}}, ["does not accept", "num_classes"]),
        ({"torchmetrics.Accuracy": {"task": "multiclass", "num_classes": 3}}, ["does not accept outputs [4, 6]"]),
        ("torchmetrics.Acuracy", ["torchmetrics has no metric 'Acuracy'", "Accuracy"]),
        (f"{HERE}:vector", ["gives a tensor [4, 6] for 4 samples", "test_own.py", "return a tensor [samples]"]),
        (f"{HERE}:nothing", ["returns None", "torchmetrics.Metric"]),
        ({f"{HERE}:confidence": {"pwoer": 1}}, ["cannot be called with", "pwoer"]),
        (f"{HERE}:BATCH", ["is 16", "function or a class"]),
        (f"{HERE}:Lagrest", ["has no 'Lagrest'", "Largest"]),
    ],
)
def test_what_cannot_be_one_exact_number_is_refused_in_a_sentence(metric: Any, words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        measure(ALONE, "class", [metric])
    assert all(word in str(caught.value) for word in words), caught.value
