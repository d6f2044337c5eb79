"""A pack is a source like the one it was made from: the same images to the bit, classes, targets and names."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from distrain.data.layout.checks import check_requirements
from distrain.data.loading.loader import BatchReader
from distrain.data.loading.sampler import MicroBatch
from distrain.data.sources.base import Source, TensorSource
from distrain.data.sources.class_counts import class_counts
from distrain.data.sources.registry import choose_samples, open_sources
from distrain.errors import RecipeError, UserError
from tests.data.packing.packs import data, make_folder, noise, opened, pack
from tests.data.writing import gradient, write


def assert_equal(one: Source, other: Source) -> None:
    assert len(one) == len(other)
    for index in range(len(one)):
        (image, target), (image_too, target_too) = one.read(index), other.read(index)
        assert torch.equal(image, image_too)
        assert torch.equal(torch.as_tensor(target), torch.as_tensor(target_too))


def make_zoo(root: Path) -> Path:
    """Write one image of each kind that is decoded differently."""
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    folder = root / "train" / "zoo"
    folder.mkdir(parents=True)
    noise(1).save(folder / "plain.jpg")
    noise(2).save(folder / "turned.jpg", exif=turned)
    noise(3).convert("L").save(folder / "grey.jpg")
    noise(4).convert("CMYK").save(folder / "cmyk.jpg")
    noise(5).save(folder / "progressive.jpg", progressive=True)
    noise(6).convert("RGBA").save(folder / "clear.png")
    gradient().convert("P").save(folder / "palette.gif")
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100).save(folder / "deep.png")
    return root


def test_pixel_pack_gives_the_images_of_the_folder_to_the_bit(tmp_path: Path) -> None:
    folder = make_zoo(tmp_path / "photos")
    outcome = pack(folder, tmp_path / "packed", format="pixels")
    one, other = opened(folder)["train"], opened(tmp_path / "packed")["train"]
    assert_equal(one, other)
    assert outcome.pack.splits["train"].num_changed == 0
    assert other.fingerprint() == one.fingerprint()


def test_jpeg_pack_copies_plain_files_and_reencodes_others(tmp_path: Path) -> None:
    folder = make_zoo(tmp_path / "photos")
    outcome = pack(folder, tmp_path / "packed", quality=100)
    one, other = opened(folder)["train"], opened(tmp_path / "packed")["train"]
    assert outcome.pack.splits["train"].num_changed == 4  # turned, clear, palette, deep
    assert other.fingerprint() != one.fingerprint()
    stored = (tmp_path / "packed" / "train-00000.bin").read_bytes()
    for index in range(len(one)):
        (image, _), (image_too, _) = one.read(index), other.read(index)
        is_copied = Path(one.describe(index)).read_bytes() in stored
        assert is_copied == (Path(one.describe(index)).stem in {"plain", "grey", "cmyk", "progressive"})
        assert torch.equal(image, image_too) if is_copied else image.shape == image_too.shape


def test_packed_jpegs_are_decoded_at_the_same_size_as_those_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    write(folder / "train" / "zoo" / "a.jpg", gradient().resize((320, 240)))
    pack(folder, tmp_path / "packed")
    pack(folder, tmp_path / "pixels", format="pixels")
    one, other = (open_sources(data(path, decode_size=100))["train"] for path in (folder, tmp_path / "packed"))
    assert one.read(0)[0].shape == (3, 120, 160)
    assert_equal(one, other)
    assert one.fingerprint() == other.fingerprint()
    with pytest.raises(RecipeError, match=r"decode_size=100 is for JPEGs, but .*pixels holds pixels"):
        open_sources(data(tmp_path / "pixels", decode_size=100))


def test_images_no_larger_than_the_size_are_copied_and_others_are_resized_as_the_transform_does(tmp_path: Path) -> None:
    from torchvision.transforms import v2

    folder = make_folder(tmp_path / "photos")
    assert pack(folder, tmp_path / "same", size=72).pack.splits["train"].num_changed == 0
    assert_equal(opened(folder)["train"], opened(tmp_path / "same")["train"])
    pack(folder, tmp_path / "smaller", size=64, format="pixels")
    pack(folder, tmp_path / "square", size=80, square=True, format="pixels")
    resize = v2.Resize(64, antialias=True)
    square = v2.Compose([v2.Resize(80, antialias=True), v2.CenterCrop(80)])
    for index in range(6):
        image = opened(folder)["train"].read(index)[0]
        assert torch.equal(opened(tmp_path / "smaller")["train"].read(index)[0], resize(image))
        assert torch.equal(opened(tmp_path / "square")["train"].read(index)[0], square(image))


@pytest.mark.parametrize("size", [32, 80])  # stored channel by channel, and pixel by pixel
def test_pixels_of_one_size_are_one_mapped_tensor(tmp_path: Path, size: int) -> None:
    folder = make_folder(tmp_path / "photos")
    pack(folder, tmp_path / "packed", format="pixels", size=size, square=True)
    source = opened(tmp_path / "packed")["train"]
    assert isinstance(source, TensorSource)
    images, targets = source.images, source.targets
    assert images.shape == (6, 3, size, size)
    batch = BatchReader(source, None, seed=0).read(MicroBatch(np.array([4, 1])))
    assert isinstance(batch, tuple)
    assert torch.equal(batch[0], torch.stack([images[4], images[1]]))
    assert batch[0].is_contiguous()
    assert batch[1].tolist() == [int(targets[4]), int(targets[1])]
    part = choose_samples({"train": source}, data(folder, val_fraction=0.5), seed=0)["train"]
    assert not isinstance(part, TensorSource)  # a part of a file larger than the memory is not copied there
    assert part.describe(0).endswith(f" of {tmp_path / 'packed'}")
    images[0] += 1  # a transform in place must never reach the file
    assert not torch.equal(opened(tmp_path / "packed")["train"].read(0)[0], images[0])


@pytest.mark.parametrize("form", ["jpeg", "pixels"])
def test_any_threads_and_forked_processes_read_the_same(tmp_path: Path, form: str) -> None:
    folder = make_folder(tmp_path / "photos")
    pack(folder, tmp_path / "packed", format=form)
    source = opened(tmp_path / "packed")["train"]
    expected = [opened(folder)["train"].read(index)[0].sum().item() for index in range(6)]

    def sums(_: int = 0) -> list[float]:
        return [source.read(index)[0].sum().item() for index in range(6)]

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(sums, range(16))) == [expected] * 16
    queue = multiprocessing.get_context("fork").SimpleQueue()
    process = multiprocessing.get_context("fork").Process(target=lambda: queue.put(sums()))
    process.start()
    process.join(60)
    assert queue.get() == expected


@pytest.mark.parametrize("target", ["labels", "values"])
def test_manifest_keeps_its_targets(tmp_path: Path, target: str) -> None:
    for name in "abc":
        write(tmp_path / f"{name}.png")
    table = tmp_path / "all.csv"
    table.write_text("path,label_x,label_y,split\na.png,1,0,train\nb.png,0,0,train\nc.png,1,1,val\n")
    fields: dict[str, Any] = {"source": "manifest", "target": target}
    pack(table, tmp_path / "packed", format="pixels", **fields)
    for source in ("manifest", "packed", "imagefolder"):
        found = opened(tmp_path / "packed", source=source, target=target)
        assert found["train"].targets.tolist() == [[1, 0], [0, 0]]
        assert (found["val"].target, list(found["val"].classes)) == (target, ["x", "y"])
        assert found["val"].targets.dtype == torch.float32
    assert found["train"].describe(1) == f"b.png of {tmp_path / 'packed'}"
    with pytest.raises(UserError, match=f"data.target=class, but data.source=packed has target {target}"):
        check_requirements(data(tmp_path / "packed", source="packed"))


def test_tensors_are_packed_with_the_channels_that_they_have(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 9), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=np.arange(5) % 2)
    pack(tmp_path / "a.npz", tmp_path / "pixels", source="tensors", format="pixels")
    one, other = opened(tmp_path / "a.npz", source="tensors")["train"], opened(tmp_path / "pixels")["train"]
    assert_equal(one, other)
    assert other.fingerprint() == one.fingerprint()
    pack(tmp_path / "a.npz", tmp_path / "jpeg", source="tensors")
    assert opened(tmp_path / "jpeg")["train"].read(0)[0].shape == (1, 8, 9)


def test_pack_can_be_concatenated_split_and_checked(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "photos")
    pack(folder, tmp_path / "packed")
    both = opened(folder, more=[{"source": "packed", "path": str(tmp_path / "packed")}])["train"]
    assert (len(both), list(both.classes), class_counts(both).tolist()) == (12, ["ants", "käfer"], [6, 6])
    assert torch.equal(both.read(1)[0], both.read(7)[0])
    halves = [
        choose_samples(opened(path, val_fraction=0.5), data(path, val_fraction=0.5), seed=3)
        for path in (folder, tmp_path / "packed")
    ]
    for split in ("train", "val"):
        assert_equal(halves[0][split], halves[1][split])
    check_requirements(data(tmp_path / "packed"))


def test_one_image_and_an_empty_split_are_packed(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"train_images": np.zeros((1, 3, 4, 4), np.uint8), "train_labels": [0]}
    np.savez(tmp_path / "a.npz", **arrays, val_images=np.zeros((0, 3, 4, 4), np.uint8), val_labels=np.zeros(0, int))
    for form in ("pixels", "jpeg"):
        pack(tmp_path / "a.npz", tmp_path / form, source="tensors", format=form)
        found = opened(tmp_path / form)
        assert {split: len(source) for split, source in found.items()} == {"train": 1, "val": 0}
        assert found["train"].read(0)[0].tolist() == np.zeros((3, 4, 4)).tolist()
