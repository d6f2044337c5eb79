"""Defines the debug options: what --debug and --overfit change in a recipe, and the debugger after an exception."""

import bdb
import json
import pdb
import signal
import threading
from dataclasses import dataclass

from distrain.config import Recipe
from distrain.errors import LaunchError

DEBUG_STEPS = 8
DEBUG_EVALUATION_BATCHES = 4
OVERFIT_TARGET = 0.05  # mean cross-entropy; the right class of a training image then has a probability of about 95%
OVERFIT_PASSES = 100
OVERFIT_MIN_STEPS = 300
_WARMUP_SHARE = 0.1


@dataclass(frozen=True)
class DebugOptions:
    """The debug options given to `distrain fit`."""

    debug: bool = False
    overfit_batches: int | None = None
    trace: bool = False
    post_mortem: bool = False

    def __post_init__(self) -> None:
        if self.overfit_batches is not None and self.overfit_batches < 1:
            raise LaunchError(f"--overfit must be 1 batch or more, not {self.overfit_batches}")

    def check(self, *, processes: int) -> None:
        """Raise `LaunchError` where an option does not work with several processes."""
        for option, is_given in (("--debug", self.debug), ("--pdb", self.post_mortem)):
            if is_given and processes > 1:
                raise LaunchError(f"{option} needs a single process, in which a debugger works, not {processes}")

    def overrides(self, recipe: Recipe) -> list[str]:
        """Return the changes to the recipe, as --set overrides; the name marks the run as not a real training."""
        suffixes = ["debug"] * self.debug + ["overfit"] * (self.overfit_batches is not None)
        if not suffixes:
            return []
        suffix = "".join(f"-{word}" for word in suffixes)
        changes = [f"name={recipe.name.removesuffix(suffix)}{suffix}"]  # a resumed run has it already
        changes += _debug_overrides(recipe) if self.debug else []
        changes += _overfit_overrides(recipe, self.overfit_batches) if self.overfit_batches is not None else []
        last = {change.partition("=")[0]: change for change in changes}  # of two changes to a key, --overfit's wins
        return list(last.values())


def _debug_overrides(recipe: Recipe) -> list[str]:
    """Make every fault show at once, in the main thread and in the line that causes it."""
    return [
        f"train.max_steps={DEBUG_STEPS}",
        "train.deterministic=true",
        "train.detect_anomaly=true",
        "train.max_rollbacks=0",
        "data.num_workers=0",
        f"data.val_samples={DEBUG_EVALUATION_BATCHES * recipe.eval.batch_size}",
        "eval.at_start=true",
        "checkpoint.asynchronous=false",
        "log.every_steps=1",
        "log.verbose=true",
        "log.tensorboard=false",  # it calls the network in a thread, where a breakpoint would stop
        "log.wandb=disabled",
    ]


def _overfit_overrides(recipe: Recipe, num_batches: int) -> list[str]:
    """Make the network memorise a few batches, with the same pixels and labels every time."""
    max_steps = max(OVERFIT_MIN_STEPS, OVERFIT_PASSES * num_batches)
    transforms = [{t.name: t.arguments} for t in recipe.augment.eval]
    return [
        f"data.train_samples={num_batches * recipe.data.batch_size}",
        f"data.val_samples={recipe.eval.batch_size}",
        f"augment.train={json.dumps(transforms)}",
        "loss.label_smoothing=null",  # label smoothing keeps the loss away from 0
        "optimizer.weight_decay=0",
        "schedule={name: constant, warmup_epochs: %g}" % (_WARMUP_SHARE * max_steps / num_batches),
        f"train.epochs={max_steps}",
        f"train.max_steps={max_steps}",
        f"train.target_loss={OVERFIT_TARGET}",
        "eval.every_epochs=null",
        "checkpoint.every_epochs=null",
        "checkpoint.keep_best=false",
        f"log.every_steps={num_batches}",
        "log.tensorboard=false",
        "log.wandb=disabled",
    ]


def debug_post_mortem(error: BaseException) -> None:
    """Open pdb on the terminal at the frame that raised `error`; the training has already been shut down."""
    if isinstance(error, bdb.BdbQuit):  # the user has left a debugger just now
        return
    print(f"{type(error).__name__}: {error}", flush=True)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Ctrl-C goes to pdb: no training is left to stop
    pdb.post_mortem(error.__traceback__)
