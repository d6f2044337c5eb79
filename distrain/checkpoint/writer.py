"""Saves checkpoints: a background thread copies the tensors to the host and writes them while training continues."""

import logging
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Set
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import torch.distributed as dist

from distrain import config as recipe
from distrain.checkpoint.staging import StagedTensors, Stager, written_here
from distrain.checkpoint.tensors import Tensors
from distrain.distributed.world import World
from distrain.errors import CheckpointError
from distrain.messages import MEBIBYTE
from distrain.runs.checkpoints.catalog import read_catalog
from distrain.runs.checkpoints.integrity import Manifest, commit, describe_files
from distrain.runs.checkpoints.paths import committed, final_path, partial_path, remove
from distrain.runs.checkpoints.retention import expired
from distrain.system.files import strict_json

FAILING_WAIT_S = 60.0  # how long a failing run waits for the save in progress

log = logging.getLogger(__name__)
T = TypeVar("T")


class Checkpointer:
    """Writes the checkpoints of a run, one at a time. All ranks must make the same calls in the same order.

    A save that fails on any rank leaves the older checkpoints as they are; rank 0 warns, and training continues.
    Leaving the context waits for the save in progress and raises `CheckpointError` if the last one failed. The threads
    of the ranks use a separate process group, so that their messages never mix with those of training.
    """

    def __init__(self, folder: Path, *, config: recipe.Checkpoint, world: World) -> None:
        self._folder = folder
        self._config = config
        self._world = world
        self._group: dist.ProcessGroup | None = None
        if world.size > 1:
            self._group = dist.new_group(backend="gloo", timeout=world.timeout)  # type: ignore[assignment]  # every rank is a member
        self._stager = Stager()
        self._staged: StagedTensors | None = None  # of the newest save, until its copies are known to be made
        self._thread: threading.Thread | None = None
        self._failure: str | None = None  # why the newest save failed
        self._error: BaseException | None = None  # an unexpected error, to be raised in the training thread
        self._blocked_s: float | None = None
        self._began = time.monotonic()  # the start of the newest save, or of the run
        if world.size == 1:  # not around the call: warning filters are shared by all threads
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)

    def save(self, step: int, *, tensors: Tensors, state: dict[str, Any], stable: Set[str] = frozenset()) -> None:
        """Begin to write checkpoint `step-N`, after the previous save has finished.

        The caller must not change the tensors named by `stable` before it has called `wait_for_staging`; it may change
        all others when this returns.
        """
        started = time.perf_counter()
        self.wait()
        self._began = time.monotonic()
        text = strict_json({"step": step, **state}, indent=1)
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        self._staged = StagedTensors(tensors, stable=stable, written=written_here(tensors, self._world))
        arguments = (step, self._staged, text, num_bytes)
        self._thread = threading.Thread(target=self._write, args=arguments, name="distrain-checkpoint", daemon=True)
        self._thread.start()
        if not self._config.asynchronous:
            self.wait()
        self._blocked_s = (self._blocked_s or 0.0) + time.perf_counter() - started

    def wait_for_staging(self) -> None:
        """Wait until the newest save has copied its stable tensors; training calls this before it changes any of them.

        Raises `ModelError` if one has already changed.
        """
        if self._staged is not None:
            started = time.perf_counter()
            self._release()
            self._blocked_s = (self._blocked_s or 0.0) + time.perf_counter() - started

    def wait(self) -> None:
        """Wait for the save in progress, if there is one."""
        self._release()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            raise self._error

    def pop_blocked_s(self) -> float | None:
        """Return the seconds that saves have blocked training since the last call; None if there was none."""
        blocked_s, self._blocked_s = self._blocked_s, None
        return blocked_s

    def is_overdue(self) -> bool:
        """Return on every rank whether `checkpoint.every_minutes` have passed on rank 0 since the last save began."""
        if self._config.every_minutes is None:
            return False
        elapsed_s = time.monotonic() - self._began
        return self._world.any_over_ranks(self._world.is_rank_zero and elapsed_s >= 60 * self._config.every_minutes)

    def close(self) -> None:
        """Wait for the save in progress, and destroy the process group; all ranks must call it together."""
        if self._thread is not None:
            self._thread.join()
        if self._group is not None:
            self._world.barrier()  # until no thread uses the group
            dist.destroy_process_group(self._group)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None:
            self.wait()
            if self._failure is not None:
                raise CheckpointError(self._failure)
        elif issubclass(kind, Exception) and self._thread is not None:
            self._thread.join(FAILING_WAIT_S)

    def _release(self) -> None:
        staged, self._staged = self._staged, None
        if staged is not None:
            staged.release()

    def _write(self, step: int, staged: StagedTensors, state: str, num_bytes: int) -> None:
        """Write one checkpoint, in the thread; only an error of the communication between ranks ends the training."""
        try:
            self._failure = self._write_together(step, staged, state, num_bytes)
        except BaseException as error:  # noqa: BLE001 - raised again in the training thread
            self._error = error

    def _write_together(self, step: int, staged: StagedTensors, state: str, num_bytes: int) -> str | None:
        partial, final = partial_path(self._folder, step), final_path(self._folder, step)
        tensors: Tensors = {}
        try:
            self._together(lambda: tensors.update(self._stager.stage(staged)))
            self._together(lambda: self._begin(partial))
            if any(names != staged.names for names in self._together(lambda: staged.names)):
                raise _SaveFailed("the processes have tensors of different names")  # no rank would write some of them
            self._together(lambda: self._write_shards(partial, tensors))
            parts = self._together(lambda: describe_files(sorted(partial.glob(f"__{self._world.rank}_*"))))
            shards = {name: entry for part in parts for name, entry in part.items()}
            self._together(lambda: self._finish(partial, final, state, shards))
        except _SaveFailed as failure:
            return self._report_failure(step, str(failure), num_bytes)
        return None

    def _begin(self, partial: Path) -> None:
        if self._world.is_rank_zero:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)

    def _write_shards(self, partial: Path, tensors: Tensors) -> None:
        from distrain.checkpoint.shards import write_shards  # a second of imports, which training does not wait for

        write_shards(partial, tensors, self._group)

    def _finish(self, partial: Path, final: Path, state: str, shards: Manifest) -> None:
        if self._world.is_rank_zero:
            commit(partial, final, state=state, shards=shards)
            self._remove_expired()

    def _remove_expired(self) -> None:
        config = self._config
        try:
            for entry in expired(
                read_catalog(self._folder),
                keep_last=config.keep_last,
                keep_best=config.keep_best,
                keep_every_steps=config.keep_every_steps,
            ):
                remove(entry.path)
        except OSError as error:
            log.warning("an old checkpoint in %s could not be deleted: %s", self._folder, error)

    def _report_failure(self, step: int, reason: str, num_bytes: int) -> str:
        """Remove the partial checkpoint, warn on rank 0, and return the same error message on every rank."""
        partial = partial_path(self._folder, step)
        if self._world.is_rank_zero:
            shutil.rmtree(partial, ignore_errors=True)
        self._together(lambda: None)  # wait until it is removed, so that all ranks see the same free space
        free, older = 0, list[Path]()
        with suppress(OSError):  # the failing disk may refuse this as well
            free = shutil.disk_usage(self._folder).free if self._folder.is_dir() else 0
            older = committed(self._folder)
        newest = f"the newest checkpoint is {older[-1].name}" if older else "there is no older checkpoint"
        sentence = (
            f"checkpoint {partial.stem} could not be written: {reason}; it needs {num_bytes / MEBIBYTE:.1f} MiB, "
            f"{free / MEBIBYTE:.1f} MiB are free in {self._folder}"
        )
        if self._world.is_rank_zero:
            log.warning("%s; %s", sentence, newest)
        return f"{sentence}; the weights are safe in {older[-1]}" if older else f"{sentence}; {newest}"

    def _together(self, work: Callable[[], T]) -> list[T]:
        """Do `work` and return the results of all ranks; raises `_SaveFailed` on all ranks if it failed on any."""
        outcome: tuple[T | None, str | None]
        try:
            outcome = work(), None
        except OSError as error:
            outcome = None, error.strerror or str(error)
        except CheckpointError as error:
            outcome = None, str(error)
        except Exception as error:
            log.exception("the checkpoint could not be written")
            outcome = None, f"{type(error).__name__}: {error}"
        outcomes = [outcome] * self._world.size
        if self._group is not None:
            dist.all_gather_object(outcomes, outcome, group=self._group)
        for _, reason in outcomes:
            if reason is not None:
                raise _SaveFailed(reason)
        return [result for result, _ in outcomes]  # type: ignore[misc]  # None only together with a reason


class _SaveFailed(Exception):  # noqa: N818 - it never leaves this module
    """A save failed on some rank; every rank raises this at the same point."""
