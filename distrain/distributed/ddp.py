"""Wraps DistributedDataParallel: one replica per rank, gradients averaged during the backward pass."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from distrain.data.loading.sampler import GlobalBatch
from distrain.distributed.batchnorm_stats import BatchStatistics, average_together
from distrain.distributed.world import World
from distrain.errors import ModelError

_NO_CONTEXT: AbstractContextManager[None] = nullcontext()


class Ddp:
    """DistributedDataParallel, with BatchNorm's running statistics averaged over the ranks once per step."""

    name = "ddp"
    forward_is_collective = False

    def __init__(self, module: nn.Module, world: World) -> None:
        self.module = module
        self.loss_scale = world.size
        self._world = world
        # Buffers are synchronized here, from the statistics of all ranks; DDP would broadcast those of rank 0.
        names = [name for name, _ in module.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)  # type: ignore[no-untyped-call]
        self._replica = DistributedDataParallel(
            module,
            device_ids=[world.device] if world.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )
        self._parameters = list(module.parameters())
        self._trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        self._statistics = BatchStatistics(module)

    def begin_step(self, global_batch: GlobalBatch, step: int) -> nn.Module:  # noqa: ARG002 - the protocol's signature
        """Return the replica, or the network itself if the ranks have different numbers of micro-batches."""
        self._statistics.begin()
        return self.module if self._is_uneven(global_batch) else self._replica

    def micro_batch(self, global_batch: GlobalBatch, index: int) -> AbstractContextManager[None]:
        """Reduce the gradients only in the last micro-batch."""
        return _NO_CONTEXT if index == global_batch.local[-1] else self._replica.no_sync()

    def finish_step(self, global_batch: GlobalBatch, step: int) -> None:
        """Average the statistics, and the gradients of an uneven global batch, which DDP has not reduced.

        Raises `ModelError` if a weight has no gradient in the step: the ranks would wait for each other.
        """
        if self._is_uneven(global_batch):
            self._average_gradients()
        else:
            self._check_gradients(step)
        self._statistics.average(global_batch, self._world)

    def zero_grad(self) -> None:
        """Discard the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def close(self) -> None:
        """Do nothing: there are no resources to release."""

    def _is_uneven(self, global_batch: GlobalBatch) -> bool:
        return global_batch.num_micro_batches % self._world.size != 0

    def _check_gradients(self, step: int) -> None:
        missing = next((name for name, weight in self._trained.items() if weight.grad is None), None)
        if missing is not None:
            raise ModelError(
                f"{missing} was not used in step {step + 1} on rank {self._world.rank}, but was used at the start; "
                f"train a network that does not use all weights in every step in one process, or with train.exact"
            )

    def _average_gradients(self) -> None:
        """Average the gradients without DDP, whose reducer needs a backward pass on every rank."""
        by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
        for parameter in self._trained.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            by_dtype.setdefault(parameter.dtype, []).append(parameter.grad)
        for gradients in by_dtype.values():
            average_together(gradients, size=self._world.size)
