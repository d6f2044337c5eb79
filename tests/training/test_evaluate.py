"""An evaluation counts each sample once, and gives the same bits on any number of processes."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distrain.config import Eval
from distrain.config.metrics import METRICS, Target
from distrain.data.loading.sampler import evaluation_order
from distrain.distributed.world import World
from distrain.training.device.precision import Precision
from distrain.training.evaluate import Evaluation, evaluate
from distrain.training.metrics.selection import choose_metrics
from tests.processes import run_ranks
from tests.training.outputs_task import LOSSES, build_outputs_task

SAMPLES, BATCH, OUTPUTS = 90, 16, 6
ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


def draw(target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the network gives and the targets, of all samples."""
    generator = torch.Generator().manual_seed(5)
    outputs = torch.randn(SAMPLES, OUTPUTS, generator=generator) * 2
    near = outputs + torch.randn(SAMPLES, OUTPUTS, generator=generator) * 2
    targets: dict[Target, torch.Tensor] = {"class": near.argmax(dim=1), "labels": (near > 1).float(), "values": near}
    return outputs, targets[target]


def measure(
    world: World, target: Target, *, samples: int = SAMPLES, break_off_on: int | None = None
) -> Evaluation | None:
    """Evaluate a network that passes on what it gets, with every metric that there is for the target."""
    names = [name for name, metric in METRICS.items() if target in metric.targets]
    outputs, targets = draw(target)
    own = evaluation_order(num_samples=samples, batch_size=BATCH, rank=world.rank, world_size=world.size)
    classes = [f"class {i}" for i in range(OUTPUTS)]
    return evaluate(
        nn.Identity(),
        ((outputs[batch.indices], targets[batch.indices]) for batch in own),
        num_batches=math.ceil(samples / BATCH),
        idle_batch=None,
        task=build_outputs_task(world, target, outputs, classes),
        chosen=choose_metrics(Eval(metrics=tuple(names)), target=target, classes=classes),
        precision=Precision("fp32", world.device),
        world=world,
        must_break_off=lambda: world.rank == break_off_on,
    )


@pytest.mark.parametrize("target", LOSSES)
def test_every_metric_of_the_table_is_computed(target: Target) -> None:
    evaluation = measure(ALONE, target)
    assert evaluation is not None
    numbers = {f"val/{name}" for name, metric in METRICS.items() if metric.is_number and target in metric.targets}
    assert numbers <= evaluation.metrics.keys()


def write_evaluations(world: World, folder: Path) -> None:
    """Write what a rank finds: of all samples, and of so few that some ranks have none."""
    found: list[Any] = []
    for target in LOSSES:
        for samples in (SAMPLES, BATCH):
            evaluation = measure(world, target, samples=samples)
            assert evaluation is not None
            confusion = None if evaluation.confusion is None else evaluation.confusion.tolist()
            found.append([evaluation.metrics, evaluation.num_samples, confusion])
    (folder / f"{world.size}-{world.rank}.json").write_text(json.dumps(found))


def test_evaluation_has_the_same_bits_on_one_two_and_three_processes(tmp_path: Path) -> None:
    for size in (1, 2, 3):
        run_ranks(write_evaluations, tmp_path, size, tmp_path)
    texts = {path.name: path.read_text() for path in tmp_path.glob("*.json")}
    assert len(texts) == 1 + 2 + 3
    assert len(set(texts.values())) == 1, texts


def test_evaluation_of_classes_is_that_of_all_samples_at_once() -> None:
    found = measure(ALONE, "class")
    assert found is not None
    assert found.confusion is not None
    outputs, targets = draw("class")
    hits = outputs.argmax(dim=1) == targets
    assert found.num_samples == SAMPLES
    assert found.metrics["val/top1"] == hits.sum().item() / SAMPLES
    assert found.metrics["val/loss"] == pytest.approx(nn.functional.cross_entropy(outputs, targets).item())
    assert found.metrics["val/top1/class 2"] == hits[targets == 2].double().mean().item()
    for true, predicted in ((0, 0), (1, 2)):
        is_both = (targets == true) & (outputs.argmax(dim=1) == predicted)
        assert found.confusion[true, predicted] == is_both.sum()
    assert found.class_counts is not None
    assert found.class_counts.sum(dim=0).tolist() == [hits.sum().item(), SAMPLES]


def test_evaluation_of_values_is_that_of_all_samples_at_once() -> None:
    found = measure(ALONE, "values")
    assert found is not None
    outputs, targets = draw("values")
    errors = (outputs - targets).double()
    assert found.metrics == pytest.approx(
        {
            "val/loss": errors.square().mean().item(),
            "val/mae": errors.abs().mean().item(),
            "val/rmse": errors.square().mean().sqrt().item(),
        }
    )
    assert found.confusion is None


def break_off(world: World) -> None:
    assert measure(world, "class", break_off_on=1) is None


def test_evaluation_that_one_rank_breaks_off_gives_nothing_on_any(tmp_path: Path) -> None:
    run_ranks(break_off, tmp_path, 2)
