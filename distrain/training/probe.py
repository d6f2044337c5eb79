"""Probes a network before the first step with a few images, and with a single one."""

from collections.abc import Sequence

import torch
from torch import nn

from distrain.config import Recipe
from distrain.data.loading.sampler import TrainSampler
from distrain.errors import ModelError
from distrain.messages import first_line
from distrain.tensors.module_state import as_stateful, unpack
from distrain.tensors.preserve_state import pack_extra, preserve_state
from distrain.training import own_code
from distrain.training.device.precision import Precision
from distrain.training.single_samples import SingleSample, find_in_evaluation, find_in_training


def check_state(owner: object, *, name: str) -> None:
    """Raise `ModelError`, with `name` in the message, if the extra state of a network or loss cannot be restored.

    Either it cannot be stored, or `load_state_dict` refuses it.
    """
    packed, stateful = pack_extra(owner, name=name), as_stateful(owner)
    if not packed or stateful is None:
        return
    state = stateful.state_dict()
    state.update(unpack(packed))
    try:
        stateful.load_state_dict(state)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            f"{name} does not load the state that it returns ({reason[:200]}); define set_extra_state together with "
            f"get_extra_state, so that a resume can restore it"
        ) from error


def try_network(
    recipe: Recipe,
    model: nn.Module,
    sampler: TrainSampler,
    precision: Precision,
    *,
    in_training: Sequence[torch.Tensor],
    in_evaluation: torch.Tensor,
    num_val_samples: int,
    num_outputs: int,
    num_devices: int,
) -> None:
    """Raise `ModelError` if a network cannot train or evaluate, with batch sizes as they will occur.

    Images are float32 [n, channels, height, width], as the network will get them, on its device: `in_training` those of
    the first step, and the smallest ones. With several `num_devices` in one process, micro-batches are split over them.
    """
    name = recipe.model.name
    largest = max(max(global_batch.sizes) for global_batch in sampler.global_batches)
    pairs = [(images[torch.arange(min(2, largest)) % len(images)], True) for images in in_training[:1]]
    for images, is_training in [*pairs, (in_evaluation[:2], False)]:
        with precision.autocast():
            check_outputs(model, images, name=name, num_outputs=num_outputs, is_training=is_training)
    is_shared = recipe.parallel.sync_batchnorm and not recipe.train.exact  # statistics over the samples of all GPUs
    for single, image, is_training in (
        (None if is_shared else find_in_training(recipe, sampler, num_devices=num_devices), in_training[-1][:1], True),
        (find_in_evaluation(recipe, num_samples=num_val_samples), in_evaluation[:1], False),
    ):
        if single is not None:
            with precision.autocast():
                check_single_sample(
                    model, image, single=single, name=name, num_outputs=num_outputs, is_training=is_training
                )


def check_outputs(
    model: nn.Module, images: torch.Tensor, *, name: str, num_outputs: int, is_training: bool = False
) -> None:
    """Raise `ModelError` if a network does not accept `images`, or does not return `num_outputs` numbers for each.

    `images` float32 [n, channels, height, width] are on the device, as the network gets them in evaluation or training.
    Errors of lines of the user's own network are not caught.
    """
    with preserve_state(model), torch.set_grad_enabled(is_training):
        with own_code.refusing(images, name=name):
            outputs = model.train(is_training)(images.clone())  # a network may modify its input
        own_code.check_outputs(
            outputs, model, num_samples=len(images), num_outputs=num_outputs, name=f"model.name={name}"
        )


def check_single_sample(
    model: nn.Module,
    image: torch.Tensor,
    *,
    name: str,
    num_outputs: int,
    is_training: bool,
    single: SingleSample,
) -> None:
    """Raise `ModelError` if a network that accepts two samples does not accept a single one, as BatchNorm does not.

    `image` float32 [1, channels, height, width] lies on the network's device; `single` says in which passes a sample is
    alone, and what avoids them.
    """
    cause: Exception | None = None
    try:
        with preserve_state(model), torch.set_grad_enabled(is_training):
            outputs = model.train(is_training)(image.clone())
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - each layer has its own way to refuse a single sample
        seen, cause = first_line(error), error
    else:
        unlike = own_code.unlike_logits(outputs, num_samples=1, num_outputs=num_outputs)
        if unlike is None:
            return
        seen = f"it gives {unlike}"
    raise ModelError(
        f"model.name={name} does not accept a batch of a single sample{' in training' if is_training else ''} "
        f"({seen}), and {single.where}; {single.remedy}"
    ) from cause
