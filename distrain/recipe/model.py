"""The sections of a recipe that say what is trained, and on what objective."""

from pydantic import Field

from distrain.recipe.section import Fraction, Section


class Model(Section):
    """The network."""

    name: str = Field(description="digits-cnn, cifar-cnn, any torchvision classifier, or package.module:factory")
    weights: str | None = Field(None, description="imagenet (torchvision's, downloaded once), or a .pth/.safetensors")


class Loss(Section):
    """What is minimised."""

    name: str = Field("cross_entropy", description="cross_entropy, or package.module:function(logits, targets)")
    label_smoothing: Fraction = Field(0.0, description="share of the target spread over all classes")
