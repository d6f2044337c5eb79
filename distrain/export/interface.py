"""Describes the inputs and outputs of a graph in full, for programs that know nothing of distrain."""

from typing import Any

from distrain.data.transforms.pipeline import describe_transform
from distrain.export.graph import INPUT, OUTPUT
from distrain.export.metadata import Description

_DECODING = (
    "decode to 8-bit RGB: the first frame or page; rotate by its EXIF orientation; blend transparent pixels with "
    "white; keep the upper 8 of 16 bits"
)
_GREY = "convert to grey: 0.299 R + 0.587 G + 0.114 B, rounded, as Pillow's convert('L')"
_RESIZE_RULE = (
    "Resize with one number: the shorter side gets that many pixels, the longer side int(size * longer / shorter)"
)
# By target: the meaning of the outputs, and the activation that gives the numbers of `distrain predict`.
_OUTPUTS = {
    "class": ("logits, one per class", "softmax over the classes (axis 1) gives their probabilities"),
    "labels": ("logits, one per label", "sigmoid gives the probability of each label, independent of the others"),
    "values": ("the values themselves", "none"),
    "mask": ("logits, one per class for each pixel", "softmax over the classes (axis 1) gives their probabilities"),
}


def describe_inputs(description: Description, *, with_normalize: bool) -> list[dict[str, Any]]:
    """Return the graph's inputs: name, shape, dtype, and the meaning of the values."""
    preprocessing = description.preprocessing
    dtype = preprocessing.input_dtype if with_normalize else "float32"
    given = "0 to 255" if dtype == "uint8" else "0 to 1"
    values = f"{given}, not normalised: the graph normalises them" if with_normalize else preprocessing.normalization
    colours = "RGB" if preprocessing.input_shape[0] == 3 else "grey"
    return [
        {
            "name": INPUT,
            "dtype": dtype,
            "shape": ["batch", *preprocessing.input_shape],
            "layout": f"batch, channel ({colours}), row, column",
            "values": values,
        }
    ]


def describe_outputs(description: Description) -> list[dict[str, Any]]:
    """Return the graph's outputs: name, shape, dtype, the meaning of the values, and the activation to apply."""
    values, activation = _OUTPUTS[description.target]
    pixels = description.preprocessing.input_shape[1:] if description.target == "mask" else ()
    return [
        {
            "name": OUTPUT,
            "dtype": "float32",
            "shape": ["batch", len(description.classes), *pixels],
            "values": values,
            "activation": activation,
            "order": "as `classes`",
        }
    ]


def describe_steps(description: Description, *, with_normalize: bool) -> list[str]:
    """Return the steps that convert an image to the graph's input, in order."""
    preprocessing = description.preprocessing
    _, height, width = preprocessing.input_shape
    steps = [_DECODING]
    if preprocessing.decode_size is not None:
        steps.append(
            f"a JPEG is decoded at 1/2, 1/4 or 1/8 of its size, to the means of its pixels, if its shorter side "
            f"keeps at least {preprocessing.decode_size} pixels"
        )
    if preprocessing.image_channels == 1:
        steps.append(_GREY)
    transforms = [describe_transform(transform, key="transforms") for transform in preprocessing.transforms]
    steps += [f"torchvision.transforms.v2.{text}" if is_known else text for text, is_known in transforms]
    if any(text.startswith("Resize(size=[") and "," not in text.partition("]")[0] for text, _ in transforms):
        steps.append(_RESIZE_RULE)
    steps.append(f"an image of another size is resized to {height} x {width}, bilinear with antialias")
    if preprocessing.input_dtype == "float32":
        steps.append("uint8 becomes float32 by image / 255")
    if not with_normalize:
        steps.append(f"normalise each channel: {preprocessing.normalization}")
    return steps
