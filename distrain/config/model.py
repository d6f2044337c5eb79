"""The sections of a recipe that say what is trained, and on what objective."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from distrain.config.section import Fraction, NonNegative, Positive, Section, Words, refuse_unused
from distrain.config.user_code import is_reference
from distrain.messages import joined, nearest, shown


class Model(Section):
    """The network, the weights that it begins with, and which of them stay as they are."""

    name: str = Field(
        description="digits-cnn, cifar-cnn, cifar-fast, lenet, cifar-plain, cifar-simple-v3, alexnet-5, any "
        "torchvision classifier, timm.NAME, or package.module:factory"
    )
    arguments: dict[str, Any] = Field({}, description="keyword arguments of its factory, {dropout: 0.1} say")
    weights: str | None = Field(
        None,
        description="imagenet (torchvision's or timm's, downloaded once), imagenet-if-reachable (without a network it "
        "starts from random ones), a .pth/.pt/.bin/.safetensors file of any trainer's, a run (its best checkpoint, or "
        "`RUN last`), a checkpoint, or a bundle",
    )
    weights_entry: str | None = Field(
        None,
        description="which of several sets of weights in a file, model_ema for example; null: those that were trained",
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
    freeze: Words = Field(
        (),
        description="weights that stay as they are, with their BatchNorm statistics: names of weights or layers, with "
        "* and ?; backbone: all but the head",
    )
    unfreeze_epochs: dict[str, NonNegative] = Field(
        {}, description="frozen weights, named as in freeze, and the epochs trained before they join in"
    )
    freeze_epochs: dict[str, NonNegative] = Field(
        {}, description="weights, named as in freeze, and the epochs that they are trained before they stay as they are"
    )

    @model_validator(mode="after")
    def _fields_go_together(self) -> Self:
        if "num_classes" in self.arguments and self.head == "replace":
            raise ValueError("model.arguments.num_classes is known from the data; remove it")
        if self.partial and self.weights in {None, "imagenet", "imagenet-if-reachable"}:
            raise ValueError(f"model.partial is for a weights file, and model.weights is {self.weights or 'null'}")
        if self.weights_entry is not None and self.weights in {None, "imagenet", "imagenet-if-reachable"}:
            raise ValueError(
                f"model.weights_entry is for a weights file, and model.weights is {self.weights or 'null'}"
            )
        if self.unfreeze_epochs and not self.freeze:
            raise ValueError("model.unfreeze_epochs is for what model.freeze names, and that names nothing")
        return self


def _read_numbers(value: object) -> object:
    """Take one number as a list of one."""
    return [value] if isinstance(value, int | float) else value


def _read_class_weights(value: object) -> object:
    """Take what a loss can weight its classes with; one sentence for anything else, which a union would give many."""
    if value is None or value == "balanced":
        return value
    if isinstance(value, list | tuple) and value and all(_is_weight(weight) for weight in value):
        return value
    raise ValueError(f"loss.class_weights={shown(value)}: give balanced, or a list of numbers from 0 on, one a class")


def _is_weight(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


ClassWeights = Annotated[Literal["balanced"] | tuple[float, ...] | None, BeforeValidator(_read_class_weights)]


class Loss(Section):
    """What is minimised; a field that the loss does not have stays null."""

    name: str = Field(
        "cross_entropy",
        description="cross_entropy, bce, focal, l1, mse; or package.module:name, function (logits, targets) or module",
    )
    label_smoothing: Fraction | None = Field(None, description="cross_entropy: share of the target spread over all")
    class_weights: ClassWeights = Field(
        None, description="cross_entropy: factor of a sample by its class; balanced: samples / (classes * the class's)"
    )
    pos_weight: Annotated[tuple[Positive, ...], BeforeValidator(_read_numbers)] | None = Field(
        None, description="bce: weight of a yes over a no, one number or one for each label; 1 if null"
    )
    gamma: NonNegative | None = Field(None, description="focal: how little a well classified sample counts; 2 if null")
    alpha: Fraction | None = Field(None, description="focal, labels: share of a yes, a no has the rest; null: equal")

    @model_validator(mode="after")
    def _fields_belong_to_the_loss(self) -> Self:
        known = {
            "cross_entropy": "label_smoothing class_weights",
            "bce": "pos_weight",
            "focal": "gamma alpha",
            "l1": "",
            "mse": "",
        }
        if not is_reference(self.name) and self.name not in known:
            hint = nearest(self.name, known, count=1) or f"; use {joined(list(known))}, or package.module:function"
            raise ValueError(f"loss.name={shown(self.name)}: unknown loss{hint}")
        refuse_unused(self, {"name", *known.get(self.name, "").split()}, "loss")
        return self
