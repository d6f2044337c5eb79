"""Files of arrays hold images and targets; an error names what is missing in them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from distrain.config import Data
from distrain.data.layout.checks import check_requirements
from distrain.data.sources.arrays import read_tensors
from distrain.data.sources.base import Source, TensorSource
from distrain.errors import DataError, UserError

IMAGES = torch.randint(256, (6, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def config(path: Path, **fields: Any) -> Data:
    return Data.model_validate({"source": "tensors", "path": str(path), "batch_size": 1, **fields})


def save(file: Path, arrays: dict[str, torch.Tensor], classes: list[str] | None = None) -> Path:
    if file.suffix == ".npz":
        named = {} if classes is None else {"classes": np.array(classes)}
        np.savez(file, **{name: array.numpy() for name, array in arrays.items()}, **named)  # type: ignore[arg-type]
    elif file.suffix == ".pt":
        torch.save({**arrays, **({} if classes is None else {"classes": classes})}, file)
    else:
        save_file(arrays, file, metadata=None if classes is None else {"classes": json.dumps(classes)})
    return file


def splits(labels: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "train_images": IMAGES[:4].clone(),
        "train_labels": labels[:4].clone(),
        "val_images": IMAGES[4:].clone(),
        "val_labels": labels[4:].clone(),
    }


def held(source: Source) -> TensorSource:
    assert isinstance(source, TensorSource)
    return source


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_a_note_reports_that_test_images_are_used_for_validation(tmp_path: Path, suffix: str) -> None:
    arrays = splits(torch.tensor([0, 1, 1, 0, 2, 1]))
    file = save(
        tmp_path / f"a.{suffix}", {name.replace("val_", "test_"): array for name, array in arrays.items()}, None
    )
    assert check_requirements(config(file)) == [f"{file} has no val_images: validating on test_images"]
    file = save(tmp_path / f"b.{suffix}", arrays, None)
    assert check_requirements(config(file)) == []


@pytest.mark.parametrize("suffix", ["npz", "pt", "safetensors"])
@pytest.mark.parametrize("classes", [None, ["x", "y", "z"]])
def test_images_and_classes_are_read_as_they_were_saved(tmp_path: Path, suffix: str, classes: list[str] | None) -> None:
    file = save(tmp_path / f"a.{suffix}", splits(torch.tensor([0, 1, 1, 0, 2, 1])), classes)
    check_requirements(config(file))
    found = read_tensors(config(file))
    assert torch.equal(held(found["train"]).images, IMAGES[:4])
    assert torch.equal(held(found["val"]).images, IMAGES[4:])
    assert held(found["val"]).targets.tolist() == [2, 1]
    assert found["train"].classes == found["val"].classes == (classes or ["0", "1", "2"])
    assert found["train"].fingerprint() != found["val"].fingerprint()
    assert set(read_tensors(config(file, val_fraction=0.5))) == {"train"}


@pytest.mark.parametrize("suffix", ["npz", "pt", "safetensors"])
def test_labels_and_values_are_numbers_for_each_output(tmp_path: Path, suffix: str) -> None:
    labels = torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0], [1, 1], [0, 1]], dtype=torch.uint8)
    found = read_tensors(config(save(tmp_path / f"a.{suffix}", splits(labels)), target="labels"))
    assert torch.equal(held(found["train"]).targets, labels[:4].float())
    assert list(found["val"].classes) == ["label_0", "label_1"]
    values = torch.linspace(-1, 1, 6)
    found = read_tensors(config(save(tmp_path / f"b.{suffix}", splits(values)), target="values"))
    assert torch.equal(held(found["train"]).targets, values[:4].unsqueeze(1))


def test_images_without_a_split_are_training_samples(tmp_path: Path) -> None:
    file = save(tmp_path / "a.npz", {"images": IMAGES, "labels": torch.arange(6)})
    assert {split: len(source) for split, source in read_tensors(config(file)).items()} == {"train": 6}
    with pytest.raises(DataError, match=r"add val_images and val_labels, or split some off .*data.val_fraction"):
        check_requirements(config(file))


LABELS = torch.zeros(6, dtype=torch.int64)


@pytest.mark.parametrize("suffix", ["npz", "pt", "safetensors"])
@pytest.mark.parametrize(
    ("change", "fields", "words"),
    [
        ({"train_images": None}, {}, "has no train_images; it contains train_labels, val_images, val_labels"),
        ({"val_labels": None}, {}, "has val_images but no val_labels"),
        ({"train_labels": LABELS[:3]}, {}, "has 4 images but 3 labels for train"),
        ({"train_images": IMAGES[:4].float()}, {}, r"train_images is float32 \[4, 3, 4, 5\]; use uint8"),
        ({"train_images": IMAGES[:4, 0].clone()}, {}, r"train_images is uint8 \[4, 4, 5\]"),
        ({"train_images": torch.zeros(4, 8, 8, 3, dtype=torch.uint8)}, {}, "with the channels last"),
        ({"train_labels": torch.zeros(4)}, {}, r"train_labels is float32 \[4\]; use whole numbers"),
        ({"train_labels": LABELS[:4] - 1}, {}, "sample 0 has label -1, outside 0 to 0"),
        ({}, {"target": "labels"}, r"train_labels is int64 \[4\]; data.target=labels needs numbers \[n, labels\]"),
        ({"train_labels": torch.full((4, 1), 2), "val_labels": LABELS[:2, None]}, {"target": "labels"}, "other than 0"),
        ({"train_labels": torch.full((4,), torch.nan)}, {"target": "values"}, "values that are not finite"),
        ({"train_labels": torch.zeros(4, 2)}, {"target": "values"}, r"has values of shape \[1\]; use 2 numbers"),
    ],
)
def test_bad_arrays_are_one_sentence(
    tmp_path: Path, suffix: str, change: dict[str, torch.Tensor | None], fields: dict[str, Any], words: str
) -> None:
    arrays = {name: array for name, array in {**splits(LABELS), **change}.items() if array is not None}
    wanted = config(save(tmp_path / f"a.{suffix}", arrays), **fields)
    with pytest.raises(UserError, match=words) as caught:
        check_requirements(wanted)
        read_tensors(wanted)
    assert "\n" not in str(caught.value)


def test_error_names_a_file_that_does_not_hold_arrays(tmp_path: Path) -> None:
    for name, words in {"a.bin": "an unknown suffix", "none.npz": "does not exist"}.items():
        (tmp_path / "a.bin").touch()
        with pytest.raises(DataError, match=words):
            read_tensors(config(tmp_path / name))
    for suffix in ("npz", "pt", "safetensors"):
        (tmp_path / f"a.{suffix}").write_bytes(b"no arrays")
        with pytest.raises(DataError, match=f"a.{suffix} (cannot be read|holds more)"):
            read_tensors(config(tmp_path / f"a.{suffix}"))
    torch.export.save(torch.export.export(torch.nn.Linear(1, 1), (torch.zeros(1, 1),)), tmp_path / "a.pt")
    with pytest.raises(DataError, match=r"a\.pt is a torch\.export program, which contains code beside its tensors"):
        read_tensors(config(tmp_path / "a.pt"))
    torch.save({"train_images": Path("a")}, tmp_path / "a.pt")  # an object of any class could run code
    with pytest.raises(DataError, match="holds more than tensors, lists and strings"):
        read_tensors(config(tmp_path / "a.pt"))
    torch.save(IMAGES, tmp_path / "a.pt")
    with pytest.raises(DataError, match="holds Tensor, not a dict"):
        read_tensors(config(tmp_path / "a.pt"))
