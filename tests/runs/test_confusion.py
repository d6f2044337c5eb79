import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sk

from distrain.runs.confusion import confused_pairs, read_confusion, results_of_classes

# Three cats (one taken for a dog), two dogs (both right), no bird, though a cat was once taken for one.
CONFUSION = np.array([[2, 1, 1], [0, 2, 0], [0, 0, 0]])
NAMES = ["cat", "dog", "bird"]


def test_accuracy_precision_and_f1_of_each_class() -> None:
    cat, dog, bird = results_of_classes(NAMES, CONFUSION)
    assert (cat.samples, cat.accuracy, cat.precision) == (4, 0.5, 1.0)
    assert cat.f1 == pytest.approx(2 * 0.5 * 1.0 / 1.5)
    assert dog.accuracy == 1.0
    assert dog.precision == pytest.approx(2 / 3)
    assert (bird.samples, bird.accuracy, bird.precision, bird.f1) == (0, None, 0.0, 0.0)


def test_confused_pairs_are_sorted_by_count() -> None:
    assert confused_pairs(NAMES, CONFUSION + np.array([[0, 4, 0], [3, 0, 0], [0, 0, 0]]), 2) == [
        ("cat", "dog", 5),
        ("dog", "cat", 3),
    ]
    assert confused_pairs(NAMES, np.eye(3, dtype=np.int64), 5) == []


def test_shares_are_those_of_scikit_learn() -> None:
    draws = np.random.default_rng(2)
    truth, answers = draws.integers(0, 3, 60), draws.integers(0, 3, 60)
    precision, recall, f1, samples = sk.precision_recall_fscore_support(truth, answers)
    for label, row in enumerate(results_of_classes(NAMES, sk.confusion_matrix(truth, answers))):
        assert row.samples == samples[label]
        found = (row.precision, row.accuracy, row.f1)  # the accuracy of a class is its recall
        assert found == pytest.approx((precision[label], recall[label], f1[label]))


def test_matrix_that_is_larger_than_its_classes_allow_is_not_unpacked(tmp_path: Path) -> None:
    file = tmp_path / "answers.npz"
    np.savez_compressed(file, confusion=CONFUSION)
    found = read_confusion(file, NAMES)
    assert found is not None and found.counts.tolist() == CONFUSION.tolist()
    np.savez_compressed(file, confusion=np.zeros((2000, 2000), np.int64))
    tracemalloc.start()
    try:
        assert read_confusion(file, NAMES) is None
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
