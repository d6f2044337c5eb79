"""Sources of every format give the images that were written, split and drawn by the seed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distrain.config import Augment, Data
from distrain.data.layout.image_folder import scan_image_folder
from distrain.data.loading.loader import BatchReader
from distrain.data.loading.sampler import MicroBatch
from distrain.data.sources.base import TensorSource
from distrain.data.sources.files import FileSource
from distrain.data.sources.registry import choose_samples, open_sources
from distrain.data.transforms.pipeline import build_transforms
from distrain.errors import DataError, RecipeError


def write(root: Path, split: str, name: str, image: Image.Image) -> Path:
    file = root / split / name
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)
    return file


def gradient() -> Image.Image:
    rows, columns = np.mgrid[0:24, 0:32]
    return Image.fromarray(np.stack([rows * 8, columns * 8, rows + columns], axis=-1).astype(np.uint8))


def test_digits_ship_whole_with_every_class_in_both_splits() -> None:
    sources = open_sources(Data(source="digits", batch_size=1))
    for split, size in (("train", 1438), ("val", 359)):
        source = sources[split]
        assert isinstance(source, TensorSource)
        assert len(source) == size
        assert list(source.classes) == [str(digit) for digit in range(10)]
        assert (source.images.dtype, tuple(source.images.shape)) == (torch.uint8, (size, 1, 8, 8))
        assert source.images.max() == 255
        assert set(source.targets.tolist()) == set(range(10))
    assert sources["train"].fingerprint() != sources["val"].fingerprint()
    assert sources["train"].fingerprint() == open_sources(Data(source="digits", batch_size=1))["train"].fingerprint()


def test_validation_numbers_its_classes_as_training_does(tmp_path: Path) -> None:
    for name in ("ants", "bees", "cats"):
        write(tmp_path, "train", f"{name}/a.png", gradient())
    write(tmp_path, "test", "cats/a.png", gradient())
    val = FileSource(scan_image_folder(str(tmp_path))["val"])
    assert list(val.classes) == ["ants", "bees", "cats"]
    assert val.read(0)[1] == 2


def test_fingerprint_of_a_folder_changes_with_its_images_but_not_with_its_path(tmp_path: Path) -> None:
    for root in ("here", "there"):
        for split in ("train", "val"):
            write(tmp_path / root, split, "ants/a.png", gradient())
    here, there = (
        FileSource(scan_image_folder(str(tmp_path / root))["train"]).fingerprint() for root in ("here", "there")
    )
    assert here == there
    write(tmp_path / "there", "train", "ants/b.png", gradient())
    assert FileSource(scan_image_folder(str(tmp_path / "there"))["train"]).fingerprint() != here


def test_decode_size_makes_other_images_of_the_same_files_and_is_refused_where_there_are_none(tmp_path: Path) -> None:
    write(tmp_path, "train", "ants/a.jpg", gradient().resize((320, 240)))
    write(tmp_path, "val", "ants/a.jpg", gradient())
    config = Data(source="imagefolder", path=str(tmp_path), batch_size=1)
    whole = open_sources(config)["train"]
    small = open_sources(config.model_copy(update={"decode_size": 100}))["train"]
    assert whole.read(0)[0].shape == (3, 240, 320)
    assert small.read(0)[0].shape == (3, 120, 160)
    assert small.fingerprint() != whole.fingerprint()
    with pytest.raises(
        RecipeError, match=r"data\.decode_size=9 is for JPEGs in files, and data.source=digits has none"
    ):
        open_sources(Data(source="digits", batch_size=1, decode_size=9))


def test_augmented_image_depends_on_seed_and_sample_but_not_on_its_batch(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in "abcd":
            write(tmp_path, split, f"ants/{name}.png", gradient())  # the same picture: only the draws can differ
    source = FileSource(scan_image_folder(str(tmp_path))["train"])
    config = Augment.model_validate({"train": [{"RandomResizedCrop": {"size": 16}}, "ColorJitter"]})

    def read(indices: list[int], *, seed: int = 1, epoch: int = 0) -> list[torch.Tensor]:
        reader = BatchReader(source, build_transforms(config.train, key="augment.train"), seed=seed)
        batch = reader.read(MicroBatch(np.array(indices), epoch))
        assert not isinstance(batch, DataError)
        return list(batch[0])

    a, b, c, d = read([0, 1, 2, 3])
    assert all(torch.equal(one, other) for one, other in zip(read([3, 1]), [d, b], strict=True))
    assert torch.equal(read([2])[0], c)
    others = [b, c, d, read([0], seed=2)[0], read([0], epoch=1)[0]]
    assert not any(torch.equal(a, other) for other in others)


def test_chosen_samples_are_the_same_few_of_all_classes(tmp_path: Path) -> None:
    for name in ("ants", "bees"):
        for number in range(20):
            for split in ("train", "val"):
                write(tmp_path, split, f"{name}/{number}.png", Image.new("L", (4, 4), number))
    for config in (Data(source="digits", batch_size=1), Data(source="imagefolder", path=str(tmp_path), batch_size=1)):
        sources = open_sources(config)
        cut = config.model_copy(update={"train_samples": 12, "val_samples": 10**6})
        chosen = choose_samples(sources, cut, seed=3)
        again = choose_samples(open_sources(config), cut, seed=3)["train"]
        assert chosen["val"] is sources["val"]
        assert len(chosen["train"]) == 12
        assert list(chosen["train"].classes) == list(sources["train"].classes)
        labels = [chosen["train"].read(index)[1] for index in range(12)]
        assert len(set(labels)) > 1
        assert labels == [again.read(index)[1] for index in range(12)]
        assert chosen["train"].fingerprint() == again.fingerprint() != sources["train"].fingerprint()
        assert chosen["train"].fingerprint() != choose_samples(sources, cut, seed=4)["train"].fingerprint()
        assert choose_samples(sources, config, seed=3) == sources
