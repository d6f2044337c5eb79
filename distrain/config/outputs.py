"""The sections of a recipe that say what a run writes: checkpoints, metrics, evaluations."""

from typing import Literal, Self

from pydantic import Field, model_validator

from distrain.config.metrics import ALWAYS_MEASURED, METRICS
from distrain.config.parts import TORCHMETRICS, LoggerList, MetricList, MetricPart
from distrain.config.section import Positive, Section
from distrain.messages import joined, nearest, shown


class Checkpoint(Section):
    """When checkpoints are written; one always is at the end."""

    every_epochs: int | None = Field(1, gt=0, description="epochs between two checkpoints; null: not by epochs")
    every_steps: int | None = Field(None, gt=0, description="steps between two checkpoints; null: not by steps")
    every_minutes: Positive | None = Field(None, description="minutes between two checkpoints; null: not by the clock")
    asynchronous: bool = Field(default=True, description="write in the background; false: training waits")
    keep_last: int = Field(2, gt=0, description="how many of the newest checkpoints are kept")
    keep_best: bool = Field(default=True, description="write and keep a checkpoint at the best evaluation so far")
    keep_every_steps: int | None = Field(None, gt=0, description="keep every checkpoint at a multiple of this step")


class Log(Section):
    """Which metrics are logged, and where."""

    every_steps: int = Field(50, gt=0, description="steps between two lines of metrics")
    system_every_s: Positive | None = Field(
        15.0, description="seconds between two samples of CPUs, memory, disk, GPUs and each rank; null: none"
    )
    verbose: bool = Field(default=False, description="print every line of metrics, not only evaluations")
    tensorboard: bool = Field(default=True, description="write TensorBoard files into the run directory")
    wandb: Literal["offline", "online", "disabled"] = Field("offline", description="online uploads while training")
    wandb_project: str = Field("distrain", description="the Weights & Biases project of the run")
    loggers: LoggerList = Field(
        (), description="loggers of your own beside these, package.module:Class, such as [mine:Csv: {path: log.csv}]"
    )


class Eval(Section):
    """When and how the validation samples are evaluated; they always are evaluated at the end."""

    every_epochs: int | None = Field(1, gt=0, description="epochs between two evaluations; null: not by epochs")
    every_steps: int | None = Field(None, gt=0, description="steps between two evaluations; null: not by steps")
    at_start: bool = Field(
        default=False,
        description="also evaluate before the first step, so that an error shows at once; step 0 has no checkpoint, is "
        "never the best, and does not count for train.patience",
    )
    batch_size: int = Field(256, gt=0, lt=2**31, description="samples in one forward pass")
    flips: bool = Field(default=False, description="average the outputs over each image and its mirror image")
    shift: int | None = Field(
        None, gt=0, description="average them also over the image shifted by this many pixels up left and down right"
    )
    metrics: MetricList | None = Field(
        None,
        description=f"{', '.join(name for name in METRICS if name != ALWAYS_MEASURED)}, torchmetrics.NAME: "
        "{arguments} and package.module:factory; null: top1, and top5 from 6 classes on; for labels f1, auroc, "
        "exact_match; for values mae, rmse; for masks iou, pixel_accuracy; self-supervised: knn",
    )
    best: str | None = Field(
        None,
        description="the metric, or loss, that decides which evaluation is best; null: top1; labels f1; values mae; "
        "masks iou; self-supervised knn; loss for a task of your own",
    )

    @model_validator(mode="after")
    def _metrics_are_known(self) -> Self:
        own = [part.key for part in self.own_metrics]
        listed = [part.name for part in self.metrics or () if not part.is_own]
        for key, names in (("metrics", listed), ("best", () if self.best in {None, *own} else (str(self.best),))):
            for name in names:
                if name not in METRICS:
                    known = [*METRICS, *own] if key == "best" else [*METRICS, f"{TORCHMETRICS}NAME"]
                    hint = nearest(name, known, count=1) or f"; use {joined(known)}"
                    raise ValueError(f"eval.{key}: unknown metric {shown(name)}{hint}")
        if taken := [name for number, name in enumerate(own) if name in METRICS or name in own[:number]]:
            raise ValueError(
                f"eval.metrics: val/{taken[0]} would be recorded twice; write {{name: package.module:factory, "
                f"recorded_as: another name}}"
            )
        if self.best in METRICS and not METRICS[self.best].is_number:
            raise ValueError(f"eval.best={self.best} is not a single number; use a metric such as top1")
        return self

    @property
    def own_metrics(self) -> tuple[MetricPart, ...]:
        """Those of the metrics that are torchmetrics' or the user's."""
        return tuple(part for part in self.metrics or () if part.is_own)
