"""Logs to Weights & Biases: offline by default, one id for all attempts, with explicit steps."""

import logging
import secrets
from typing import Literal

import wandb

from distrain.messages import first_line
from distrain.runs.directory import RunDirectory, write_atomically
from distrain.training.loggers.protocol import LoggerContext, Record

INIT_TIMEOUT_S = 30.0

log = logging.getLogger(__name__)


class WandbLogger:
    """Copies records to one W&B run, whose id is kept in the run directory.

    Offline files are not on disk until the run is finished, so each attempt begins with the records of the earlier
    ones: the newest offline folder always holds the whole run. Online, only what the server is missing is sent.
    """

    def __init__(self, context: LoggerContext) -> None:
        context.run.wandb.mkdir(exist_ok=True)
        self._run = _open(context)
        for record in context.history:
            if self._run.step <= record["step"]:
                self.write(record)

    def write(self, record: Record) -> None:
        """Log a record's metrics at its step; W&B has times of its own."""
        metrics = {name: value for name, value in record.items() if name not in {"step", "time"}}
        self._run.log(metrics, step=int(record["step"]))

    def close(self) -> None:
        """Finish the run, which uploads or writes what is left."""
        self._run.finish()


def _open(context: LoggerContext) -> wandb.Run:
    if context.recipe.log.wandb == "offline":
        return _init(context, "offline")
    try:
        if wandb.login(prompt=False, verify=False):
            return _init(context, "online")
        reason = "no API key; `wandb login` stores one"
    except wandb.errors.Error as error:
        reason = first_line(error)
        wandb.teardown()  # its service still holds the id of the run that it could not open
    log.warning("wandb is not reached (%s), so this run is kept offline; `wandb sync` uploads it later", reason)
    return _init(context, "offline")


def _init(context: LoggerContext, mode: Literal["online", "offline"]) -> wandb.Run:
    return wandb.init(
        project=context.recipe.log.wandb_project,
        name=context.run.path.name,
        id=_run_id(context.run),
        dir=str(context.run.path),
        config=context.recipe.model_dump(mode="json"),
        mode=mode,
        resume="allow" if mode == "online" else None,
        reinit="create_new",
        settings=wandb.Settings(
            silent=True, console="off", init_timeout=INIT_TIMEOUT_S, disable_git=True, disable_code=True
        ),
    )


def _run_id(run: RunDirectory) -> str:
    if not run.wandb_id.exists():
        write_atomically(run.wandb_id, secrets.token_hex(4))
    return run.wandb_id.read_text(encoding="utf-8")
