"""Predicts many files: decodes in parallel, computes in batches, and reports in the order of the paths."""

import heapq
from collections.abc import Generator, Iterable
from dataclasses import dataclass

import torch

from distrain.errors import BundleError
from distrain.export.bundle import Bundle
from distrain.export.read_images import prepare_in_order


@dataclass(frozen=True)
class Prediction:
    """The result for a file: a probability or a value for each output, or the sentence that says why there is none."""

    image: str
    values: tuple[float, ...] = ()
    error: str | None = None


def predict_files(
    bundle: Bundle, paths: Iterable[str], *, batch_size: int, num_workers: int
) -> Generator[list[Prediction], None, None]:
    """Yield the predictions of the files in their order, a batch at a time; close the generator to stop early.

    A file that cannot be read is not in a batch but reported in order, so that the batches, and therefore the bits of
    the results, do not depend on `num_workers`, the number of processes that decode.
    """
    batch: list[tuple[str, torch.Tensor | str]] = []
    num_good = 0
    prepared = prepare_in_order(bundle, paths, num_workers=num_workers, num_ahead=batch_size + 2 * num_workers)
    try:
        for path, image in prepared:
            batch.append((path, image))
            num_good += isinstance(image, torch.Tensor)
            if num_good == batch_size:
                yield _predict(bundle, batch)
                batch, num_good = [], 0
        if batch:
            yield _predict(bundle, batch)
    finally:
        prepared.close()


def best_outputs(values: tuple[float, ...], number: int) -> list[int]:
    """Return the `number` outputs with the highest values, in descending order; equal ones by index."""
    return heapq.nsmallest(number, range(len(values)), key=lambda output: (-values[output], output))


def _predict(bundle: Bundle, batch: list[tuple[str, torch.Tensor | str]]) -> list[Prediction]:
    images = [image for _, image in batch if isinstance(image, torch.Tensor)]
    found = bundle.predict_prepared(torch.stack(images)) if images else torch.empty(0, len(bundle.classes))
    if found.shape[1:] != (len(bundle.classes),):
        what = "a mask" if bundle.description.target == "mask" else f"{list(found.shape[1:])} numbers"
        raise BundleError(
            f"the network gives {what} for each image, which is not printed; in Python, the `predict` of a bundle "
            f"returns it"
        )
    rows = iter(found.tolist())
    return [
        Prediction(path, error=image) if isinstance(image, str) else Prediction(path, tuple(next(rows)))
        for path, image in batch
    ]
