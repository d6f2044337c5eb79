"""The samples of several sources are concatenated; a class has the same number in all of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from distrain.config import Data
from distrain.config.metrics import Target
from distrain.data.loading.loader import BatchReader
from distrain.data.loading.sampler import MicroBatch
from distrain.data.sources.base import Source, TensorSource
from distrain.data.sources.concat import concat
from distrain.data.sources.registry import choose_samples, open_sources
from distrain.errors import DataError, UserError
from tests.data.writing import write


def part(classes: list[str], targets: list[object], *, pixel: int, target: Target = "class") -> dict[str, Source]:
    images = torch.full((len(targets), 1, 2, 2), pixel, dtype=torch.uint8)
    return {"train": TensorSource(images, torch.tensor(targets), classes, target=target)}


def read_all(source: Source) -> tuple[list[int], list[object]]:
    batch = BatchReader(source, None, seed=0).read(MicroBatch(np.arange(len(source))))
    assert not isinstance(batch, DataError)
    return batch[0][:, 0, 0, 0].tolist(), batch[1].tolist()


def test_classes_of_one_name_have_one_number_and_new_ones_come_last() -> None:
    parts = [part(["cat", "dog"], [0, 1, 1], pixel=1), part(["ant", "dog"], [0, 1], pixel=2)]
    train = concat(parts)["train"]
    assert list(train.classes) == ["cat", "dog", "ant"]
    assert read_all(train) == ([1, 1, 1, 2, 2], [0, 1, 1, 2, 1])
    assert train.targets.tolist() == [0, 1, 1, 2, 1]
    assert [train.describe(index) for index in (2, 3)] == ["sample 2", "sample 0"]
    assert train.fingerprint() == concat(parts)["train"].fingerprint() != concat(parts[::-1])["train"].fingerprint()


def test_labels_missing_in_a_source_are_absent_and_values_are_matched() -> None:
    labels = concat(
        [
            part(["a", "b"], [[1.0, 0.0]], pixel=1, target="labels"),
            part(["c", "a"], [[1.0, 1.0]], pixel=2, target="labels"),
        ]
    )["train"]
    assert (labels.target, read_all(labels)[1]) == ("labels", [[1, 0, 0], [1, 0, 1]])
    values = concat(
        [
            part(["x", "y"], [[1.0, 2.0]], pixel=1, target="values"),
            part(["y", "x"], [[3.0, 4.0]], pixel=2, target="values"),
        ]
    )["train"]
    assert read_all(values)[1] == [[1, 2], [4, 3]]


def test_incompatible_sources_are_refused() -> None:
    with pytest.raises(DataError, match="targets of different kinds: class, labels"):
        concat([part(["a"], [0], pixel=1), part(["a"], [[1.0]], pixel=1, target="labels")])
    with pytest.raises(DataError, match="no value 'y'"):
        concat([part(n, [[1.0] * len(n)], pixel=1, target="values") for n in (["x", "y"], ["x"])])
    different = {**part(["a"], [0], pixel=1), "val": part(["b"], [0], pixel=1)["train"]}
    with pytest.raises(DataError, match="train and val splits of the data have different classes"):
        concat([different])


def test_recipe_adds_sources_of_any_kind_with_or_without_a_split(tmp_path: Path) -> None:
    for place in ("train/cat", "train/dog", "val/dog"):
        write(tmp_path / "folder" / place / "1.png")
    for name in ("dog_image", "ant_image"):
        write(tmp_path / "more" / name / "1.png")
    config = Data.model_validate(
        {
            "source": "imagefolder",
            "path": str(tmp_path / "folder"),
            "more": [{"source": "labelfolders", "path": str(tmp_path / "more")}],
            "batch_size": 1,
        }
    )
    chosen = choose_samples(open_sources(config), config, seed=0)
    assert list(chosen["train"].classes) == list(chosen["val"].classes) == ["cat", "dog", "ant"]
    assert (chosen["train"].targets.tolist(), chosen["val"].targets.tolist()) == ([0, 1, 2, 1], [1])
    split = config.model_copy(update={"val_fraction": 0.5, "train_samples": 2})
    chosen = choose_samples(open_sources(split), split, seed=0)
    assert chosen["val"].targets.tolist() == [1]
    assert len(chosen["train"]) == 2
    with pytest.raises(UserError, match=r"data.target=labels, but data.source=imagefolder has target class"):
        open_sources(config.model_copy(update={"target": "labels"}))
