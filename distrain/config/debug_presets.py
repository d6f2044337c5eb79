"""Defines the aids to find a fault: what --debug and --overfit change in a recipe, and the debugger at an exception."""

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
OVERFIT_TARGET = 0.05  # a mean cross-entropy at which the right class of a training image has about 95%
OVERFIT_PASSES = 100
OVERFIT_LEAST_STEPS = 300
_WARMUP_SHARE = 0.1


@dataclass(frozen=True)
class DebugOptions:
    """What `distrain fit` was asked for besides an ordinary training."""

    debug: bool = False
    overfit_batches: int | None = None
    trace: bool = False
    post_mortem: bool = False

    def __post_init__(self) -> None:
        if self.overfit_batches is not None and self.overfit_batches < 1:
            raise LaunchError(f"--overfit {self.overfit_batches} trains on nothing; give 1 batch or more")

    def check(self, *, processes: int) -> None:
        """Raise `LaunchError` where the aids do not go with several processes."""
        for option, is_given in (("--debug", self.debug), ("--pdb", self.post_mortem)):
            if is_given and processes > 1:
                raise LaunchError(f"{option} is for one process, in which a debugger works, and not for {processes}")

    def overrides(self, recipe: Recipe) -> list[str]:
        """Return what changes in the recipe, as --set would say it; the name says that it is no real training."""
        suffixes = ["debug"] * self.debug + ["overfit"] * (self.overfit_batches is not None)
        if not suffixes:
            return []
        suffix = "".join(f"-{word}" for word in suffixes)
        changes = [f"name={recipe.name.removesuffix(suffix)}{suffix}"]  # a run that goes on has it already
        changes += _debug_overrides(recipe) if self.debug else []
        changes += _overfit_overrides(recipe, self.overfit_batches) if self.overfit_batches is not None else []
        last = {change.partition("=")[0]: change for change in changes}  # what --overfit changes, too, counts
        return list(last.values())


def _debug_overrides(recipe: Recipe) -> list[str]:
    """Make every fault show in the user's own thread, at once, and in the line that makes it."""
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
        "log.tensorboard=false",  # it calls the network in a thread, where a breakpoint would stop it
        "log.wandb=disabled",
    ]


def _overfit_overrides(recipe: Recipe, num_batches: int) -> list[str]:
    """Leave the network nothing to do but to learn some batches by heart: the same pixels and labels every time."""
    max_steps = max(OVERFIT_LEAST_STEPS, OVERFIT_PASSES * num_batches)
    transforms = [{t.name: t.arguments} for t in recipe.augment.eval]
    return [
        f"data.train_samples={num_batches * recipe.data.batch_size}",
        f"data.val_samples={recipe.eval.batch_size}",
        f"augment.train={json.dumps(transforms)}",
        "loss.label_smoothing=null",  # with it no loss comes near 0
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
    """Let the user look at the frame that raised `error`, on the terminal; the training has been wound up before."""
    if isinstance(error, bdb.BdbQuit):  # the user has left a debugger just now
        return
    print(f"{type(error).__name__}: {error}", flush=True)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Ctrl-C is the debugger's: there is nothing to stop
    pdb.post_mortem(error.__traceback__)
