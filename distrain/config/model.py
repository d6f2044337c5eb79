"""The sections of a recipe that define the model and the loss."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from distrain.config.section import Fraction, NonNegative, Positive, Section, Words, refuse_unused
from distrain.config.user_code import is_reference
from distrain.messages import joined, nearest, shown


class Model(Section):
    """The network, its initial weights, and which weights are frozen."""

    name: str = Field(
        description="digits-cnn, cifar-cnn, cifar-fast, lenet, cifar-plain, cifar-simple-v3, alexnet-5, unet (masks), "
        "any torchvision classifier, timm.NAME, or package.module:factory"
    )
    arguments: dict[str, Any] = Field({}, description="keyword arguments of its factory, such as {dropout: 0.1}")
    weights: str | None = Field(
        None,
        description="imagenet (torchvision's or timm's, downloaded once), imagenet-if-reachable (random weights where "
        "the download fails), a .pth/.pt/.bin/.safetensors file of any trainer, a run (its best checkpoint, or "
        "`RUN/last`), a checkpoint, or a bundle",
    )
    weights_entry: str | None = Field(
        None,
        description="which of several sets of weights in a file, such as model_ema; null: the trained weights",
    )
    partial: bool = Field(default=False, description="load what fits from a weights file, and report what does not")
    head: Literal["replace", "append"] = Field(
        "replace",
        description="replace the last linear layer by one with an output for each class, or append such a layer after "
        "the network's outputs, as appended.weight and appended.bias",
    )
    head_name: str | None = Field(
        None, description="the layer that is the head, such as classifier.6; null: the last linear one"
    )
    freeze: Words = Field(
        (),
        description="weights that are frozen, with their BatchNorm statistics: names of weights or layers, with "
        "* and ?; backbone: all but the head",
    )
    unfreeze_epochs: dict[str, NonNegative] = Field(
        {}, description="frozen weights, named as in freeze, and the epochs after which they are trained too"
    )
    freeze_epochs: dict[str, NonNegative] = Field(
        {}, description="weights, named as in freeze, and the epochs after which they are frozen"
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
            raise ValueError("model.unfreeze_epochs is for weights named in model.freeze, which is empty")
        return self


def _read_numbers(value: object) -> object:
    """Accept a single number as a list of one."""
    return [value] if isinstance(value, int | float) else value


def _read_class_weights(value: object) -> object:
    """Accept the class weights of a loss; anything else gives one sentence, where a union would give several."""
    if value is None or value == "balanced":
        return value
    if isinstance(value, list | tuple) and value and all(_is_weight(weight) for weight in value):
        if not any(value):
            raise ValueError(f"loss.class_weights={shown(value)}: give a number above 0 for one class at least")
        return value
    raise ValueError(f"loss.class_weights={shown(value)}: give balanced, or a list with a number >= 0 for each class")


def _is_weight(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


ClassWeights = Annotated[Literal["balanced"] | tuple[float, ...] | None, BeforeValidator(_read_class_weights)]


class Loss(Section):
    """The loss; a field that the loss does not have stays null."""

    name: str = Field(
        "cross_entropy",
        description="cross_entropy, bce, focal, l1, mse; or package.module:name, function (logits, targets) or module",
    )
    label_smoothing: Fraction | None = Field(
        None, description="cross_entropy: share of the target that is spread over all classes"
    )
    class_weights: ClassWeights = Field(
        None,
        description="cross_entropy: weight of each class, the mean being sum(w * loss) / samples, not / sum(w) as in "
        "torch; balanced: samples / (classes * samples of the class)",
    )
    pos_weight: Annotated[tuple[Positive, ...], BeforeValidator(_read_numbers)] | None = Field(
        None, description="bce: weight of the positive targets, one number or one for each label; 1 if null"
    )
    gamma: NonNegative | None = Field(
        None, description="focal: how much well classified samples are down-weighted; 2 if null"
    )
    alpha: Fraction | None = Field(
        None, description="focal, labels: weight of positives, 1 - alpha that of negatives; null: equal"
    )

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
