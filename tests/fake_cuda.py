"""CUDA tensors without a GPU and without content: what mixes devices fails, and what waits for the GPU is seen.

torch's FakeTensorMode computes shapes, dtypes and devices alone. What it has no answer for is replaced here: streams,
events, questions about memory, generators, and the backward pass. Sources, networks and all that looks at numbers are
made outside of it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import v2

from distrain.config import Recipe
from distrain.config.profile import Profile
from distrain.data.loading.loader import BatchReader, read_batches
from distrain.data.sources.base import Batch, TensorSource
from distrain.distributed import unused_parameters
from distrain.distributed.world import World
from distrain.runs.directory import RunDirectory
from distrain.training import build, determinism, evaluate, records, step_watch, trainer
from distrain.training.device import batch_transforms, micro_batch_size
from distrain.training.monitor import RankMonitor
from distrain.training.optim import optimizer, param_groups, weight_averaging
from distrain.training.session import Session
from distrain.training.setup import checks as setup_checks
from distrain.training.setup import data as setup_data
from distrain.training.setup import loss as setup_loss
from distrain.training.setup import network as setup_network

GPU = torch.device("cuda", 0)
_TOTAL_BYTES = 80 << 30
_COPIES = {torch.ops.aten._to_copy.default: 0, torch.ops.aten.copy_.default: 1}  # the place of what is copied


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes each copy between host and GPU for which torch lets the host wait."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func in _COPIES:
            source, target = args[_COPIES[func]], out
            does_wait = not (kwargs.get("non_blocking", False) or (len(args) > 2 and args[2]))
            is_pageable = source.device.type == "cpu" and not getattr(source, "is_page_locked", False)
            if source.device.type != target.device.type and (does_wait or is_pageable):
                self.seen.append(f"{source.device.type} to {target.device.type}, {list(source.shape)}")
        return out


@contextmanager
def fake_gpu(*, free_bytes: int = _TOTAL_BYTES) -> Iterator[None]:
    """Let there be a GPU in this block, of whose memory so much is free."""
    with pytest.MonkeyPatch.context() as patch:
        _replace_cuda(patch, free_bytes)
        _keep_real(patch)
        _replace_passes(patch)
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield


def session_on_gpu(recipe: Recipe, folder: Path) -> Session:
    """Build what a training needs, on the GPU of `fake_gpu`."""
    run = RunDirectory(folder)
    run.create()
    profile = Profile(launcher="inprocess", device="cuda", processes=1, threads=1)
    world = World(rank=0, size=1, local_rank=0, device=GPU)
    with unset_fake_temporarily():
        determinism.set_determinism(recipe)
    return build.build_session(recipe, profile, run, world, RankMonitor(run, 0), has_checkpoint=False)


def take_steps(session: Session, *, num_steps: int) -> list[str]:
    """Train and return for what the host waited in the last step."""
    waits = Waits()
    steps = session.sampler.micro_batches(range(num_steps))
    batches = read_batches(session.train_reader, steps, num_workers=0, device=GPU, loader=session.recipe.data.loader)
    trainer.run_steps(session, batches, 0, num_steps - 1)
    with waits:
        trainer.run_steps(session, batches, num_steps - 1, num_steps)
    batches.close()
    return waits.seen


def run_evaluation(session: Session) -> list[str]:
    """Evaluate and return for what the host waited before it read the sums."""

    class SumsAreThere(Exception):  # noqa: N818 - the end of what can be done without numbers
        pass

    def end(*_: object) -> None:
        raise SumsAreThere

    waits = Waits()
    with pytest.MonkeyPatch.context() as patch, waits:
        patch.setattr(evaluate, "_add_over_ranks", end)
        with pytest.raises(SumsAreThere):
            records.run_evaluation(session)
    return waits.seen


class _Stream:
    """A stream, and also an event of it; nothing is ever under way."""

    device = GPU

    def __init__(self, *_: object, **__: object) -> None: ...

    def _do_nothing(self, *_: object) -> None: ...

    record = wait = wait_event = wait_stream = synchronize = _do_nothing

    def record_event(self, *_: object) -> "_Stream":
        return self


def _replace_cuda(patch: pytest.MonkeyPatch, free_bytes: int) -> None:
    for name, value in {
        "Stream": _Stream,
        "Event": _Stream,
        "current_stream": lambda *_: _Stream(),
        "stream": lambda _: nullcontext(),
        "mem_get_info": lambda *_: (free_bytes, _TOTAL_BYTES),
        "get_device_properties": lambda *_: SimpleNamespace(uuid="01112222-3333-4444-5555-666677778888"),
        "get_device_name": lambda *_: "a GPU that is not there",
        "is_bf16_supported": lambda *_, **__: True,
        "set_device": lambda _: None,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda *_: None,
        "memory_reserved": lambda *_: 1 << 20,
        "max_memory_reserved": lambda *_: 1 << 20,
        "default_generators": (torch.Generator(),),
    }.items():
        patch.setattr(torch.cuda, name, value)
    patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    patch.setattr(torch.random, "fork_rng", lambda **_: nullcontext())
    patch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    patch.setattr(torch.Tensor, "pin_memory", lambda tensor: _page_locked(tensor.clone()))
    empty = torch.empty

    def empty_page_locked(*size: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        return _page_locked(empty(*size, **kwargs)) if pin_memory else empty(*size, **kwargs)

    patch.setattr(torch, "empty", empty_page_locked)


def _page_locked(tensor: torch.Tensor) -> torch.Tensor:
    tensor.is_page_locked = True  # type: ignore[attr-defined]  # for `Waits`
    return tensor


def _keep_real(patch: pytest.MonkeyPatch) -> None:
    """Make what looks at numbers outside of the fake."""
    for module, names in {
        BatchReader: "_read_each",
        setup_data: "open_sources choose_samples cache build_transforms build_sampler _describe_input",
        setup_loss: "resolve_class_weights class_counts",
        setup_network: "_build_model initialize",
        setup_checks: "check_sizes",
        build: "warn_early",
        batch_transforms: "_mixer",
        TensorSource: "fingerprint",
    }.items():
        for name in names.split():
            patch.setattr(module, name, _real(getattr(module, name)))
    gather = BatchReader._gather

    def gather_real(reader: BatchReader, images: torch.Tensor, *rest: Any) -> Batch:
        with unset_fake_temporarily() if images.device.type == "cpu" else nullcontext():
            return gather(reader, images, *rest)

    patch.setattr(BatchReader, "_gather", gather_real)
    for module in (setup_network, micro_batch_size):
        patch.setattr(module, "copy_network", _real(module.copy_network))

    def plan(config: Any, model: nn.Module, *, heads: list[str], example: torch.Tensor) -> Any:
        with unset_fake_temporarily():
            return param_groups.plan_param_groups(config, model, heads=heads, example=torch.zeros(example.shape))

    patch.setattr(build, "plan_param_groups", plan)
    patch.setattr(weight_averaging, "not_finite", lambda tensors: [])
    patch.setattr(step_watch, "is_moderate", lambda tensor: True)


def _real(function: Callable[..., Any]) -> Callable[..., Any]:
    def outside(*args: Any, **kwargs: Any) -> Any:
        with unset_fake_temporarily():
            return function(*args, **kwargs)

    return outside


def _replace_passes(patch: pytest.MonkeyPatch) -> None:
    """Give a backward pass that makes gradients of the right shapes, and draws that need no numbers."""
    weights: list[nn.Parameter] = []
    build_optimizer = optimizer.build_optimizer

    def building(config: Any, model: nn.Module, settings: Any = None, **more: Any) -> torch.optim.Optimizer:
        weights[:] = [weight for weight in model.parameters() if weight.requires_grad]
        return build_optimizer(config, model, settings, **more)

    for module in (build, micro_batch_size):
        patch.setattr(module, "build_optimizer", building)

    def backward(loss: torch.Tensor) -> None:
        if loss.device == GPU:
            assert loss.ndim == 0
            for weight in weights:
                weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad

    patch.setattr(torch.Tensor, "backward", backward)
    patch.setattr(torch, "_fused_sgd_", _check_update)
    patch.setattr(
        unused_parameters, "_reached", lambda model, example: (model(example), set(dict(model.named_parameters())))[1]
    )
    patch.setattr(v2.MixUp, "make_params", lambda *_: {"lam": 0.3})
    patch.setattr(v2.CutMix, "make_params", lambda *_: {"box": (1, 1, 5, 5), "lam_adjusted": 0.5})
    patch.setattr(batch_transforms, "torch", _Draws())


class _Draws:
    """torch as `batch_transforms` sees it, which picks its last mixer, and mixes always."""

    def rand(self, *_: object) -> float:
        return 0.0

    def randint(self, high: int, *_: object) -> int:
        return high - 1

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _check_update(
    weights: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor], momenta: Sequence[torch.Tensor], **rest: Any
) -> None:
    """See that torch's fused SGD, of which there is no fake, would find everything on the GPU."""
    scales = [rest[key] for key in ("grad_scale", "found_inf") if rest.get(key) is not None]
    assert {tensor.device for tensor in (*weights, *gradients, *momenta, *scales)} == {GPU}
    assert all(weight.stride() == gradient.stride() for weight, gradient in zip(weights, gradients, strict=True))
