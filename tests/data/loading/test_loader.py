"""Samples are read as they are, and augmented as a function of (seed, epoch, sample) and nothing else."""

import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from distrain.config import Augment
from distrain.config.batching import solve_batching
from distrain.config.metrics import Target
from distrain.data.layout.image_folder import scan_image_folder
from distrain.data.loading.epoch_order import repeated_order, uniform_order
from distrain.data.loading.loader import BatchReader, Loader, read_batches
from distrain.data.loading.sampler import MicroBatch, TrainSampler
from distrain.data.sources.base import DatasetSource, TensorSource
from distrain.data.sources.cached import cache
from distrain.data.sources.files import FileSource
from distrain.data.transforms.pipeline import Transforms, build_transforms
from distrain.errors import DataError, RecipeError

CPU = torch.device("cpu")


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    for split in ("train", "val"):
        for name in ("ants", "bees"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            picture = Image.fromarray(pixels)
            for file, mode in {"a.jpg": "RGB", "b.png": "L", "c.png": "P", "d.bmp": "RGB", "e.jpeg": "CMYK"}.items():
                picture.convert(mode).save(folder / file)
            (folder / "notes.txt").write_text("not an image")
    return tmp_path


def test_every_kind_of_image_is_read_as_rgb(photographs: Path) -> None:
    source = FileSource(scan_image_folder(str(photographs))["train"])
    assert source.classes == ("ants", "bees")
    assert len(source) == 10
    for index in range(10):
        image, label = source.read(index)
        assert (tuple(image.shape), image.dtype, label) == ((3, 30, 40), torch.uint8, index // 5)


class Drawing:
    """A dataset that augments its images, with the global generators."""

    classes = ("a", "b")

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.tensor([index / 100, float(torch.rand(())), np.random.rand(), random.random()])[:, None, None], 0


def test_random_draws_of_a_dataset_depend_on_seed_epoch_and_sample_alone() -> None:
    def read(order: list[int], *, epoch: int = 0, seed: int = 5, workers: int, size: int) -> torch.Tensor:
        reader = BatchReader(DatasetSource(Drawing(), name="mine:drawing"), None, seed=seed)
        batches = [MicroBatch(np.array(order[i : i + size]), epoch) for i in range(0, len(order), size)]
        images = [images for images, _ in read_batches(reader, batches, num_workers=workers, device=CPU)]
        return torch.cat(images)[:, :, 0, 0]

    there, back = list(range(12)), list(range(11, -1, -1))
    drawn = read(there, workers=0, size=4)
    assert len(set(drawn[:, 1:].flatten().tolist())) == 36
    assert torch.equal(read(back, workers=0, size=3).flip(0), drawn)
    assert torch.equal(read(there, workers=2, size=2), drawn)
    assert torch.equal(read(back[:5], workers=2, size=1), drawn.flip(0)[:5])
    for other in (read(there, epoch=1, workers=0, size=4), read(there, seed=6, workers=0, size=4)):
        assert torch.equal(other[:, 0], drawn[:, 0])
        assert not torch.isclose(other[:, 1:], drawn[:, 1:]).any()


def test_augmentation_depends_on_seed_epoch_and_sample_alone(photographs: Path) -> None:
    source = FileSource(scan_image_folder(str(photographs))["train"])
    config = Augment.model_validate({"train": [{"RandomResizedCrop": {"size": 16}}, "RandomHorizontalFlip"]})
    reader = BatchReader(source, build_transforms(config.train, key="augment.train"), seed=5)

    def read(order: list[int], epoch: int, *, workers: int, size: int) -> dict[int, torch.Tensor]:
        batches = [MicroBatch(np.array(order[i : i + size]), epoch) for i in range(0, len(order), size)]
        images = [
            image for batch, _ in read_batches(reader, batches, num_workers=workers, device=CPU) for image in batch
        ]
        return dict(zip(order, images, strict=True))

    first = read(list(range(10)), 0, workers=0, size=5)
    torch.rand(7)  # what others draw in between changes nothing
    second = read(list(reversed(range(10))), 0, workers=2, size=2)
    assert all(torch.equal(first[i], second[i]) for i in range(10))
    third = read(list(range(10)), 1, workers=0, size=5)
    assert not all(torch.equal(first[i], third[i]) for i in range(10))


def test_each_copy_of_a_sample_is_augmented_independently_and_the_first_as_if_alone(photographs: Path) -> None:
    source = FileSource(scan_image_folder(str(photographs))["train"])
    config = Augment.model_validate({"train": [{"RandomResizedCrop": {"size": 16}}]})
    reader = BatchReader(source, build_transforms(config.train, key="augment.train"), seed=5)

    def read(indices: list[int], copies: list[int] | None) -> list[torch.Tensor]:
        numbers = None if copies is None else np.array(copies)
        [(images, _)] = read_batches(reader, [MicroBatch(np.array(indices), 0, numbers)], num_workers=0, device=CPU)
        return list(images)

    alone = read([3, 4], None)
    copied = read([3, 3, 3, 4, 3], [0, 1, 2, 0, 1])
    assert torch.equal(copied[0], alone[0])
    assert torch.equal(copied[3], alone[1])
    assert torch.equal(copied[1], copied[4])
    assert not any(torch.equal(copied[a], copied[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


LISTS: dict[str, list[Any]] = {
    "whole batches": [{"RandomCrop": {"size": 24, "padding": 4}}, "AlternatingFlip", {"Cutout": {"size": 6}}],
    "threads": [{"RandomResizedCrop": {"size": 16}}, "RandomHorizontalFlip"],
    "some of torchvision's": [{"RandomResizedCrop": {"size": 16}}, "TrivialAugmentWide", {"Cutout": {"size": 6}}],
    "all of torchvision's": ["ColorJitter", {"RandomCrop": {"size": 24}}],
    "none": [],
}
WAYS: dict[str, tuple[Loader, int, bool]] = {
    "none": ("auto", 0, False),
    "auto": ("auto", 2, False),
    "processes": ("processes", 2, False),
    "threads": ("threads", 3, False),
    "cached, none": ("auto", 0, True),
    "cached, processes": ("processes", 2, True),
    "cached, threads": ("threads", 2, True),
}


@pytest.mark.parametrize("listed", LISTS.values(), ids=LISTS)
def test_every_loader_gives_the_same_bits(photographs: Path, listed: list[Any]) -> None:
    files = FileSource(scan_image_folder(str(photographs))["train"])
    cached = cache(files, "always", name="train", epochs=2, num_processes=2)
    transforms = build_transforms(Augment.model_validate({"train": listed}).train, key="augment.train")
    order = repeated_order(1, sampler=partial(uniform_order, num_samples=10, seed=3), repeats=2, num_positions=10)
    batches = [order.micro_batch(start, min(start + 4, 10), 1) for start in (0, 4, 8)]
    found = {}
    for name, (loader, workers, is_held) in WAYS.items():
        reader = BatchReader(cached if is_held else files, transforms, seed=5)
        if loader == "threads" and not reader.is_thread_safe:
            with pytest.raises(RecipeError, match=r"data.loader=threads: the source, or one of the transforms"):
                next(read_batches(reader, batches, num_workers=workers, device=CPU, loader=loader))
            continue
        torch.rand(3)  # what others draw changes nothing
        found[name] = list(read_batches(reader, batches, num_workers=workers, device=CPU, loader=loader))
    expected = found.pop("none")
    assert [len(targets) for _, targets in expected] == [4, 4, 2]
    for name, read in found.items():
        for (images, targets), (wanted, labels) in zip(read, expected, strict=True):
            assert torch.equal(images, wanted), name
            assert torch.equal(targets, labels), name


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_the_same_at_every_world_size_and_after_a_resume(photographs: Path, num_workers: int) -> None:
    files = FileSource(scan_image_folder(str(photographs))["train"])
    config = Augment.model_validate({"train": LISTS["threads"]})
    reader = BatchReader(files, build_transforms(config.train, key="augment.train"), seed=5)

    def step(number: int, world_size: int, *, first: int = 0) -> torch.Tensor:
        """The images of one step over all ranks, read from an earlier step on."""
        found = []
        for rank in range(world_size):
            order = TrainSampler(
                num_samples=10,
                sampler=partial(uniform_order, num_samples=10, seed=3),
                batching=solve_batching(4, 1, world_size),
                drop_last=False,
                rank=rank,
            )
            wanted = list(order.micro_batches(range(first, number)))
            more = order.micro_batches(range(first, number + 1))
            read = list(read_batches(reader, more, num_workers=num_workers, device=CPU))
            found += [images for images, _ in read[len(wanted) :]]
        return torch.cat(found)

    for number in (0, 4):  # of the first and of the second epoch
        alone = step(number, 1)
        assert torch.equal(step(number, 2), alone)
        assert torch.equal(step(number, 4), alone)
        assert torch.equal(step(number, 2, first=number), alone)


@pytest.mark.parametrize(("loader", "num_workers"), [("auto", 0), ("processes", 2), ("threads", 2)])
def test_unreadable_image_is_an_error_with_its_path_in_the_order_of_batches(
    photographs: Path, loader: Loader, num_workers: int
) -> None:
    (photographs / "train" / "bees" / "a.jpg").write_bytes(b"not a JPEG")
    (photographs / "train" / "bees" / "b.png").write_bytes(b"neither")
    reader = BatchReader(FileSource(scan_image_folder(str(photographs))["train"]), None, seed=0)
    good, bad = MicroBatch(np.array([0, 1])), MicroBatch(np.array([4, 5, 6]))
    reading = read_batches(reader, [good, bad, good], num_workers=num_workers, device=CPU, loader=loader)
    assert len(next(reading)[0]) == 2
    with pytest.raises(DataError, match=r"bees/a\.jpg cannot be read"):  # the first of both, whoever came first
        next(reading)


def test_error_names_an_image_too_small_for_its_crop(photographs: Path) -> None:
    files = FileSource(scan_image_folder(str(photographs))["train"])
    config = Augment.model_validate({"train": [{"RandomCrop": {"size": 50}}]})
    transforms = build_transforms(config.train, key="augment.train")
    cached = cache(files, "always", name="train", epochs=2, num_processes=1)
    for source in (files, cached):
        batch = BatchReader(source, transforms, seed=0).read(MicroBatch(np.array([1, 2])))
        assert "ants/b.png cannot be transformed (RandomCrop: a crop of 50x50 is larger than the image" in str(batch)


@pytest.mark.gpu
@pytest.mark.parametrize("listed", LISTS.values(), ids=LISTS)
def test_every_loader_gives_the_same_bits_on_a_gpu(photographs: Path, listed: list[Any]) -> None:
    device = torch.device("cuda")
    files = FileSource(scan_image_folder(str(photographs))["train"])
    cached = cache(files, "always", name="train", epochs=2, num_processes=2)
    transforms = build_transforms(Augment.model_validate({"train": listed}).train, key="augment.train")
    batches = [MicroBatch(np.array([start, start + 3]), 2) for start in range(6)]
    expected = [BatchReader(files, transforms, seed=5).read(batch) for batch in batches]
    for source, num_workers in ((files, 0), (files, 2), (cached, 0), (cached, 2)):
        reader = BatchReader(source, transforms, seed=5, device=device)
        read = list(read_batches(reader, batches, num_workers=num_workers, device=device))
        for (images, targets), wanted in zip(read, expected, strict=True):
            assert not isinstance(wanted, DataError)
            assert images.device.type == "cuda"
            assert torch.equal(images.cpu(), wanted[0])
            assert torch.equal(targets.cpu(), wanted[1])


@pytest.mark.parametrize(
    ("target", "targets"),
    [
        ("class", torch.tensor([1, 0, 1])),
        ("labels", torch.tensor([[1.0, 0], [1, 1], [0, 0]])),
        ("values", torch.tensor([[0.5, -2], [1e3, 0], [3, 4]])),
    ],
)
def test_targets_of_every_kind_are_stacked_as_they_are(target: Target, targets: torch.Tensor) -> None:
    source = TensorSource(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), targets, ["a", "b"], target=target)
    order = [2, 0]
    for reader in (
        BatchReader(source, None, seed=0),
        BatchReader(source, Transforms(rest=(torch.nn.Identity(),)), seed=0),
    ):
        batch = reader.read(MicroBatch(np.array(order)))
        assert not isinstance(batch, DataError)
        assert batch[1].dtype == targets.dtype
        assert torch.equal(batch[1], targets[order])


def test_error_names_an_image_whose_dtype_differs_from_its_batch() -> None:
    class Mixed:
        classes = ("a",)

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return torch.zeros(1, 4, 4, dtype=torch.float32 if index else torch.uint8), 0

    batch = BatchReader(DatasetSource(Mixed(), name="mine:mixed"), None, seed=0).read(MicroBatch(np.array([0, 1])))
    assert "sample 1 of mine:mixed is torch.float32" in str(batch)


@pytest.mark.parametrize("order", [[5, 1, 2], [1, 5, 2], [1, 2, 5], [1, 5]])
def test_image_of_another_shape_is_named_wherever_it_stands_in_its_batch(order: list[int]) -> None:
    class Wide:
        classes = ("a",)

        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return torch.zeros(1, 4, 9 if index == 5 else 4), 0

    batch = BatchReader(DatasetSource(Wide(), name="mine:wide"), None, seed=0).read(MicroBatch(np.array(order)))
    assert "sample 5 of mine:wide is 1x4x9 after its transforms, but others of its batch are 1x4x4" in str(batch)


def test_image_without_channels_is_named_before_it_is_normalised() -> None:
    class Flat:
        classes = ("a",)

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return torch.zeros(8, 8), 0

    batch = BatchReader(DatasetSource(Flat(), name="mine:flat"), None, seed=0).read(MicroBatch(np.array([1])))
    assert "sample 1 of mine:flat is 8x8 after its transforms; return a tensor [channels, height, width]" in str(batch)
