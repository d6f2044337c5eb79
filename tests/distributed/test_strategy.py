"""A checkpoint holds the name of the strategy: whatever a class is called, a resume of an older run finds it equal."""

from distrain.distributed.ddp import Ddp
from distrain.distributed.exact import Exact
from distrain.distributed.flat_all_reduce import FlatAllReduce
from distrain.distributed.fsdp import Fsdp
from distrain.distributed.single import SingleProcess


def test_names_in_checkpoints_are_those_of_earlier_versions() -> None:
    names = [strategy.name for strategy in (SingleProcess, FlatAllReduce, Ddp, Fsdp, Exact)]
    assert names == ["single", "flat", "ddp", "fsdp", "exact"]
