"""The sections of a recipe that say what the network sees: samples, and how an image becomes its input."""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from distrain.recipe.section import Positive, Section


class Data(Section):
    """Which samples are trained on, and how they are read."""

    source: str = Field(description="digits, cifar10, imagefolder, or package.module:name of your own dataset factory")
    path: str | None = Field(None, description="folder of the data; --data sets it")
    batch_size: int = Field(gt=0, description="samples in one optimizer step, over all processes")
    num_workers: int = Field(0, ge=0, description="loader processes for each training process; 0 reads in the process")
    drop_last: bool = Field(default=False, description="leave out an epoch's last, smaller batch")
    train_samples: int | None = Field(None, gt=0, description="train on so many samples, drawn by the seed; null: all")
    val_samples: int | None = Field(None, gt=0, description="evaluate so many samples, drawn by the seed; null: all")


class Transform(Section):
    """One transform of torchvision.transforms.v2, by its class name, or package.module:name, and its arguments."""

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


def _read_transform(value: object) -> object:
    """Take `Name`, or `Name: {argument: value}`, as YAML writes a transform, and one that was read before."""
    if isinstance(value, Transform):
        return value
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict) and len(value) == 1:
        (name, arguments), *_ = value.items()
        if isinstance(arguments, dict) or arguments is None:
            return {"name": name, "arguments": arguments or {}}
    raise ValueError("a transform is written `Name` or `Name: {argument: value}`")


TransformList = tuple[Annotated[Transform, BeforeValidator(_read_transform)], ...]


class Augment(Section):
    """How an image becomes the tensor that the model sees."""

    train: TransformList = Field((), description="transforms of a training image, drawn from (seed, epoch, sample)")
    eval: TransformList = Field((), description="transforms of a validation image; they draw nothing")
    mean: tuple[float, ...] | None = Field(None, description="a channel's mean in [0, 1], subtracted last")
    std: tuple[Positive, ...] | None = Field(None, description="a channel's standard deviation, divided by last")

    @model_validator(mode="after")
    def _mean_goes_with_std(self) -> Self:
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ValueError("augment.mean and augment.std go together, one number a channel in each")
        return self
