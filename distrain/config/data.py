"""The sections of a recipe that say what the network sees: samples, and how an image becomes its input."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from distrain.config.metrics import Target
from distrain.config.section import Positive, Section

Split = Literal["train", "val"]


class MoreData(Section):
    """Another source, whose samples are added to those of `data.source`."""

    source: str = Field(description="as data.source")
    path: str | None = Field(None, description="as data.path")


def _read_delimiter(value: object) -> object:
    return "\t" if value in ("tab", "\\t") else value


class Data(Section):
    """Which samples are trained on, and how they are read."""

    source: str = Field(
        description="digits, cifar10, imagefolder, labelfolders (CLASS_image/), manifest (CSV, TSV, JSON), tensors "
        "(.npz, .pt, .safetensors), packed (by `distrain data pack`; the other sources of files read one too), "
        "torchvision.NAME of a dataset, or package.module:name of your own dataset factory"
    )
    path: str | None = Field(None, description="folder or file of the data; --data sets it")
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="more arguments of a torchvision dataset or of your own dataset factory"
    )
    target: Target = Field(
        "class", description="what a sample has: one class, any number of labels, or values to be predicted"
    )
    path_column: str | None = Field(
        None, description="of a manifest: the column of the images' paths; null: path, filename, file or image"
    )
    label_column: str | None = Field(
        None, description="of a manifest: the column of the labels; null: label, class, category, target or tags"
    )
    delimiter: Annotated[str, Field(min_length=1, max_length=1), BeforeValidator(_read_delimiter)] | None = Field(
        None, description="of a manifest in CSV: what separates its columns, such as ; or tab; null: as its first line"
    )
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="validate on this share of each class of the training samples, not on the source's own"
    )
    more: tuple[MoreData, ...] = Field((), description="sources whose samples are added, their classes by name")
    batch_size: int = Field(gt=0, lt=2**31, description="samples in one optimizer step, over all processes")
    num_workers: int = Field(
        0,
        ge=0,
        description="loader processes or threads (data.loader) for each training process; 0 reads in the process",
    )
    loader: Literal["auto", "threads", "processes"] = Field(
        "auto",
        description="what num_workers are; auto: processes, and none for cached images that are augmented in whole "
        "batches; threads are slower, and spare the memory of processes, where all transforms can run in them",
    )
    cache: Literal["auto", "always", "never"] = Field(
        "auto",
        description="cache decoded images in the memory of each training process, or of its GPU where they fit into a "
        "fifth of what is free; auto: images of one size, up to 1 GiB a split, that are read more than once",
    )
    decode_size: int | None = Field(
        None,
        gt=0,
        description="decode a JPEG at 1/2, 1/4 or 1/8 of its size, to the means of 2x2, 4x4 or 8x8 pixels, where its "
        "shorter side keeps so many: quicker for photographs of a camera; null: whole",
    )
    drop_last: bool = Field(default=False, description="leave out an epoch's last, smaller batch")
    train_samples: int | None = Field(None, gt=0, description="train on so many samples, drawn by the seed; null: all")
    val_samples: int | None = Field(
        None, gt=0, description="evaluate so many samples, drawn by the seed, or a stream's first; null: all"
    )
    samples_per_epoch: int | None = Field(None, gt=0, description="of a stream: samples of an epoch; null: its len()")
    sampling: Literal["uniform", "balanced"] = Field(
        "uniform", description="balanced: each class equally often, those with few samples again and again"
    )
    repeats: int = Field(
        1, gt=0, description="times a sample stands in a row, each time augmented differently; fewer are seen an epoch"
    )

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that are read from the sources: training samples alone where these give the validation part."""
        return ("train", "val") if self.val_fraction is None else ("train",)

    @property
    def parts(self) -> "tuple[Data, ...]":
        """The same for each source alone: that of `source`, then those of `more`."""
        own = self.model_copy(update={"more": ()})
        return own, *(own.model_copy(update={**part.model_dump(), "arguments": {}}) for part in self.more)

    @model_validator(mode="after")
    def _arguments_have_a_taker(self) -> Self:
        if self.arguments and not (self.source.startswith("torchvision.") or ":" in self.source):
            raise ValueError(
                f"data.arguments go to torchvision.NAME or to package.module:name, and data.source is {self.source}; "
                f"leave them out"
            )
        return self

    @model_validator(mode="after")
    def _columns_are_of_a_manifest(self) -> Self:
        if "manifest" not in (self.source, *(part.source for part in self.more)):
            for key in ("path_column", "label_column", "delimiter"):
                if (value := getattr(self, key)) is not None:
                    raise ValueError(f"data.{key}={value} is for data.source=manifest, not {self.source}; leave it out")
        return self


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


Epoch = Annotated[int, Field(ge=0)]
Pixels = Annotated[int, Field(gt=0)]
Sizes = tuple[tuple[Epoch, Pixels], ...]
TransformList = tuple[Annotated[Transform, BeforeValidator(_read_transform)], ...]


class Augment(Section):
    """How an image becomes the tensor that the model sees."""

    train: TransformList = Field((), description="transforms of a training image, drawn from (seed, epoch, sample)")
    eval: TransformList = Field((), description="transforms of a validation image; they draw nothing")
    mean: tuple[float, ...] | None = Field(None, description="a channel's mean in [0, 1], subtracted last")
    std: tuple[Positive, ...] | None = Field(None, description="a channel's standard deviation, divided by last")
    sizes: Sizes | None = Field(
        None, description="training images from an epoch on, as squares: [[0, 128], [10, 160]]; null: as they come"
    )
    mixup: Positive | None = Field(
        None, description="alpha of MixUp; a sample's partner comes from its own micro-batch; null: not mixed"
    )
    cutmix: Positive | None = Field(
        None, description="alpha of CutMix, partners as in mixup; with both, each is drawn half of the time; null: not"
    )
    mix_prob: float = Field(1.0, gt=0, le=1, description="share of the micro-batches that mixup and cutmix mix")

    @model_validator(mode="after")
    def _mean_goes_with_std(self) -> Self:
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ValueError("augment.mean and augment.std go together, one number a channel in each")
        return self

    @model_validator(mode="after")
    def _sizes_rise_from_the_first_epoch(self) -> Self:
        if self.sizes is not None:
            epochs = [epoch for epoch, _ in self.sizes]
            if epochs[:1] != [0] or epochs != sorted(set(epochs)):
                raise ValueError(f"augment.sizes is given from epochs {epochs}; they must rise, from 0 on")
        return self

    @model_validator(mode="after")
    def _mix_prob_has_something_to_mix(self) -> Self:
        if self.mix_prob != 1 and not self.is_mixed:
            raise ValueError(f"augment.mix_prob={self.mix_prob:g} is for augment.mixup and augment.cutmix; set one")
        return self

    @property
    def is_mixed(self) -> bool:
        """Whether samples are mixed, so that their targets are shares of all classes."""
        return self.mixup is not None or self.cutmix is not None
