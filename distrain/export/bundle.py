"""Loads a bundle and predicts with it: images in, probabilities out."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from distrain.checkpoint.tensors import Tensors, digest
from distrain.config.user_code import load_reference
from distrain.config.validation import describe
from distrain.data.transforms.pipeline import Normalize, build_transforms
from distrain.errors import BundleError
from distrain.export.metadata import FORMAT_VERSION, Description
from distrain.export.read_images import ImageInput, load_image
from distrain.models.registry import build_model
from distrain.runs.directory import BUNDLE
from distrain.tensors.module_state import is_part_of, split, unpack, with_versions

WEIGHTS = "model.safetensors"
CLASS_INDICES = "class_indices.json"


def load(path: str | Path, *, device: str | torch.device = "cpu") -> "Bundle":
    """Read a bundle written by `distrain export`, and move its network to `device`, ready to predict.

    Raises `BundleError` where the folder is not a bundle, is damaged, or has another format version, and
    `RecipeError` where the module of a user's network or transform is not found.
    """
    description, tensors = read_bundle(Path(path).expanduser())
    return Bundle(description, tensors, device=torch.device(device))


def read_state(file: str | Path) -> dict[str, Any]:
    """Return the complete `state_dict` of the network from a safetensors file that distrain wrote.

    It has the tensors of `safetensors.torch.load_file`, and any extra state of the network's modules: values that are
    not tensors. Raises `BundleError` where the file cannot be read.
    """
    try:
        return unpack(load_file(Path(file).expanduser()))
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{file} cannot be read as safetensors: {error}") from None


class Bundle:
    """A trained network, with the preprocessing of its input and the meaning of its outputs.

    `model` maps normalised images float32 [n, channels, height, width] on `device` to float32 [n, outputs]; `classes`
    are the names of the outputs; `description` is the content of bundle.json. An image is a path, a PIL image, or a
    tensor uint8 [channels, height, width]. `extra_state` is the network's state besides weights and buffers, packed by
    `distrain.tensors.module_state`.
    """

    def __init__(self, description: Description, tensors: Tensors, *, device: torch.device) -> None:
        self.description = description
        self.classes = description.classes
        self.device = _checked(device)
        self.model = _build(description, tensors).to(device)
        self.extra_state = _extra_of(self.model, tensors)
        preprocessing = description.preprocessing
        self._transforms = build_transforms(preprocessing.transforms, key="transforms")
        num_channels = preprocessing.input_shape[0]
        self._normalize = Normalize(preprocessing.augment, num_channels=num_channels, device=self.device)
        self._normalize_here = Normalize(preprocessing.augment, num_channels=num_channels, device=torch.device("cpu"))

    @cached_property
    def _task(self) -> Any:
        """The user's own task, not set up; raises `RecipeError` where its module is not found."""
        config = self.description.task
        made = load_reference(config.name, key="task")
        return made(**config.arguments) if callable(made) else made

    def preprocess(self, image: ImageInput) -> torch.Tensor:
        """Return the network's input for one image: float32 [channels, height, width], on the CPU.

        Raises `DataError` for an image that cannot be read.
        """
        return self._normalize_here(self.prepare(image).unsqueeze(0))[0]

    @torch.no_grad()
    def predict(self, images: Sequence[ImageInput] | str | Path) -> torch.Tensor:
        """Return float32 [n, outputs] on the CPU from one forward pass: probabilities, or the values of a regression.

        The probabilities of classes add up to one; those of labels are independent. Of masks they are [n, classes,
        height, width]; with a task of the user's own they are what its `predict` returns. `images` may be the path of a
        single one. Raises `DataError` for an image that cannot be read.
        """
        if isinstance(images, str | Path):
            images = [images]
        if not images:
            return torch.empty(0, len(self.classes))
        return self.predict_prepared(torch.stack([self.prepare(image) for image in images]))

    def prepare(self, source: ImageInput) -> torch.Tensor:
        """Return an image decoded, transformed and resized for the network, uint8 or float, not yet normalised."""
        from torchvision.transforms.v2 import functional as image_functional

        preprocessing = self.description.preprocessing
        image = load_image(source, num_channels=preprocessing.image_channels, decode_size=preprocessing.decode_size)
        if self._transforms is not None:
            image = self._transforms(image)
        if image.shape[1:] != preprocessing.input_shape[1:]:
            image = image_functional.resize(image, list(preprocessing.input_shape[1:]), antialias=True)
        if image.dtype == torch.uint8 and preprocessing.input_dtype == "float32":
            image = image_functional.to_dtype(image, torch.float32, scale=True)
        return image

    @torch.no_grad()
    def predict_prepared(self, images: torch.Tensor) -> torch.Tensor:
        """Return the result of `predict` for a batch [n, channels, height, width] of prepared images."""
        inputs = self._normalize(images.to(self.device))
        if self.description.task.is_own:
            return torch.as_tensor(self._task.predict(self.model, inputs).float().cpu())
        outputs = self.model(inputs).float()
        if self.description.target in {"class", "mask"}:
            outputs = outputs.softmax(dim=1)
        elif self.description.target == "labels":
            outputs = outputs.sigmoid()
        return torch.as_tensor(outputs.cpu())  # synchronises the device


def read_bundle(folder: Path) -> tuple[Description, Tensors]:
    """Return the content of `bundle.json` and the verified weights; raises `BundleError` like `load`."""
    if not (folder / BUNDLE).is_file():
        raise BundleError(f"{folder} is not a bundle: it has no {BUNDLE}; `distrain export RUN` writes one")
    description = _read_description(folder / BUNDLE)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"bundle {folder}: {WEIGHTS} cannot be read ({error}); export it again") from None
    if digest(tensors) != description.weights_digest:
        raise BundleError(f"bundle {folder}: {WEIGHTS} does not match the digest in {BUNDLE}; export it again")
    return description, tensors


def _read_description(file: Path) -> Description:
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        version = tree.get("format_version")
    except (OSError, ValueError, AttributeError) as error:
        raise BundleError(f"{file} cannot be read as a bundle's description: {error}") from None
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{file} has format_version {version!r}, but this distrain reads {FORMAT_VERSION}; export the run again"
        )
    try:
        return Description.model_validate(tree)
    except ValidationError as error:
        problem = describe(error, Description, tree, noun="the description")
        raise BundleError(f"{file} is not valid: {problem}") from None


def _build(description: Description, tensors: Tensors) -> nn.Module:
    config = description.model.model_copy(update={"weights": None})  # the trained weights are loaded below
    with torch.random.fork_rng(devices=[]):  # the caller's random state is not changed
        model = build_model(
            config, num_classes=len(description.classes), in_channels=description.preprocessing.input_shape[0]
        )
    try:
        model.load_state_dict(with_versions(unpack(tensors), model))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise BundleError(f"the weights do not fit {config.name} as built here: {reason}") from None
    return model.eval()


def _extra_of(model: nn.Module, tensors: Tensors) -> Tensors:
    """Return the packed extra state as loaded: packing the network's state again may not give the same bits."""
    names = split(model)[1]
    return {name: tensor for name, tensor in tensors.items() if is_part_of(name, names)}


def _checked(device: torch.device) -> torch.device:
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BundleError(f"device {device}: torch finds no GPU here; see `distrain doctor`, or use device cpu")
    return device
