"""Creates a bundle from a run's checkpoint, and opens the validation images of the run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from distrain.checkpoint.load import describe_tensors, read_model
from distrain.checkpoint.tensors import AVERAGE, digest
from distrain.config import Recipe, Task, read_recipe
from distrain.data.sources.base import Source
from distrain.data.sources.registry import choose_samples, open_sources
from distrain.data.transforms.pipeline import build_transforms
from distrain.errors import BundleError, CheckpointError, DataError, RecipeError
from distrain.export.bundle import Bundle
from distrain.export.metadata import Description, Preprocessing, normalization_formula
from distrain.export.read_images import ImageInput, load_image
from distrain.messages import counted
from distrain.runs import checkpoints
from distrain.runs.directory import RunDirectory

PHOTOGRAPHS = (
    (300, 260),
    (200, 340),
)  # heights and widths of two images that only transforms with a fixed size make equal


def open_checkpoint(
    run: RunDirectory, path: Path, *, device: str | torch.device = "cpu", examples: Sequence[ImageInput] = ()
) -> Bundle:
    """Return a run's checkpoint as a bundle in memory, with the moving average of the weights where it has one.

    Size and channels of the input are those of the first validation sample of the run, which the checkpoint holds.
    Checkpoints of earlier versions do not: there they come from the run's data, or where that is not available from the
    first of the `examples`, or from the transforms if these have a fixed size. Raises `CheckpointError` for a damaged
    checkpoint, and `BundleError` where the size of the input is unknown.
    """
    if fault := checkpoints.find_corruption(path):
        raise CheckpointError(f"checkpoint {path} is not used: {fault}")
    recipe = read_recipe(run.recipe)
    state = checkpoints.read(path).state
    tensors = read_model(path)
    evaluation = state["evaluation"]
    description = Description(
        recipe=recipe.name,
        step=state["step"],
        metrics=None if evaluation is None else {n: v for n, v in evaluation.items() if n != "step"},
        weights="moving average" if any(n.startswith(AVERAGE) for n in describe_tensors(path)) else "trained",
        weights_digest=digest(tensors),
        model=recipe.model,
        classes=tuple(state["classes"]),
        target=recipe.task.predicts(recipe.data.target),
        task=recipe.task if recipe.task.is_own else Task(),
        preprocessing=_describe_preprocessing(recipe, state.get("input") or _find_input(recipe, examples)),
        torch=str(torch.__version__),
    )
    return Bundle(description, tensors, device=torch.device(device))


def validation_images(run: RunDirectory, number: int) -> list[ImageInput]:
    """Return up to `number` validation images of a run, evenly spaced over the split.

    Raises a `UserError` where its data is not available.
    """
    recipe = read_recipe(run.recipe)
    source = _open_validation(recipe)
    number = min(number, len(source))
    return [source.read(place * len(source) // number)[0] for place in range(number)]


def _open_validation(recipe: Recipe) -> Source:
    return choose_samples(open_sources(recipe.data), recipe.data, seed=recipe.train.seed)["val"]


def _describe_preprocessing(recipe: Recipe, found: Mapping[str, Any]) -> Preprocessing:
    if found["image_channels"] not in {1, 3}:
        raise BundleError(
            f"the images have {counted(found['image_channels'], 'channel')}; a bundle needs 3 (RGB) or 1 (grey)"
        )
    dtype: Literal["uint8", "float32"] = "uint8" if found["dtype"] == "torch.uint8" else "float32"
    num_channels, height, width = found["shape"]
    return Preprocessing(
        image_channels=found["image_channels"],
        decode_size=recipe.data.decode_size,
        transforms=recipe.augment.eval,
        input_dtype=dtype,
        input_shape=(num_channels, height, width),
        mean=recipe.augment.mean,
        std=recipe.augment.std,
        normalization=normalization_formula(dtype, has_mean=recipe.augment.mean is not None),
    )


def _find_input(recipe: Recipe, examples: Sequence[ImageInput]) -> dict[str, Any]:
    """Return what a checkpoint holds as `input`, for one that does not."""
    transforms = build_transforms(recipe.augment.eval, key="augment.eval")
    try:
        images = [_open_validation(recipe).read(0)[0]]
    except (DataError, RecipeError) as error:
        if examples:
            images = [load_image(examples[0], num_channels=3, decode_size=recipe.data.decode_size)]
        elif transforms is not None:
            images = [torch.zeros(3, *size, dtype=torch.uint8) for size in PHOTOGRAPHS]
        else:
            raise BundleError(
                f"the data, which gives the size of the network's input, is not available: {error}"
            ) from None
    inputs = [image if transforms is None else transforms(image) for image in images]
    if inputs[0].shape != inputs[-1].shape:
        raise BundleError(
            "the run's data is not available, and augment.eval has no fixed size; pass images with --images"
        )
    return {"image_channels": len(images[0]), "dtype": str(inputs[0].dtype), "shape": list(inputs[0].shape)}
