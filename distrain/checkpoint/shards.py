"""Writes shards with torch.distributed.checkpoint; imported only by the writer's thread, since that takes a second."""

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


def write_shards(partial: Path, tensors: Tensors, group: dist.ProcessGroup | None) -> None:
    """Write this rank's part of tensors on the host into `partial`, together with the other ranks of `group`, if any.

    Raises `CheckpointError` with a short reason, or `OSError`, if that fails on any rank.
    """
    # The tensors are already on the host: a writer that copies ahead would initialize CUDA in this thread.
    writer = _Writer(partial, sync_files=True, per_thread_copy_ahead=0)
    try:
        save(tensors, storage_writer=writer, process_group=group, no_dist=group is None)
    except CheckpointException as error:
        raise CheckpointError(reason_of(error)) from error


class _Writer(FileSystemWriter):
    """DCP's writer, but it reports a full disk as `OSError`: torch's archive writer hides it in a `RuntimeError`."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
