"""torchvision's datasets are opened by name: generated, from files in their own formats, or reported as missing."""

import bz2
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import datasets

from distrain.config import Data
from distrain.data.sources import torchvision
from distrain.data.sources.base import DatasetSource, Source, TensorSource
from distrain.data.sources.registry import choose_samples, open_sources
from distrain.errors import DataError, RecipeError
from tests.data.writing import gradient, write


def open_dataset(name: str, path: Path | None = None, **fields: Any) -> dict[str, Source]:
    place = None if path is None else str(path)
    wanted = {"source": f"torchvision.{name}", "path": place, "batch_size": 1, **fields}
    return open_sources(Data.model_validate(wanted))


def write_idx(file: Path, array: NDArray[np.uint8]) -> None:
    """Write MNIST's format: two zero bytes, the type, the number of dimensions, their sizes, the numbers."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes() + array.tobytes())


def test_generated_data_has_the_requested_size_and_other_images_for_validation() -> None:
    found = open_dataset("FakeData", arguments={"size": 7, "image_size": [3, 8, 9], "num_classes": 3})
    assert {split: len(source) for split, source in found.items()} == {"train": 7, "val": 7}
    image, label = found["train"].read(2)
    assert (tuple(image.shape), image.dtype) == ((3, 8, 9), torch.uint8)
    assert found["train"].classes == found["val"].classes == ["0", "1", "2"]
    assert label in (0, 1, 2)
    assert not torch.equal(image, found["val"].read(2)[0])
    assert torch.equal(image, open_dataset("FakeData", arguments={"image_size": [3, 8, 9]})["train"].read(2)[0])
    assert found["train"].fingerprint() != found["val"].fingerprint()


def test_mnist_is_in_memory_as_its_files_have_it(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for part, count in (("train", 5), ("t10k", 3)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(tmp_path / "MNIST" / "raw" / f"{part}-images-idx3-ubyte", images)
        write_idx(tmp_path / "MNIST" / "raw" / f"{part}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8))
    val = open_dataset("MNIST", tmp_path)["val"]
    assert isinstance(val, TensorSource)
    assert torch.equal(val.images, torch.from_numpy(images).unsqueeze(1))
    assert val.targets.tolist() == [0, 1, 2]
    assert val.classes[0] == "0 - zero"


def test_usps_without_names_has_its_ten_digits(tmp_path: Path) -> None:
    line = " ".join(f"{place}:{place / 128 - 1:.6f}" for place in range(1, 257))
    for name in ("usps.bz2", "usps.t.bz2"):
        (tmp_path / name).write_bytes(bz2.compress(f"10 {line}\n1 {line}\n".encode()))
    train = open_dataset("USPS", tmp_path)["train"]
    assert (len(train.classes), train.targets.tolist()) == (10, [9, 0])
    assert tuple(train.read(0)[0].shape) == (1, 16, 16)


def test_dataset_with_named_splits_reads_its_files(tmp_path: Path) -> None:
    for part, numbers in (("trainval", (1, 2)), ("test", (3,))):
        lines = [f"Persian_cat_{n} 1 1 1\n" for n in numbers]
        file = tmp_path / "oxford-iiit-pet" / "annotations" / f"{part}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(lines))
    for number in (1, 2, 3):
        write(tmp_path / "oxford-iiit-pet" / "images" / f"Persian_cat_{number}.jpg")
    found = open_dataset("OxfordIIITPet", tmp_path)
    assert {split: len(source) for split, source in found.items()} == {"train": 2, "val": 1}
    assert tuple(found["val"].read(0)[0].shape) == (3, 24, 32)
    write(tmp_path / "oxford-iiit-pet" / "images" / "Persian_cat_3.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"sample 0 of torchvision\.OxfordIIITPet cannot be read"):
        found["val"].read(0)


def test_dataset_without_a_split_needs_one_and_mixed_images_are_all_rgb(tmp_path: Path) -> None:
    folder = tmp_path / "caltech101"
    for name in ("BACKGROUND_Google", "ant", "bee"):
        for number in range(1, 5):
            image = gradient().convert("L") if number == 2 else gradient()
            write(folder / "101_ObjectCategories" / name / f"image_{number:04}.jpg", image)
    (folder / "Annotations").mkdir()
    found = open_dataset("Caltech101", tmp_path)
    assert found["train"].classes == ["ant", "bee"]
    assert {tuple(found["train"].read(index)[0].shape) for index in range(8)} == {(3, 24, 32)}
    config = Data(source="torchvision.Caltech101", path=str(tmp_path), batch_size=1)
    with pytest.raises(DataError, match=r"has no validation samples; .*data\.val_fraction"):
        choose_samples(found, config, seed=0)
    chosen = choose_samples(found, config.model_copy(update={"val_fraction": 0.25}), seed=0)
    assert chosen["val"].targets.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("FashionMnist", {}, "did you mean torchvision.FashionMNIST"),
        ("CocoDetection", {}, "is not a dataset of images and their classes; use torchvision. and one of CIFAR10"),
        ("FakeData", {"arguments": {"sise": 3}}, "torchvision.FakeData has no 'sise'"),
        ("FakeData", {"path": "/here"}, "FakeData is generated"),
        ("FakeData", {"target": "labels"}, "data.target=labels, but data.source=torchvision.FakeData has target class"),
        ("ImageNet", {}, "torchvision does not download ImageNet"),
        ("MNIST", {"path": "/nowhere"}, "MNIST is not available from /nowhere .*--data DIR"),
        ("EMNIST", {"path": "/nowhere", "arguments": {"split": "none"}}, "EMNIST is not available .*'none'"),
    ],
)
def test_dataset_that_is_not_available_is_one_sentence(name: str, fields: dict[str, Any], words: str) -> None:
    with pytest.raises((DataError, RecipeError), match=words) as caught:
        open_dataset(name, **fields)
    assert "\n" not in str(caught.value)


def test_download_without_a_network_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision, "CACHE", tmp_path)
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # where nothing listens
    for name in ("SVHN", "FashionMNIST"):
        with pytest.raises(DataError, match=rf"{name} is not available from .* or the network .*--data DIR") as caught:
            open_dataset(name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", torchvision.DATASETS)
def test_every_dataset_accepts_the_arguments_that_it_is_opened_with(name: str, tmp_path: Path) -> None:
    """Files are missing, so it fails with that error, not with one about an unknown argument."""
    if name == "FakeData":
        assert isinstance(open_dataset(name)["train"], DatasetSource)
        return
    assert hasattr(datasets, name)
    with pytest.raises(DataError) as caught:
        open_dataset(name, tmp_path)
    assert "argument" not in str(caught.value)
    assert "Unknown value" not in str(caught.value)


def test_image_of_one_bit_is_spread_over_three_channels() -> None:
    class Stamps:
        classes = ("a",)

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return gradient().convert("1"), 0

    image, _ = DatasetSource(Stamps(), name="mine:stamps").read(0)
    assert set(image.flatten().tolist()) == {0, 255}
    assert image.shape[0] == 3
