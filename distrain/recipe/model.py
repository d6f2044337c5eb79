"""The sections of a recipe that say what is trained, and on what objective."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from distrain.recipe.section import Fraction, NonNegative, Section


class Model(Section):
    """The network, the weights that it begins with, and which of them stay as they are."""

    name: str = Field(
        description="digits-cnn, cifar-cnn, lenet, cifar-plain, cifar-simple-v3, alexnet-5, any torchvision "
        "classifier, timm.NAME, or package.module:factory"
    )
    arguments: dict[str, Any] = Field({}, description="keyword arguments of its factory, {dropout: 0.1} say")
    weights: str | None = Field(
        None, description="imagenet (torchvision's or timm's, downloaded once), or a .pth/.pt/.safetensors file"
    )
    partial: bool = Field(default=False, description="take of a weights file what fits, and say what does not")
    head: Literal["replace", "append"] = Field(
        "replace",
        description="replace the last linear layer by one with an output a class, or append one behind the network's "
        "own outputs, as appended.weight and appended.bias",
    )
    head_name: str | None = Field(
        None, description="the layer that is the head, classifier.6 say; null: the last linear one"
    )
    freeze: tuple[str, ...] = Field(
        (),
        description="weights that stay as they are, with their BatchNorm statistics: names of weights or layers, with "
        "* and ?; backbone: all but the head",
    )
    unfreeze_epochs: dict[str, NonNegative] = Field(
        {}, description="frozen weights, named as in freeze, and the epochs trained before they join in"
    )

    @model_validator(mode="after")
    def _fields_go_together(self) -> Self:
        if "num_classes" in self.arguments and self.head == "replace":
            raise ValueError("model.arguments.num_classes is known from the data; leave it out")
        if self.partial and self.weights in {None, "imagenet"}:
            raise ValueError(f"model.partial is for a weights file, and model.weights is {self.weights or 'null'}")
        if self.unfreeze_epochs and not self.freeze:
            raise ValueError("model.unfreeze_epochs is for what model.freeze names, and that names nothing")
        return self


class Loss(Section):
    """What is minimised."""

    name: str = Field("cross_entropy", description="cross_entropy, or package.module:function(logits, targets)")
    label_smoothing: Fraction = Field(0.0, description="share of the target spread over all classes")
