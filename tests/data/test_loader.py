"""Samples are read as they are, and augmented as a function of (seed, epoch, sample) and nothing else."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distrain.data.folder import scan_image_folder
from distrain.data.images import FileSource
from distrain.data.loader import BatchReader, read_batches
from distrain.data.order import MicroBatch
from distrain.data.source import DatasetSource, TensorSource
from distrain.data.transforms import Transforms, build_transforms
from distrain.errors import DataError
from distrain.metrics import Target
from distrain.recipe import Augment

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


def test_each_copy_of_a_sample_is_augmented_for_itself_and_the_first_as_if_alone(photographs: Path) -> None:
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


def test_unreadable_image_is_an_error_with_its_path_also_from_a_loader_process(photographs: Path) -> None:
    bad = photographs / "train" / "bees" / "a.jpg"
    bad.write_bytes(b"not a JPEG")
    reader = BatchReader(FileSource(scan_image_folder(str(photographs))["train"]), None, seed=0)
    for workers in (0, 2):
        with pytest.raises(DataError, match=r"bees/a\.jpg cannot be read"):
            list(read_batches(reader, [MicroBatch(np.array([4, 5]))], num_workers=workers, device=CPU))


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
        batch = reader[MicroBatch(np.array(order))]
        assert not isinstance(batch, DataError)
        assert batch[1].dtype == targets.dtype
        assert torch.equal(batch[1], targets[order])


def test_image_of_other_numbers_than_those_of_its_batch_is_named() -> None:
    class Mixed:
        classes = ("a",)

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return torch.zeros(1, 4, 4, dtype=torch.float32 if index else torch.uint8), 0

    batch = BatchReader(DatasetSource(Mixed(), name="mine:mixed"), None, seed=0)[MicroBatch(np.array([0, 1]))]
    assert "sample 1 of mine:mixed is of torch.float32" in str(batch)
