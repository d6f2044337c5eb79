"""Writes the shards with torch.distributed.checkpoint, whose import takes a second, in the writer's thread."""

from pathlib import Path

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from distrain.checkpoint.load import reason_of
from distrain.checkpoint.tensors import Tensors
from distrain.errors import CheckpointError


def write_shards(draft: Path, tensors: Tensors, group: dist.ProcessGroup | None) -> None:
    """Write this rank's part of tensors on the host into `draft`, together with the others of `group`, if any.

    Raises `CheckpointError` with the reason alone, or `OSError`, where that fails on any rank.
    """
    # The tensors are on the host already: a writer that copies ahead would start CUDA in this thread.
    writer = _Writer(draft, sync_files=True, per_thread_copy_ahead=0)
    try:
        save(tensors, storage_writer=writer, process_group=group, no_dist=group is None)
    except CheckpointException as error:
        raise CheckpointError(reason_of(error)) from error


class _Writer(FileSystemWriter):
    """DCP's writer, except that a full disk is called one: torch's archives hide it behind an error of their own."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
