"""Opens the teacher of a distillation: a bundle, a checkpoint of a run, or a network of timm."""

import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from distrain.checkpoint.tensors import weights_digest
from distrain.config import Augment, Model
from distrain.config.task import TIMM
from distrain.data.transforms.pipeline import Normalize
from distrain.errors import BundleError, CheckpointError, ModelError, WeightsUnreachableError
from distrain.export.bundle import Bundle, load
from distrain.export.from_checkpoint import open_checkpoint
from distrain.messages import counted, first_line
from distrain.models.registry import build_model, build_published, head_paths
from distrain.models.weights import load_weights
from distrain.runs.directory import BUNDLE, RunDirectory
from distrain.training.tasks.features import count_features
from distrain.training.tasks.protocol import TaskSetup

log = logging.getLogger(__name__)


class Teacher:
    """A frozen network in evaluation mode, that is no part of the trained one; `digest` is that of its weights.

    It gets the student's images in its own normalisation, and in its own size where that is known and another one.
    """

    def __init__(
        self, network: nn.Module, head: str | None, *, setup: TaskSetup, augment: Augment, size: tuple[int, int] | None
    ) -> None:
        self.network = network.to(setup.device).eval().requires_grad_(requires_grad=False)
        self.digest = weights_digest(network)
        self._head = head
        self._kept: list[torch.Tensor] = []
        self._size = size
        student, num_channels = setup.recipe.augment, setup.images.shape[1]
        is_alike = (augment.mean, augment.std) == (student.mean, student.std)
        both = [Normalize(one, num_channels=num_channels, device=setup.device) for one in (student, augment)]
        self._normalizes = None if is_alike else both
        if head is not None:
            network.get_submodule(head).register_forward_pre_hook(self._keep)

    @property
    def num_features(self) -> int:
        """How many numbers enter its head."""
        assert self._head is not None
        return count_features(self.network, self._head, name="the teacher")

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return its outputs for images as the student gets them, and their features where it knows its head."""
        if self._normalizes is not None:
            student, own = self._normalizes
            images = own(student.invert(images))
        if self._size is not None and tuple(images.shape[-2:]) != self._size:
            images = F.interpolate(images, size=self._size, mode="bilinear", antialias=True)
        outputs: torch.Tensor = self.network(images)
        features = self._kept.pop() if self._kept else None
        if features is not None and features.ndim > 2:
            features = features.flatten(2).mean(dim=2)
        return outputs, features

    def _keep(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._kept[:] = inputs[:1]


def open_teacher(setup: TaskSetup, *, uses_outputs: bool) -> Teacher:
    """Return the teacher of a recipe on the device.

    Raises `ModelError` where there is none, where it does not accept the images, and, if it `uses_outputs`, where its
    outputs are not those of the data.
    """
    reference = str(setup.recipe.task.teacher)
    opened = _open_timm if reference.startswith(TIMM) else _open_bundle
    teacher = opened(setup, reference, uses_outputs=uses_outputs)
    try:
        outputs, _ = teacher(setup.images.to(setup.device))
    except Exception as error:  # noqa: BLE001 - each network has its own way to refuse images
        size = "x".join(map(str, setup.images.shape[1:]))
        raise ModelError(
            f"task.teacher={reference} does not accept the images, of {size} pixels ({first_line(error)})"
        ) from None
    if uses_outputs and outputs.shape[1:] != (len(setup.classes),):
        raise ModelError(
            f"task.teacher={reference} has outputs {list(outputs.shape[1:])}, and the data has "
            f"{counted(len(setup.classes), 'class', 'classes')}; {_ADVICE}"
        )
    log.info("teacher %s, weights %s", reference, teacher.digest)
    return teacher


_ADVICE = (
    "train it on this data first, or learn from its features alone, with task.logit_weight=0 and task.feature_weight=1"
)


def _open_bundle(setup: TaskSetup, reference: str, *, uses_outputs: bool) -> Teacher:
    path = Path(reference).expanduser()
    try:
        if (path / BUNDLE).is_file():
            bundle = load(path)
        elif path.is_dir():
            bundle = open_checkpoint(RunDirectory(path.parents[1]), path)
        else:
            raise ModelError(f"task.teacher={reference}: there is no such bundle, run or checkpoint")
    except (BundleError, CheckpointError) as error:
        raise ModelError(f"task.teacher={reference} is not used: {error}") from None
    _compare(setup, bundle, reference, uses_outputs=uses_outputs)
    preprocessing = bundle.description.preprocessing
    channels, height, width = preprocessing.input_shape
    if channels != setup.images.shape[1]:
        raise ModelError(
            f"task.teacher={reference} accepts images with {counted(channels, 'channel')}, and the data has "
            f"{setup.images.shape[1]}"
        )
    heads = head_paths(bundle.description.model, bundle.model)
    return Teacher(
        bundle.model, next(iter(heads), None), setup=setup, augment=preprocessing.augment, size=(height, width)
    )


def _compare(setup: TaskSetup, bundle: Bundle, reference: str, *, uses_outputs: bool) -> None:
    """Raise `ModelError` where the outputs of the teacher are not those of the data, one by one."""
    description = bundle.description
    if not uses_outputs or (list(description.classes), description.target) == (list(setup.classes), setup.target):
        return
    if description.target != setup.target:
        seen = f"was trained for {description.target}, and the data has {setup.target}"
    elif len(description.classes) != len(setup.classes):
        count = counted(len(description.classes), "class", "classes")
        seen = f"has {count}, and the data has {len(setup.classes)}"
    else:
        pairs = zip(description.classes, setup.classes, strict=True)
        number, (theirs, ours) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        seen = f"has other classes: number {number} is {theirs!r} there and {ours!r} here"
    raise ModelError(f"task.teacher={reference} {seen}; {_ADVICE}")


def _open_timm(setup: TaskSetup, reference: str, *, uses_outputs: bool) -> Teacher:
    weights, in_channels = setup.recipe.task.teacher_weights, setup.images.shape[1]
    config = Model(name=reference)
    if weights is None:
        try:
            network = build_published(config, in_channels=in_channels)
        except WeightsUnreachableError as error:
            raise ModelError(
                f"task.teacher={reference}: {str(error).partition(';')[0]}; use a file with task.teacher_weights"
            ) from None
        known = getattr(network, "pretrained_cfg", {})
        augment = Augment(mean=known.get("mean"), std=known.get("std"))
        size = tuple(known["input_size"][1:]) if known.get("fixed_input_size") else None
    else:
        network = build_model(config, num_classes=len(setup.classes), in_channels=in_channels)
        heads = () if uses_outputs else head_paths(config, network)  # their weights are not needed
        try:
            load_weights(network, weights, stored=None, entry=None, heads=heads, num_classes=0, is_partial=False)
        except ModelError as error:
            raise ModelError(f"task.teacher_{str(error).removeprefix('model.')}") from None
        augment, size = setup.recipe.augment, None  # as the student gets them
    return Teacher(network, next(iter(head_paths(config, network)), None), setup=setup, augment=augment, size=size)
