"""The sections of a recipe that say what is trained, and on what objective."""

import difflib
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from distrain.recipe.section import Fraction, NonNegative, Positive, Section, refuse_unused
from distrain.references import is_reference


class Model(Section):
    """The network."""

    name: str = Field(description="digits-cnn, cifar-cnn, any torchvision classifier, or package.module:factory")
    weights: str | None = Field(None, description="imagenet (torchvision's, downloaded once), or a .pth/.safetensors")


def _read_numbers(value: object) -> object:
    """Take one number as a list of one."""
    return [value] if isinstance(value, int | float) else value


class Loss(Section):
    """What is minimised; a field that the loss does not have stays null."""

    name: str = Field(
        "cross_entropy", description="cross_entropy, bce, focal, l1, mse, or package.module:function(logits, targets)"
    )
    label_smoothing: Fraction | None = Field(None, description="cross_entropy: share of the target spread over all")
    pos_weight: Annotated[tuple[Positive, ...], BeforeValidator(_read_numbers)] | None = Field(
        None, description="bce: weight of a yes over a no, one number or one for each label; 1 if null"
    )
    gamma: NonNegative | None = Field(None, description="focal: how little a well classified sample counts; 2 if null")
    alpha: Fraction | None = Field(None, description="focal, labels: share of a yes, a no has the rest; null: equal")

    @model_validator(mode="after")
    def _fields_belong_to_the_loss(self) -> Self:
        known = {"cross_entropy": "label_smoothing", "bce": "pos_weight", "focal": "gamma alpha", "l1": "", "mse": ""}
        if not is_reference(self.name) and self.name not in known:
            near = difflib.get_close_matches(self.name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"take {', '.join(known)}, or package.module:function"
            raise ValueError(f"there is no loss {self.name!r}; {hint}")
        refuse_unused(self, {"name", *known.get(self.name, "").split()}, "loss")
        return self
