"""Lists the checks of recipe, data, loss and network before the first step; each names what does not fit.

A check leaves everything as it was, also the random numbers. All ranks run the same checks in the same order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distrain.config import Recipe
from distrain.config.metrics import ALWAYS_MEASURED
from distrain.config.task import SELF_SUPERVISED, VIEWS
from distrain.distributed.parallelize import check_sync_batchnorm
from distrain.distributed.world import World
from distrain.errors import RecipeError
from distrain.messages import counted, joined
from distrain.models.freezing import check_something_trains
from distrain.tensors.preserve_state import preserve_state
from distrain.training.device.batch_transforms import check_mixing, check_own_transforms, check_sizes
from distrain.training.device.precision import Precision
from distrain.training.losses import check_loss
from distrain.training.metrics.own import check_own_metrics
from distrain.training.probe import try_network
from distrain.training.setup.data import DataSetup
from distrain.training.setup.loss import LossSetup
from distrain.training.setup.network import NetworkSetup
from distrain.training.tasks.build import KNOWN_FORMS
from distrain.training.tasks.protocol import Task


@dataclass(frozen=True)
class Parts:
    """The parts of a session that a check sees."""

    recipe: Recipe
    world: World
    data: DataSetup
    loss: LossSetup
    network: NetworkSetup
    task: Task
    precision: Precision
    is_new: bool  # whether the run begins at step 0


Check = Callable[[Parts], None]  # raises a `UserError`


def run_checks(checks: Sequence[Check], parts: Parts) -> None:
    """Run them in order; the first one that fails raises."""
    for check in checks:
        check(parts)


def _network_takes_all_sizes(parts: Parts) -> None:
    with preserve_state(parts.network.model):
        check_sizes(parts.recipe, parts.network.model.eval(), num_channels=parts.data.num_channels)


def _something_trains(parts: Parts) -> None:
    if parts.is_new:
        check_something_trains(
            parts.network.model,
            parts.network.unfreeze_steps,
            parts.network.end_steps,
            steps_per_epoch=parts.data.sampler.steps_per_epoch,
            total_steps=parts.data.total_steps,
        )


def _loss_takes_mixed_targets(parts: Parts) -> None:
    with preserve_state(parts.loss.function):
        check_mixing(
            parts.recipe,
            parts.loss.function,
            parts.data.first[1].to(parts.world.device),  # where the weights of the loss are
            num_classes=parts.data.num_classes,
            micro_batch_size=parts.data.sampler.batching.micro_batch_size,
        )


def _loss_takes_transformed_batches(parts: Parts) -> None:
    if type(parts.task) not in KNOWN_FORMS:
        return
    first, device = parts.data.first, parts.world.device
    with preserve_state(parts.loss.function):
        check_own_transforms(
            parts.recipe,
            parts.data.prepare,
            first[0].to(device),
            first[1].to(device),
            parts.loss.function,
            num_outputs=parts.data.num_classes,
        )


def _views_stay_together(parts: Parts) -> None:
    if parts.recipe.task.name != SELF_SUPERVISED:
        return
    sizes = [size for global_batch in parts.data.sampler.global_batches for size in global_batch.sizes]
    if odd := next((size for size in sizes if size % VIEWS or size < 2 * VIEWS), None):
        raise RecipeError(
            f"task=self-supervised compares {VIEWS} views of each image, and a micro-batch of an epoch's last batch "
            f"would have {counted(odd, 'sample')}; --set data.drop_last=true"
        )


def _batchnorm_can_be_synchronized(parts: Parts) -> None:
    check_sync_batchnorm(parts.recipe, parts.world, parts.data.sampler)


def _network_trains_and_evaluates(parts: Parts) -> None:
    if type(parts.task) not in KNOWN_FORMS:
        return  # the task is tried as a whole
    data, world = parts.data, parts.world
    try_network(
        parts.recipe,
        parts.network.model,
        data.sampler,
        parts.precision,
        in_training=[
            data.prepare.inputs(data.first[0].to(world.device), step=s) for s in (0, data.prepare.smallest_step)
        ],
        in_evaluation=data.normalize(data.first_val[0].to(world.device)),
        num_val_samples=len(data.sources["val"]),
        num_outputs=data.num_classes,
        num_devices=world.num_devices,
    )


def _loss_takes_targets(parts: Parts) -> None:
    if type(parts.task) not in KNOWN_FORMS:
        return
    targets = parts.data.first[1].to(parts.world.device)
    with parts.precision.autocast(), preserve_state(parts.loss.function):
        check_loss(parts.loss.function, parts.recipe.loss, targets, num_outputs=parts.data.num_classes)


def _plateau_has_its_metric(parts: Parts) -> None:
    schedule, measured = parts.recipe.schedule, (ALWAYS_MEASURED, *parts.loss.metrics.names)
    if schedule.name == "plateau" and (schedule.metric or ALWAYS_MEASURED) not in measured:
        raise RecipeError(
            f"schedule.metric={schedule.metric} is not measured by the evaluations; add it to eval.metrics, or use "
            f"{joined(measured)}"
        )


def _metrics_take_targets(parts: Parts) -> None:
    targets = parts.data.first_val[1].to(parts.world.device)
    check_own_metrics(parts.loss.metrics.own, targets, num_outputs=parts.data.num_classes)


ON_CPU: tuple[Check, ...] = (
    _network_takes_all_sizes,
    _something_trains,
    _loss_takes_targets,
    _plateau_has_its_metric,
    _metrics_take_targets,
)
WITH_MICRO_BATCH: tuple[Check, ...] = (
    _loss_takes_transformed_batches,
    _loss_takes_mixed_targets,
    _batchnorm_can_be_synchronized,
    _views_stay_together,
)
ON_DEVICE: tuple[Check, ...] = (_network_trains_and_evaluates,)
