"""What a recipe or its data will not do although it looks as if it did is said before the first step."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distrain.config import Recipe, load_recipe
from distrain.data.sources.base import DatasetSource, Source, TensorSource, subset
from distrain.data.sources.concat import concat
from distrain.errors import RecipeError
from distrain.launchers.prepare import check_schedule
from distrain.training.early_warnings import find_class_faults, find_double_weights, find_schedule_faults
from tests.cli_runner import fit


def recipe(*changes: str) -> Recipe:
    return load_recipe("digits", overrides=[*changes])


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ("{name: cosine, warmup_epochs: 10}", "10 (50 steps) is not over before the end (20 steps)"),
        ("{name: constant, warmup_epochs: 4.2}", "the learning rate rises to 0.0909 of 0.1 and no further"),
        (
            "{name: multistep, milestones_epochs: [2, 4, 6]}",
            "milestones_epochs: the learning rate would drop at epochs 4 and 6, but",
        ),
        (
            "{name: step, step_epochs: 7}",
            "step_epochs: the learning rate would drop at epoch 7, but the run ends after",
        ),
        ("{name: cosine, warmup_epochs: 3}", None),
        ("{name: multistep, milestones_epochs: [2, 3.7]}", None),
        ("{name: step, step_epochs: 3}", None),
        ("onecycle", None),
    ],
)
def test_schedule_that_lies_behind_the_end_is_told(schedule: str, words: str | None) -> None:
    changes = [f"schedule={schedule}"] if schedule.startswith("{") else []
    found = find_schedule_faults(recipe(*changes, "train.epochs=4"), steps_per_epoch=5, total_steps=20)
    assert len(found) == (words is not None)
    assert words is None or words in found[0]


def test_end_that_max_steps_sets_is_named() -> None:
    config = recipe("schedule={name: cosine, warmup_epochs: 5}", "train={epochs: 90, max_steps: 8}")
    (found,) = find_schedule_faults(config, steps_per_epoch=5, total_steps=8)
    assert "(train.max_steps=8)" in found
    check_schedule(config)


@pytest.mark.parametrize(
    ("schedule", "is_refused"),
    [
        ("{name: cosine, warmup_epochs: 4}", True),
        ("{name: cosine, warmup_epochs: 3.9}", False),
        ("{name: constant, warmup_epochs: 4}", False),
        ("{name: constant, warmup_epochs: 4.1}", True),
        ("{name: onecycle}", False),
    ],
)
def test_warm_up_that_takes_all_epochs_is_refused(schedule: str, is_refused: bool) -> None:
    config = recipe(f"schedule={schedule}", "train.epochs=4")
    if not is_refused:
        check_schedule(config)
        return
    with pytest.raises(RecipeError, match=r"warmup_epochs=.* train\.epochs=4.*--set schedule\.warmup_epochs=0"):
        check_schedule(config)


def source(labels: list[int] | torch.Tensor, classes: str = "abcd", **more: Any) -> Source:
    targets = torch.as_tensor(labels)
    return TensorSource(torch.zeros(len(targets), 1, 2, 2, dtype=torch.uint8), targets, [*classes], **more)


def test_classes_without_samples_are_told_once_a_split() -> None:
    whole = source([0, 1, 2, 3])
    assert find_class_faults({"train": whole, "val": whole}) == []
    found = find_class_faults({"train": source([0, 1, 1, 2]), "val": subset(whole, torch.tensor([1]))})
    assert found == [
        "class 'd' has no training samples: the network does not learn it",
        "3 classes ('a', 'c' and 'd') have no validation samples: the validation says nothing about them",
    ]
    many = source([0], "abcdefg")
    (_, other) = find_class_faults({"train": many, "val": concat([{"train": many}, {"train": many}])["train"]})
    assert other.startswith("6 classes ('b', 'c', 'd' and 3 more) have no validation samples")


def test_labels_that_no_sample_has_are_told() -> None:
    labels = source(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), "xy", target="labels")
    found = find_class_faults({"train": labels, "val": labels})
    assert found[0] == "label 'y' has no training samples: the network does not learn it"
    values = source(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), "xy", target="values")
    assert find_class_faults({"train": values, "val": values}) == []


def test_single_class_is_told() -> None:
    one = source([0, 0], "a")
    (found,) = find_class_faults({"train": one, "val": one})
    assert "a single class, 'a'" in found


class Unread:
    classes = ("a", "b")

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> object:
        raise AssertionError


def test_no_sample_is_read_to_count_classes() -> None:
    unread = DatasetSource(Unread(), name="mine:data")
    part = subset(unread, torch.tensor([0, 2]))
    assert find_class_faults({"train": unread, "val": part}) == []
    known = DatasetSource(Unread(), name="mine:data", targets=torch.tensor([0, 0, 0]))
    assert len(find_class_faults({"train": known, "val": subset(known, torch.tensor([0, 2]))})) == 2


def test_rare_classes_that_count_twice_are_told() -> None:
    both = recipe("data.sampling=balanced", "loss.class_weights=balanced")
    (found,) = find_double_weights(both)
    assert "remove one of the two" in found
    assert find_double_weights(recipe("data.sampling=balanced")) == []
    assert find_double_weights(recipe("loss.class_weights=balanced")) == []


def test_run_begins_with_what_it_forewarns_of(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "data.npz",
        train_images=rng.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8),
        train_labels=np.arange(40) % 3,
        val_images=rng.integers(0, 256, (8, 1, 8, 8), dtype=np.uint8),
        val_labels=np.arange(8) % 2,
    )
    changes = ["data.source=tensors", "data.batch_size=20", "train.epochs=2", "loss.class_weights=balanced"]
    changes += ["data.sampling=balanced", "schedule={name: step, step_epochs: 9}"]
    done = fit("digits", "--data=data.npz", *(f"--set={change}" for change in changes), "--run=run", cwd=tmp_path)
    for words in ("class '2' has no validation samples", "would drop at epoch 9", "count twice over"):
        assert done.out.count(words) == 1
    assert done.out.index("count twice over") < done.out.index("epoch 1/2")
