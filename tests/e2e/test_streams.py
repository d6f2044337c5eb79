"""A training on a stream ends in the same bits with any loader processes, any number of processes, and resumed."""

from pathlib import Path
from typing import Any

import pytest

from tests.cli_runner import distrain, fit
from tests.e2e.test_exact import facts
from tests.e2e.test_resume import kill_after_checkpoint, start

# The digits, shuffled by the stream itself; `jumping` begins anywhere, `short` ends too soon in its second epoch.
MINE = """
import random
from torch.utils.data import IterableDataset
from distrain.data.sources.registry import open_sources
from distrain.config import Data

class Plain(IterableDataset):
    def __init__(self, split):
        self.source = open_sources(Data(source="digits", batch_size=1))[split]
        self.classes = self.source.classes
    def __len__(self):
        return len(self.source)
    def set_epoch(self, epoch):
        self.epoch = epoch
    def __iter__(self):
        return self.samples(self.epoch, 0)
    def samples(self, epoch, start):
        order = list(range(len(self)))
        random.Random(epoch).shuffle(order)
        return (self.source.read(index) for index in order[start:])

class Jumping(Plain):
    def iter_from(self, epoch, start):
        return self.samples(epoch, start)

class Short(Plain):
    def samples(self, epoch, start):
        return (self.source.read(index) for index in range(len(self) - 40 * epoch))

def plain(split, path):
    return Plain(split)

def jumping(split, path):
    return Jumping(split)

def short(split, path):
    return Short(split)
"""
# 500 = 5 x 96 + 20 samples an epoch; checkpoints and the kill are in the middle of epochs.
RECIPE = [
    "digits",
    "--device=cpu",
    "--set=data.batch_size=96",
    "--set=data.samples_per_epoch=500",
    "--set=train={epochs: 3, exact: true, micro_batch_size: 16}",
    "--set=augment.train=[RandomCrop: {size: 8, padding: 1}]",
    "--set=log.every_steps=3",
    "--set=checkpoint.every_steps=4",
    "--run=run",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("alone")
    (folder / "mine.py").write_text(MINE)
    fit(*RECIPE, "--set=data.source=mine:plain", "--procs=1", cwd=folder)
    return facts(folder / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "processes", "workers"),
    [("plain", 1, 1), ("plain", 2, 2), ("plain", 2, 0), ("jumping", 1, 0), ("jumping", 2, 1)],
)
def test_any_processes_give_the_bits_of_one(
    folder: Path, alone: dict[str, Any], source: str, processes: int, workers: int
) -> None:
    more = [f"--set=data.source=mine:{source}", f"--procs={processes}", f"--set=data.num_workers={workers}"]
    fit(*RECIPE, *more, cwd=folder)
    assert facts(folder / "run") == alone


@pytest.mark.slow
def test_run_killed_within_an_epoch_ends_in_the_bits_of_the_undisturbed_one(
    folder: Path, alone: dict[str, Any]
) -> None:
    own = [*RECIPE, "--set=data.source=mine:plain"]
    for processes, step in ((2, 4), (1, 8)):
        process = start([*own, f"--procs={processes}"], folder)
        kill_after_checkpoint(process, folder / "run", step=step, delay_s=0.0)
    fit(*own, "--procs=2", cwd=folder)
    assert facts(folder / "run") == alone


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            ["--set=data.source=mine:short", "--set=data.samples_per_epoch=1438"],
            "in epoch 1 the stream ended before position 1398, counted from 0, but an epoch has 1,438 samples",
        ),
        (["--set=data.source=mine:plain", "--set=data.repeats=2"], "so data.repeats=2 is not available"),
    ],
)
def test_what_a_stream_cannot_give_is_one_sentence(folder: Path, changes: list[str], sentence: str) -> None:
    done = distrain("fit", *RECIPE, *changes, "--procs=1", cwd=folder)
    assert done.code == 2
    assert sentence in done.err
    assert "Traceback" not in done.out + done.err
