"""Reads and writes `bundle.json`: the description of a trained network and its preprocessing."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, field_serializer, model_serializer

from distrain.config import Augment, Model, Task, TransformList
from distrain.config.metrics import Evaluation, Target
from distrain.config.section import Section

FORMAT_VERSION: Literal[1] = 1


class Preprocessing(Section):
    """The conversion of an image to the network's input.

    The image is decoded to uint8 [image_channels, height, width] (3: RGB, 1: grey), transformed by the `transforms` of
    torchvision.transforms.v2, resized to the height and width of `input_shape` if they differ, and normalised: `image`
    in `normalization` is the resulting tensor of `input_dtype`. With a `decode_size`, a JPEG is decoded at 1/2, 1/4 or
    1/8 of its size if its shorter side keeps at least that many pixels.
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
    """The content of `bundle.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = FORMAT_VERSION
    recipe: str  # its name
    step: int
    metrics: Evaluation | None  # of the evaluation at that step
    weights: Literal["trained", "moving average"]
    weights_digest: str  # xxh3-128 over all weights and buffers, as in status.json
    model: Model
    classes: tuple[str, ...]  # the names of the outputs: classes, labels or values
    target: Target = (
        "class"  # of the outputs: logits of one class, of any number of labels or of each pixel, or plain values
    )
    task: Task = Task()  # the user's own one, whose `predict` is called
    preprocessing: Preprocessing
    torch: str  # the version that wrote the bundle

    @model_serializer(mode="wrap")
    def _write_own_task(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        if not self.task.is_own:
            del written["task"]
        return written


def normalization_formula(dtype: str, *, has_mean: bool) -> str:
    """Return the formula that converts the tensor to the network's float32 input."""
    scaled = "image / 255" if dtype == "uint8" else "image"
    return f"({scaled} - mean) / std" if has_mean else scaled
