"""Owns training in one process: there is nothing to share."""

from contextlib import AbstractContextManager, nullcontext

from torch import nn

from distrain.data.order import Window

_NO_CONTEXT: AbstractContextManager[None] = nullcontext()


class Single:
    """The network as it is."""

    loss_scale = 1
    needs_even_passes = False

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._parameters = list(module.parameters())

    def begin_window(self, window: Window, step: int) -> nn.Module:  # noqa: ARG002 - the protocol's signature
        """Return the network."""
        return self.module

    def micro_batch(self, window: Window, piece: int) -> AbstractContextManager[None]:  # noqa: ARG002
        """Return an empty context: gradients add up by themselves."""
        return _NO_CONTEXT

    def finish_window(self, window: Window, step: int) -> None:
        """Do nothing: this rank has seen the whole window."""

    def drop_gradients(self) -> None:
        """Forget the gradients."""
        for parameter in self._parameters:
            parameter.grad = None  # what zero_grad does, without its bookkeeping for profilers
