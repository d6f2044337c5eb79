"""Targets of every kind are text: for a caption, an alternative text, a table."""

from typing import Any

import numpy as np
import pytest

from distrain.config.metrics import Target
from distrain.data.sources.outputs import format_target

NAMES = ["cat", "dog", "cow"]


@pytest.mark.parametrize(
    ("value", "target", "text"),
    [
        (np.int64(1), "class", "dog"),
        (np.array([0.25, 0, 0.75], dtype=np.float32), "class", "mixed: 75.0% cow, 25.0% cat"),
        (np.array([0, 1, 0], dtype=np.float32), "class", "dog"),
        (np.array([1, 0, 1], dtype=np.float32), "labels", "cat, cow"),
        (np.zeros(3), "labels", "none"),
        (np.array([0.5, -3, 123456.7]), "values", "cat 0.5, dog -3, cow 1.235e+05"),
    ],
)
def test_targets_are_text(value: Any, target: Target, text: str) -> None:
    assert format_target(value, target, NAMES) == text


def test_shares_of_a_single_class_are_that_class() -> None:
    assert format_target(np.ones(1, dtype=np.float32), "class", ["only"]) == "only"
