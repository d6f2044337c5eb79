"""Files are predicted in order, whatever the batch size and number of processes, and a bad file affects no other."""

import os
import signal
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
import torch

from distrain.export.predict import best_outputs, predict_files
from distrain.export.read_images import ImageInput
from tests.export.factories import make_bundle, write_digits


@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 1), (4, 3), (64, 2)])
def test_order_is_the_order_of_the_files(tmp_path: Path, batch_size: int, num_workers: int) -> None:
    bundle = make_bundle()
    files = write_digits(tmp_path, 9)
    files[2].write_text("no picture")
    files.insert(7, tmp_path / "missing.png")
    paths = [str(file) for file in files]
    batches = list(predict_files(bundle, paths, batch_size=batch_size, num_workers=num_workers))
    found = list(chain.from_iterable(batches))
    assert [prediction.image for prediction in found] == paths
    assert [place for place, prediction in enumerate(found) if prediction.error] == [2, 7]
    assert sum(not p.error for p in batches[0]) == min(batch_size, 8)
    for prediction in found:
        if not prediction.error:
            assert prediction.values == pytest.approx(bundle.predict([prediction.image])[0].tolist(), abs=1e-6)


def test_image_that_crashes_its_reader_is_reported_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle()
    paths = [str(file) for file in write_digits(tmp_path, 6)]
    prepare = bundle.prepare

    def die_of_one(picture: ImageInput) -> torch.Tensor:
        if picture == paths[3]:
            os.kill(os.getpid(), signal.SIGKILL)
        return prepare(picture)

    monkeypatch.setattr(bundle, "prepare", die_of_one)
    found = list(chain.from_iterable(predict_files(bundle, paths, batch_size=4, num_workers=2)))
    assert [prediction.image for prediction in found] == paths
    [(place, error)] = [(place, prediction.error) for place, prediction in enumerate(found) if prediction.error]
    reason = "reading it crashed the process: it was killed by SIGKILL"
    assert (place, error) == (3, f"image {paths[3]} cannot be read ({reason}); fix or remove it")


def test_files_are_read_only_a_little_ahead(tmp_path: Path) -> None:
    paths = [str(path) for path in write_digits(tmp_path, 30)]
    taken: list[str] = []

    def take() -> Iterator[str]:
        for path in paths:
            taken.append(path)
            yield path

    batches = predict_files(make_bundle(), take(), batch_size=2, num_workers=2)
    assert len(next(batches)) == 2
    assert len(taken) < 12
    batches.close()


def test_best_outputs_of_equals_are_the_first() -> None:
    assert best_outputs((0.1, 0.4, 0.1, 0.4), 3) == [1, 3, 0]
