"""Computes the statistics of BatchNorm for weights that were not trained with them: averages."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from distrain.config import Recipe
from distrain.config.profile import Profile
from distrain.data.loading.loader import BatchReader, read_batches
from distrain.data.loading.sampler import TrainSampler
from distrain.distributed.world import World
from distrain.models.registry import build_model
from distrain.tensors.dtensor import reshard
from distrain.tensors.module_state import Tensors, preserve_buffers, split, unpack, with_versions
from distrain.training.determinism import seed_model_draws, set_determinism
from distrain.training.device.batch_transforms import BatchTransform
from distrain.training.device.precision import Precision, set_tf32, to_device
from distrain.training.own_code import may_draw_anywhere
from distrain.training.session import Session
from distrain.training.setup.data import set_up_data


@dataclass(frozen=True)
class StatisticsPass:
    """Passes of training samples through a network in training mode, from which it gets its statistics."""

    recipe: Recipe
    world: World
    model: nn.Module
    reader: BatchReader
    sampler: TrainSampler
    prepare: BatchTransform
    precision: Precision
    idle_batch: torch.Tensor | None  # where passes are collective, the input of a rank without a micro-batch
    must_stop: Callable[[], bool]
    advance: Callable[[], None]  # called for each micro-batch of this rank

    @torch.no_grad()
    def compute(self, steps: Sequence[int]) -> bool:
        """Set the statistics of BatchNorm to their means over the micro-batches of training steps.

        As torch's `update_bn`: each micro-batch has the same weight. The sums have one order: bits are equal on any
        number of processes that split the steps into the same micro-batches. Returns False where `must_stop`
        interrupted it, with other values. All ranks call it together.
        """
        norms = [part for part in self.model.modules() if isinstance(part, _BatchNorm) and _is_computed(part)]
        if not norms or not steps:
            return True
        with _measuring(norms), preserve_buffers(self.model):
            mean = self._mean(norms, steps)
        reshard(self.model)
        if mean is None:
            return False
        for buffer, values in zip(_statistics(norms), _split(mean, norms), strict=True):
            buffer.copy_(values)
        return True

    def _mean(self, norms: list[_BatchNorm], steps: Sequence[int]) -> torch.Tensor | None:
        """Return the mean of the statistics, float64 [all of them in a row]; None after a stop request.

        A rank sends the statistics of its micro-batches as rows of a table that is zero elsewhere, so that the sum over
        the ranks is exact, and all ranks add the rows in the same order.
        """
        total, count = torch.zeros_like(_row(norms)), 0
        reading = read_batches(
            self.reader,
            self.sampler.micro_batches(steps),
            num_workers=self.recipe.data.num_workers,
            device=self.world.device,
            loader=self.recipe.data.loader,
        )
        with closing(reading) as batches:
            for step in steps:
                global_batch = self.sampler.global_batch(step)
                rows = total.new_zeros(global_batch.num_micro_batches, len(total) + 1)
                for index in global_batch.local:
                    if self.must_stop():
                        break
                    images, _ = next(batches)
                    self._pass(self.prepare.inputs(images, step=step), step, index)
                    rows[index] = torch.cat([_row(norms), total.new_ones(1)])
                    self.advance()
                if self.idle_batch is not None:
                    for _ in range(len(global_batch.local), -(-global_batch.num_micro_batches // self.world.size)):
                        self._pass(self.idle_batch, step, 0)
                rows = self.world.all_reduce(rows)
                if not bool((rows[:, -1] == 1).all()):
                    return None
                for row in rows:
                    total += row[:-1]
                    count += 1
        return total / count

    def _pass(self, images: torch.Tensor, step: int, index: int) -> None:
        everywhere = may_draw_anywhere(self.recipe, self.model)
        seed_model_draws(self.recipe.train.seed, step, index, self.world.gpus, everywhere=everywhere)
        with self.precision.autocast():
            self.model(images)


def compute_statistics(session: Session) -> bool:
    """Compute the statistics of the network's present weights, from the first steps of the epoch in progress.

    Returns False where a stop request interrupted it. All ranks call it together.
    """
    is_collective = session.strategy.forward_is_collective

    def advance() -> None:
        session.state.progress += 1

    passes = StatisticsPass(
        recipe=session.recipe,
        world=session.world,
        model=session.model,
        reader=session.train_reader,
        sampler=session.sampler,
        prepare=session.prepare,
        precision=session.precision,
        idle_batch=session.idle_batch[0] if is_collective else None,
        must_stop=lambda: session.monitor.stop.is_requested and not is_collective,
        advance=advance,
    )
    per_epoch = session.sampler.steps_per_epoch
    first = max(0, session.state.step - 1) // per_epoch * per_epoch
    count = min(per_epoch, session.recipe.train.batchnorm_steps or per_epoch)
    with session.extra.preserved():
        return passes.compute(list(session.skipped.others(range(first, first + count))))


def with_statistics(recipe: Recipe, tensors: Tensors, *, num_steps: int) -> Tensors:
    """Return the weights and buffers of a recipe's network with the statistics of its first training steps.

    It runs in this process, on the CPU. Raises a `UserError` where data or network are not available.
    """
    set_determinism(recipe)
    world = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    set_tf32(recipe, world.device)
    data = set_up_data(recipe, Profile(launcher="inprocess", device="cpu", processes=1, threads=1), world)
    config = recipe.model.model_copy(update={"weights": None})
    model = build_model(config, num_classes=data.num_classes, in_channels=data.num_channels)
    model.load_state_dict(with_versions(unpack(tensors), model))
    model = to_device(model, recipe, world.device).train()
    passes = StatisticsPass(
        recipe=recipe,
        world=world,
        model=model,
        reader=data.readers["train"],
        sampler=data.sampler,
        prepare=data.prepare,
        precision=Precision(recipe.precision, world.device),
        idle_batch=None,
        must_stop=lambda: False,
        advance=lambda: None,
    )
    passes.compute(range(min(num_steps, data.sampler.steps_per_epoch)))
    return tensors | {name: tensor.contiguous() for name, tensor in split(model)[0].items()}


def _is_computed(norm: _BatchNorm) -> bool:
    """Whether a layer has statistics that training changes; those of frozen layers stay."""
    return norm.running_mean is not None and norm.training


@contextmanager
def _measuring(norms: list[_BatchNorm]) -> Iterator[None]:
    """Let the running statistics be those of the last batch."""
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum


def _statistics(norms: list[_BatchNorm]) -> list[torch.Tensor]:
    return [norm.get_buffer(name) for norm in norms for name in ("running_mean", "running_var")]


def _row(norms: list[_BatchNorm]) -> torch.Tensor:
    return torch.cat([buffer.flatten().double() for buffer in _statistics(norms)])


def _split(values: torch.Tensor, norms: list[_BatchNorm]) -> list[torch.Tensor]:
    buffers = _statistics(norms)
    return [
        part.view_as(buffer)
        for part, buffer in zip(torch.split(values, [b.numel() for b in buffers]), buffers, strict=True)
    ]
