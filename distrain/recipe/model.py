"""The sections of a recipe that say what is trained, and on what objective."""

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from distrain.recipe.section import Fraction, Section


class Model(Section):
    """The network."""

    name: str = Field(description="digits-cnn, cifar-cnn, any torchvision classifier, or package.module:factory")
    weights: str | None = Field(None, description="imagenet (torchvision's, downloaded once), or a .pth/.safetensors")


def _read_class_weights(value: object) -> object:
    """Take what a loss can weight its classes with; one sentence for anything else, which a union would give many."""
    if value is None or value == "balanced":
        return value
    if isinstance(value, list | tuple) and value and all(_is_weight(weight) for weight in value):
        return value
    raise ValueError(f"loss.class_weights={value!r}: give balanced, or a list of numbers from 0 on, one a class")


def _is_weight(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


ClassWeights = Annotated[Literal["balanced"] | tuple[float, ...] | None, BeforeValidator(_read_class_weights)]


class Loss(Section):
    """What is minimised."""

    name: str = Field("cross_entropy", description="cross_entropy, or package.module:function(logits, targets)")
    label_smoothing: Fraction = Field(0.0, description="share of the target spread over all classes")
    class_weights: ClassWeights = Field(
        None, description="factor of a sample's loss by its class; balanced: samples / (classes * samples of the class)"
    )
