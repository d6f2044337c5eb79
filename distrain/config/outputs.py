"""The sections of a recipe that say what a run leaves behind: checkpoints, metrics, evaluations."""

from typing import Literal, Self

from pydantic import Field, model_validator

from distrain.config.metrics import ALWAYS_MEASURED, METRICS
from distrain.config.section import Positive, Section, Words
from distrain.messages import joined, nearest, shown


class Checkpoint(Section):
    """When the state of the run is written; it always is at the end."""

    every_epochs: int | None = Field(1, gt=0, description="epochs between two checkpoints; null: not by epochs")
    every_steps: int | None = Field(None, gt=0, description="steps between two checkpoints; null: not by steps")
    every_minutes: Positive | None = Field(None, description="minutes between two checkpoints; null: not by the clock")
    asynchronous: bool = Field(default=True, description="write in the background; false holds up the training")
    keep_last: int = Field(2, gt=0, description="how many of the newest checkpoints stay")
    keep_best: bool = Field(default=True, description="write and keep one at the evaluation that is the best so far")
    keep_every_steps: int | None = Field(None, gt=0, description="checkpoints of multiples of this stay for ever")


class Log(Section):
    """What is recorded, and where to."""

    every_steps: int = Field(50, gt=0, description="steps between two lines of metrics")
    verbose: bool = Field(default=False, description="print every line of metrics, not only evaluations")
    tensorboard: bool = Field(default=True, description="write TensorBoard files into the run directory")
    wandb: Literal["offline", "online", "disabled"] = Field("offline", description="online uploads while training")
    wandb_project: str = Field("distrain", description="the Weights & Biases project of the run")


class Eval(Section):
    """When and how the validation samples are evaluated; they always are at the end."""

    every_epochs: int | None = Field(1, gt=0, description="epochs between two evaluations; null: not by epochs")
    every_steps: int | None = Field(None, gt=0, description="steps between two evaluations; null: not by steps")
    at_start: bool = Field(
        default=False,
        description="also before the first step, so that a fault shows at once; step 0 has no checkpoint, is never the "
        "best, and does not count for train.patience",
    )
    batch_size: int = Field(256, gt=0, lt=2**31, description="samples of one forward pass")
    flips: bool = Field(default=False, description="average the outputs over each image and its mirror image")
    shift: int | None = Field(
        None, gt=0, description="average them also over the image moved by so many pixels up left and down right"
    )
    metrics: Words | None = Field(
        None,
        description=f"of {', '.join(name for name in METRICS if name != ALWAYS_MEASURED)}; null: top1, from 6 classes "
        "on top5; for labels f1, auroc, exact_match; for values mae, rmse",
    )
    best: str | None = Field(
        None, description="the metric whose best evaluation is kept, also loss; null: top1, for labels f1, values mae"
    )

    @model_validator(mode="after")
    def _metrics_are_known(self) -> Self:
        for key, names in (("metrics", self.metrics or ()), ("best", () if self.best is None else (self.best,))):
            for name in names:
                if name not in METRICS:
                    hint = nearest(name, METRICS, count=1) or f"; use {joined(list(METRICS))}"
                    raise ValueError(f"eval.{key}: unknown metric {shown(name)}{hint}")
        if self.best is not None and not METRICS[self.best].is_number:
            raise ValueError(f"eval.best={self.best} is not one number, so none is the best; use top1, for example")
        return self
