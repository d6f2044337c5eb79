"""Images of one size are decoded once and cached, where that is worthwhile, and nothing else changes."""

import logging
import os
import signal
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from distrain.data.layout.image_folder import scan_image_folder
from distrain.data.sources import cached as rules
from distrain.data.sources.base import DatasetSource, Source, TensorSource, subset
from distrain.data.sources.cached import CachedSource, cache
from distrain.data.sources.concat import ConcatSource
from distrain.data.sources.files import FileSource
from distrain.data.sources.stream import Stream
from distrain.errors import DataError, RecipeError

How = Literal["auto", "always", "never"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("ants", "bees"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(100):
            pixels = rng.integers(0, 255, (8, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "train" / name / f"{number:03}.png")
    return tmp_path


class Mine:
    classes = ("a", "b")

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((1, 4, 4), index, dtype=torch.uint8), index % 2


class Numbers:
    classes = ("a",)

    def __iter__(self) -> None:
        raise AssertionError


def files(folder: Path) -> FileSource:
    return FileSource(scan_image_folder(str(folder))["train"])


def held(source: Source, how: How = "auto", *, epochs: float = 2) -> Source:
    return cache(source, how, name="train", epochs=epochs, num_processes=2)


def test_cached_samples_and_their_names_are_those_of_the_files(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = subset(ConcatSource([files(folder)], ["ants", "bees"]), torch.arange(190, 3, -1))
    with caplog.at_level(logging.INFO):
        found = held(source)
    assert isinstance(found, CachedSource)
    assert "187 images of train are cached in memory: 0.0 MiB in each process, decoded in" in caplog.text
    assert "by 2 processes" in caplog.text
    assert found.images.shape == (187, 3, 8, 6)
    assert (found.fingerprint(), found.classes, found.target) == (source.fingerprint(), source.classes, source.target)
    assert torch.equal(found.targets, source.targets)
    for index in (0, 64, 186):
        assert found.describe(index) == source.describe(index)
        image, target = found.read(index)
        wanted, label = source.read(index)
        assert torch.equal(image, wanted)
        assert target == label


def test_auto_caches_only_where_it_is_worthwhile(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = files(folder)
    assert held(source, "never") is source
    assert held(source, epochs=1) is source
    assert isinstance(held(source, "always", epochs=0.1), CachedSource)
    monkeypatch.setattr(rules, "MAX_CACHED_BYTES", 200 * 8 * 6 * 3 - 1)
    assert held(source) is source
    monkeypatch.setattr(rules, "MAX_CACHED_BYTES", 200 * 8 * 6 * 3)
    assert isinstance(held(source), CachedSource)


def test_tensors_are_not_cached_and_user_datasets_only_on_request() -> None:
    tensors = TensorSource(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), ["a"])
    assert held(tensors) is tensors
    mine = DatasetSource(Mine(), name="mine:data")
    assert held(mine) is mine
    found = held(mine, "always")
    assert isinstance(found, CachedSource)
    assert found.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert found.targets.tolist() == [0, 1, 0, 1, 0]
    stream = DatasetSource(Stream(Numbers(), name="mine:stream", num_samples=5), name="mine:stream")
    assert held(stream) is stream
    with pytest.raises(RecipeError, match=r"data.cache=always: a stream cannot be cached"):
        held(stream, "always")


def test_images_of_different_sizes_are_not_cached_and_a_broken_one_keeps_its_error(folder: Path) -> None:
    source = files(folder)
    Image.new("RGB", (9, 9)).save(folder / "train" / "bees" / "077.png")
    assert held(source) is source
    with pytest.raises(
        DataError, match=r"data.cache=always: .*bees/077.png is torch.uint8 \[3, 9, 9\], the first image"
    ):
        held(source, "always")
    (folder / "train" / "ants" / "010.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"ants/010.png cannot be read"):
        held(source)


def test_error_names_an_image_that_crashes_its_reader(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = files(folder)
    read = source.read

    def die_of_one(index: int) -> tuple[torch.Tensor, int | torch.Tensor]:
        if index == 150:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(index)

    monkeypatch.setattr(source, "read", die_of_one)
    reason = r"\(reading it crashed the process: it was killed by SIGKILL\)"
    with pytest.raises(DataError, match=rf"bees/050\.png cannot be read {reason}; fix or remove it"):
        held(source)
