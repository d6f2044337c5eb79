"""The sections of a recipe that say what the network sees: the samples, and how an image becomes its input."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from distrain.config.metrics import Target
from distrain.config.parts import TransformList
from distrain.config.section import Positive, Section
from distrain.config.user_code import is_reference
from distrain.messages import nearest, shown

Split = Literal["train", "val"]
SAMPLINGS = ("uniform", "balanced")  # or the user's own function of the targets


class MoreData(Section):
    """Another source, whose samples are added to those of `data.source`."""

    source: str = Field(description="as data.source")
    path: str | None = Field(None, description="as data.path")


def _read_delimiter(value: object) -> object:
    return "\t" if value in ("tab", "\\t") else value


class Data(Section):
    """Which samples the run trains on, and how they are read."""

    source: str = Field(
        description="digits, cifar10, imagefolder, labelfolders (CLASS_image/), manifest (CSV, TSV, JSON), tensors "
        "(.npz, .pt, .safetensors), maskfolder (images/ and masks/), packed (by `distrain data pack`; the sources that "
        "read files accept one too), "
        "torchvision.NAME of a dataset, or package.module:name of your own dataset factory"
    )
    path: str | None = Field(None, description="folder or file of the data; --data sets it")
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="further arguments of a torchvision dataset or of your own dataset factory"
    )
    target: Target = Field(
        "class",
        description="what each sample has: one class, any number of labels, values to predict, or a mask with a class "
        "for each pixel",
    )
    path_column: str | None = Field(
        None, description="manifest: the column with the paths of the images; null: path, filename, file or image"
    )
    label_column: str | None = Field(
        None, description="manifest: the column with the labels; null: label, class, category, target or tags"
    )
    delimiter: Annotated[str, Field(min_length=1, max_length=1), BeforeValidator(_read_delimiter)] | None = Field(
        None, description="manifest in CSV: what separates its columns, such as ; or tab; null: as in its first line"
    )
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="validate on this fraction of each class of the training samples, instead of the source's own"
    )
    more: tuple[MoreData, ...] = Field((), description="sources whose samples are added; classes are matched by name")
    batch_size: int = Field(gt=0, lt=2**31, description="samples in one optimizer step, over all processes")
    num_workers: int = Field(
        0,
        ge=0,
        description="loader processes or threads (data.loader) of each training process; 0: read in that process",
    )
    loader: Literal["auto", "threads", "processes"] = Field(
        "auto",
        description="what num_workers counts; auto: processes, or none for images that are cached and augmented in "
        "whole batches; threads are slower but need less memory, and not all transforms can run in them",
    )
    cache: Literal["auto", "always", "never"] = Field(
        "auto",
        description="cache decoded images in the memory of each training process, or of its GPU if they fit in a fifth "
        "of its free memory; auto: images of one size that are read more than once, up to 1 GiB for each split",
    )
    decode_size: int | None = Field(
        None,
        gt=0,
        description="decode a JPEG at 1/2, 1/4 or 1/8 of its size, to the means of 2x2, 4x4 or 8x8 pixels, where its "
        "shorter side keeps at least this many: faster for large photographs; null: full size",
    )
    drop_last: bool = Field(default=False, description="drop an epoch's last, smaller batch")
    train_samples: int | None = Field(
        None, gt=0, description="train on this many samples, drawn by the seed; null: all"
    )
    val_samples: int | None = Field(
        None, gt=0, description="evaluate this many samples, drawn by the seed, or a stream's first; null: all"
    )
    samples_per_epoch: int | None = Field(None, gt=0, description="stream: samples in an epoch; null: its len()")
    sampling: str = Field(
        "uniform",
        description="balanced: draw each class equally often, repeating the samples of small classes; "
        "package.module:function of the targets: draw each sample in proportion to the weight that it gives",
    )
    sampling_arguments: dict[str, Any] = Field(
        default_factory=dict, description="further arguments of the function of sampling, such as {power: 0.5}"
    )
    repeats: int = Field(
        1,
        gt=0,
        description="how many times in a row a sample is used, augmented differently each time; an epoch has fewer "
        "distinct samples",
    )

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that are read from the sources: only the training split where `val_fraction` divides it."""
        return ("train", "val") if self.val_fraction is None else ("train",)

    @property
    def parts(self) -> "tuple[Data, ...]":
        """One section for each source: that of `source`, then those of `more`."""
        first = self.model_copy(update={"more": ()})
        return first, *(first.model_copy(update={**part.model_dump(), "arguments": {}}) for part in self.more)

    @model_validator(mode="after")
    def _arguments_are_for_a_factory(self) -> Self:
        if self.arguments and not (self.source.startswith("torchvision.") or ":" in self.source):
            raise ValueError(
                f"data.arguments are for torchvision.NAME or package.module:name, and data.source is {self.source}; "
                f"remove them"
            )
        return self

    @model_validator(mode="after")
    def _sampling_is_known(self) -> Self:
        if not is_reference(self.sampling):
            if self.sampling not in SAMPLINGS:
                hint = (
                    nearest(self.sampling, SAMPLINGS, count=1) or "; use uniform, balanced, or package.module:function"
                )
                raise ValueError(f"data.sampling={shown(self.sampling)}: unknown sampling{hint}")
            if self.sampling_arguments:
                raise ValueError(
                    f"data.sampling_arguments are for data.sampling=package.module:function, and data.sampling is "
                    f"{self.sampling}; remove them"
                )
        return self

    @model_validator(mode="after")
    def _columns_are_of_a_manifest(self) -> Self:
        if "manifest" not in (self.source, *(part.source for part in self.more)):
            for key in ("path_column", "label_column", "delimiter"):
                if (value := getattr(self, key)) is not None:
                    raise ValueError(f"data.{key}={value} is for data.source=manifest, not {self.source}; remove it")
        return self


Epoch = Annotated[int, Field(ge=0)]
Pixels = Annotated[int, Field(gt=0)]
Sizes = tuple[tuple[Epoch, Pixels], ...]


class Augment(Section):
    """How an image becomes the tensor that the model sees."""

    train: TransformList = Field((), description="transforms of a training image, drawn from (seed, epoch, sample)")
    eval: TransformList = Field((), description="transforms of a validation image, without random draws")
    batch: TransformList = Field(
        (),
        description="package.module:name: transforms of a training micro-batch on its device, (images, targets) -> "
        "(images, targets), after mean and std, drawn from (seed, step, micro-batch)",
    )
    mean: tuple[float, ...] | None = Field(None, description="mean of each channel in [0, 1], subtracted last")
    std: tuple[Positive, ...] | None = Field(None, description="standard deviation of each channel, divided by last")
    sizes: Sizes | None = Field(
        None, description="side of the training images from an epoch on: [[0, 128], [10, 160]]; null: unchanged"
    )
    mixup: Positive | None = Field(
        None, description="alpha of MixUp; a sample is mixed with one of its own micro-batch; null: no MixUp"
    )
    cutmix: Positive | None = Field(
        None, description="alpha of CutMix; with mixup too, each is used half of the time; null: no CutMix"
    )
    mix_prob: float = Field(1.0, gt=0, le=1, description="share of the micro-batches to which mixup or cutmix applies")

    @model_validator(mode="after")
    def _mean_goes_with_std(self) -> Self:
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ValueError("augment.mean and augment.std go together, with one number for each channel")
        return self

    @model_validator(mode="after")
    def _batch_transforms_are_own(self) -> Self:
        for transform in self.batch:
            if not is_reference(transform.name):
                raise ValueError(
                    f"augment.batch: {shown(transform.name)} names no code; use package.module:name, or augment.mixup, "
                    f"cutmix and sizes"
                )
        return self

    @model_validator(mode="after")
    def _sizes_rise_from_the_first_epoch(self) -> Self:
        if self.sizes is not None:
            epochs = [epoch for epoch, _ in self.sizes]
            if epochs[:1] != [0] or epochs != sorted(set(epochs)):
                raise ValueError(f"augment.sizes has epochs {epochs}; they must start at 0 and increase")
        return self

    @model_validator(mode="after")
    def _mix_prob_goes_with_mixing(self) -> Self:
        if self.mix_prob != 1 and not self.is_mixed:
            raise ValueError(f"augment.mix_prob={self.mix_prob:g} needs augment.mixup or augment.cutmix; set one")
        return self

    @property
    def is_mixed(self) -> bool:
        """Whether samples are mixed, so that their targets are probabilities of all classes."""
        return self.mixup is not None or self.cutmix is not None
