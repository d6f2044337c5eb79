"""Reads and writes `bundle.json`: what a trained network is, and how a picture becomes its input."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_serializer

from distrain.config import Augment, Model, TransformList
from distrain.config.metrics import Evaluation, Target
from distrain.config.section import Section

FORMAT_VERSION: Literal[1] = 1


class Preprocessing(Section):
    """How a picture becomes the network's input.

    It is decoded to uint8 [image_channels, height, width] (3: RGB, 1: grey), goes through the `transforms` of
    torchvision.transforms.v2, is resized to the height and width of `input_shape` where they leave it in another size,
    and is normalised: `image` in `normalization` is the tensor of `input_dtype` that came out. With a `decode_size` a
    JPEG is decoded at 1/2, 1/4 or 1/8 of its size where its shorter side keeps so many pixels.
    """

    image_channels: Literal[1, 3]
    decode_size: int | None = None
    transforms: TransformList
    input_dtype: Literal["uint8", "float32"]
    input_shape: tuple[int, int, int]  # channels, height, width
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    normalization: str  # for people and other programs: follows from the fields above

    @property
    def augment(self) -> Augment:
        """The part of a recipe that transforms and normalisation are built from."""
        return Augment(eval=self.transforms, mean=self.mean, std=self.std)

    @field_serializer("transforms")
    def _write_transforms(self, transforms: TransformList) -> list[dict[str, Any]]:
        return [{transform.name: transform.arguments} for transform in transforms]


class Description(BaseModel):
    """What `bundle.json` holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = FORMAT_VERSION
    recipe: str  # its name
    step: int
    metrics: Evaluation | None  # of the evaluation at that step
    weights: Literal["trained", "moving average"]
    weights_digest: str  # xxh3-128 over all weights and buffers, as status.json has it
    model: Model
    classes: tuple[str, ...]  # or the names of the values, by output
    target: Target = "class"  # of the outputs: logits of one class, logits of any number of labels, or plain values
    preprocessing: Preprocessing
    torch: str  # the version that wrote it


def normalization_formula(dtype: str, *, has_mean: bool) -> str:
    """Return in one line how the tensor becomes the network's float32 input."""
    scaled = "image / 255" if dtype == "uint8" else "image"
    return f"({scaled} - mean) / std" if has_mean else scaled
