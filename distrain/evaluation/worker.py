"""Evaluates a checkpoint on one rank as training does, and records the prediction for every sample."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from distrain.checkpoint.load import describe_tensors, read_loss, read_model
from distrain.checkpoint.tensors import AVERAGE
from distrain.config import Recipe, read_recipe
from distrain.config.metrics import Target
from distrain.data.loading.loader import BatchReader
from distrain.data.loading.sampler import evaluation_order
from distrain.data.sources.base import Batch, Source
from distrain.data.sources.class_counts import class_counts
from distrain.data.sources.outputs import format_target
from distrain.data.sources.registry import choose_samples, open_sources
from distrain.data.transforms.pipeline import Normalize, build_transforms
from distrain.distributed.extra_state import load_loss
from distrain.distributed.world import World
from distrain.errors import CheckpointError, DataError
from distrain.evaluation.results import NUM_MISTAKES, Predictions, write_results
from distrain.evaluation.samples import open_samples
from distrain.models.registry import build_model, head_paths
from distrain.runs import checkpoints
from distrain.runs.confusion import results_of_classes
from distrain.runs.directory import RunDirectory
from distrain.runs.evaluations import Findings, Mistake
from distrain.runs.task import EvaluationRequest, Samples
from distrain.runs.user_code import find_code
from distrain.system.live_line import LiveProgress
from distrain.tensors.module_state import TASK_LAYERS, unpack, with_versions
from distrain.training.class_weights import resolve_class_weights
from distrain.training.device.precision import MEMORY_FORMATS, Precision, set_tf32, to_device
from distrain.training.evaluate import Evaluation, evaluate, read_evaluation_batches
from distrain.training.losses import LossFunction, build_loss
from distrain.training.metrics.own import check_own_metrics
from distrain.training.metrics.selection import ChosenMetrics, choose_metrics
from distrain.training.monitor import RankMonitor
from distrain.training.probe import check_outputs
from distrain.training.tasks.build import KNOWN_FORMS, TaskCalls, bind, build_task
from distrain.training.tasks.form import TaskForm
from distrain.training.tasks.probe import with_sums
from distrain.training.tasks.protocol import TaskSetup


@dataclass(frozen=True)
class _EvaluationSetup:
    """The source of the samples, the network with its weights, and everything else that an evaluation needs."""

    source: Source
    samples: Samples
    reader: BatchReader
    model: torch.nn.Module
    normalize: Normalize
    loss: LossFunction
    task: TaskCalls
    chosen: ChosenMetrics
    weights: str


class _PredictionRecorder:
    """Records the prediction for every sample of this rank's batches, by the sample's index in the split.

    One row per sample, float64 on the device: the score, then the targets, then the predictions.
    """

    def __init__(self, num_samples: int, target: Target, num_outputs: int, batch_size: int, world: World) -> None:
        self._width = 1 if target == "class" else num_outputs
        self._target = target
        self._batch_size = batch_size
        self._table = torch.zeros(num_samples, 1 + 2 * self._width, dtype=torch.float64, device=world.device)

    def __call__(self, number: int, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """Record batch `number`, counted over all ranks: logits [n, outputs], targets as the loader gives them."""
        start = number * self._batch_size
        rows = self._table[start : start + len(targets)]
        outputs = logits.double()
        if self._target == "class":
            scores, predictions = outputs.softmax(dim=1).max(dim=1)
            rows[:] = torch.stack([scores, targets.double(), predictions.double()], dim=1)
            return
        predictions = (outputs > 0).double() if self._target == "labels" else outputs
        errors = (predictions - targets.double()).abs()
        scores = errors.sum(dim=1) if self._target == "labels" else errors.mean(dim=1)
        rows[:] = torch.cat([scores[:, None], targets.double(), predictions], dim=1)

    def predictions(self, world: World, confusion: torch.Tensor | None) -> Predictions:
        """Return the predictions of all ranks; each row is from one rank, and adding zeros is exact."""
        table = world.all_reduce(self._table).cpu().numpy()
        targets, predictions = table[:, 1 : 1 + self._width], table[:, 1 + self._width :]
        if self._target == "class":
            targets, predictions = targets[:, 0].astype(np.int64), predictions[:, 0].astype(np.int64)
        counts = torch.zeros(0, 0, dtype=torch.int64) if confusion is None or confusion.dim() != 2 else confusion
        return Predictions(targets, predictions, table[:, 0], counts.numpy())


def _without_rows(evaluation: Evaluation) -> Predictions:
    """Return the results of a task that does not give outputs for each sample."""
    none = np.empty(0)
    counts = np.empty((0, 0), dtype=np.int64) if evaluation.confusion is None else evaluation.confusion.numpy()
    return Predictions(none, none, none, counts)


def evaluate_checkpoint(
    recipe: Recipe, folder: RunDirectory, request: EvaluationRequest, world: World, monitor: RankMonitor
) -> bool:
    """Evaluate the checkpoint of the request; returns False after a stop.

    Raises a `UserError` where checkpoint and data are incompatible, and `CheckpointError` for a damaged checkpoint.
    """
    find_code(RunDirectory(Path(request.run)))
    setup = _prepare(recipe, request, world)
    batch_size, num_samples = recipe.eval.batch_size, len(setup.source)
    num_batches = -(-num_samples // batch_size)
    num_local, reading = read_evaluation_batches(setup.reader, recipe, world)
    state = monitor.state
    state.load(folder.read_status())
    state.begin_attempt(world_size=world.size, total_steps=num_local)  # steps are batches of this rank
    state.phase = "evaluate"
    monitor.report_start()
    monitor.report("running")
    if recipe.loss.name == read_recipe(RunDirectory(Path(request.run)).recipe).loss.name:  # not changed by --set
        load_loss(setup.loss, read_loss(Path(request.checkpoint)))
    recorder = None
    if setup.task.form.has_outputs:
        recorder = _PredictionRecorder(num_samples, setup.source.target, len(setup.chosen.classes), batch_size, world)
    with closing(reading) as batches, _progress(world, num_local) as progress:

        def normalized(read: Iterator[Batch]) -> Iterator[Batch]:
            for images, targets in read:
                state.progress += 1
                state.step += 1
                yield setup.normalize(images), targets
                progress.advance()

        evaluation = evaluate(
            setup.model,
            normalized(batches),
            num_batches=num_batches,
            idle_batch=None,
            task=setup.task,
            chosen=setup.chosen,
            precision=Precision(recipe.precision, world.device),
            world=world,
            must_break_off=lambda: monitor.stop.is_requested,
            on_batch=recorder,
        )
    if evaluation is not None:
        predictions = (
            _without_rows(evaluation) if recorder is None else recorder.predictions(world, evaluation.confusion)
        )
        if world.is_rank_zero:
            write_results(folder, _conclude(request, recipe, setup, evaluation, predictions), predictions)
    monitor.report("finished" if evaluation is not None else "stopped")
    return evaluation is not None


def _prepare(recipe: Recipe, request: EvaluationRequest, world: World) -> _EvaluationSetup:
    set_tf32(recipe, world.device)
    path = Path(request.checkpoint)
    fault = checkpoints.find_corruption(path) if world.is_rank_zero else None
    if world.any_over_ranks(fault is not None):
        raise CheckpointError(f"checkpoint {path} cannot be used: {fault or 'rank 0 has found it damaged'}")
    state = checkpoints.read(path).state
    with world.rank_zero_first():
        source, samples = open_samples(recipe, request.split)
    if len(source) == 0:
        raise DataError(f"the {samples} split of the data is empty")
    if list(recipe.task.outputs(source.classes)) != state["classes"]:
        raise DataError(
            f"the data has other classes than the run was trained on: {', '.join(source.classes)[:200]}, not "
            f"{', '.join(state['classes'])[:200]}; use data that has them with --data"
        )
    target = source.target
    transforms = build_transforms(recipe.augment.eval, key="augment.eval", has_masks=target == "mask")
    reader = BatchReader(source, transforms, seed=recipe.train.seed)
    first = reader.read(evaluation_order(num_samples=1, batch_size=1, rank=0, world_size=1)[0])
    if isinstance(first, DataError):
        raise first
    in_channels = first[0].shape[1]
    normalize = Normalize(
        recipe.augment,
        num_channels=in_channels,
        device=world.device,
        memory_format=MEMORY_FORMATS[recipe.compute.memory_format],
    )
    batch = normalize(first[0].to(world.device)), first[1].to(world.device)
    config = recipe.model.model_copy(update={"weights": None})  # the checkpoint replaces them
    model = build_model(config, num_classes=len(recipe.task.outputs(source.classes)), in_channels=in_channels)
    loss = build_loss(
        recipe.loss,
        num_classes=len(source.classes),
        target=target,
        device=world.device,
        class_weights=_class_weights(recipe, request, state),
    )
    model, task = _set_up_task(recipe, model, loss, source, batch, path, world=world)
    measured = recipe.task.measures(target)
    chosen = choose_metrics(recipe.eval, target=measured, classes=source.classes, is_own=recipe.task.is_own)
    check_own_metrics(chosen.own, batch[1], num_outputs=len(source.classes))
    names = ("confusion_matrix",) if measured == "class" else ()
    is_averaged = any(name.startswith(AVERAGE) for name in describe_tensors(path))
    return _EvaluationSetup(
        source=source,
        samples=samples,
        reader=reader,
        model=model,
        normalize=normalize,
        loss=loss,
        task=task,
        chosen=replace(chosen, names=tuple(dict.fromkeys((*chosen.names, *names)))),
        weights="moving average" if is_averaged else "trained",
    )


def _set_up_task(
    recipe: Recipe,
    model: nn.Module,
    loss: LossFunction,
    source: Source,
    batch: Batch,
    checkpoint: Path,
    *,
    world: World,
) -> tuple[nn.Module, TaskCalls]:
    """Return the network on the device with the weights of the checkpoint, and its task, tried with a first `batch`."""
    setup = TaskSetup(
        recipe=recipe,
        network=model,
        heads=head_paths(recipe.model, model),
        classes=source.classes,
        target=source.target,
        loss=loss,
        images=batch[0].cpu(),
        device=world.device,
        num_devices=world.num_devices,
        is_training=False,
    )
    task = build_task(setup)
    tensors = read_model(checkpoint, has_task_layers=hasattr(model, TASK_LAYERS))
    model.load_state_dict(with_versions(unpack(tensors), model))
    model = to_device(model, recipe, world.device)
    precision = Precision(recipe.precision, world.device)
    if (form := KNOWN_FORMS.get(type(task))) is None:
        form = with_sums(TaskForm(), task, recipe, model, precision, batch=batch)
    else:
        with precision.autocast():
            check_outputs(model, batch[0], name=recipe.model.name, num_outputs=len(source.classes))
    return model, bind(task, form, setup)


def _class_weights(recipe: Recipe, request: EvaluationRequest, state: dict[str, Any]) -> torch.Tensor | None:
    """Return the class weights of the training loss, or those that --set requests instead.

    Balanced weights are those of the training samples, whichever samples are evaluated. They are in the checkpoint; if
    they are missing there, the samples are counted again.
    """
    run = read_recipe(RunDirectory(Path(request.run)).recipe)
    if recipe.loss.class_weights == run.loss.class_weights and (stored := state.get("class_weights")) is not None:
        return torch.tensor(stored, dtype=torch.float32)

    def counts() -> NDArray[np.int64]:
        return class_counts(choose_samples(open_sources(run.data), run.data, seed=run.train.seed)["train"])

    return resolve_class_weights(recipe.loss.class_weights, classes=state["classes"], counts=counts)


def _progress(world: World, num_batches: int) -> LiveProgress:
    console = Console(
        stderr=True, highlight=False, soft_wrap=True, force_terminal=None if world.is_rank_zero else False
    )
    return LiveProgress(console, "evaluating", num_batches, unit="batches")


def _conclude(
    request: EvaluationRequest,
    recipe: Recipe,
    setup: _EvaluationSetup,
    evaluation: Evaluation,
    predictions: Predictions,
) -> Findings:
    classes = [str(name) for name in setup.source.classes]
    return Findings(
        run=request.run,
        checkpoint=request.checkpoint,
        step=checkpoints.read(Path(request.checkpoint)).step,
        weights=setup.weights,
        split=setup.samples,
        data=recipe.data.path,
        target=setup.source.target,
        num_samples=evaluation.num_samples,
        metrics=evaluation.metrics,
        classes=results_of_classes(classes, predictions.confusion) if predictions.confusion.size else [],
        mistakes=_worst_mistakes(setup, predictions, classes),
    )


def _worst_mistakes(setup: _EvaluationSetup, predictions: Predictions, classes: list[str]) -> list[Mistake]:
    if not predictions.scores.size:
        return []
    if setup.source.target == "class":
        badness = np.where(predictions.targets != predictions.predictions, predictions.scores, 0.0)
    else:
        badness = predictions.scores
    order = np.argsort(-badness, kind="stable")[:NUM_MISTAKES]
    return [
        Mistake(
            sample=setup.source.describe(int(i)),
            index=int(i),
            target=format_target(predictions.targets[i], setup.source.target, classes),
            prediction=format_target(predictions.predictions[i], setup.source.target, classes),
            badness=float(badness[i]),
        )
        for i in order
        if badness[i] > 0
    ]
