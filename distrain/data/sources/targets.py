"""Checks the targets of samples: classes, labels, values and masks."""

from collections.abc import Callable, Sequence

import torch

from distrain.config.metrics import Target
from distrain.errors import DataError
from distrain.messages import counted

NO_CLASS = 255  # in a mask: a pixel that counts neither in the loss nor in a metric


def check_targets(
    targets: torch.Tensor, classes: Sequence[str], target: Target, *, describe: Callable[[int], str]
) -> None:
    """Raise `DataError` for targets that are not class numbers, not 0 and 1, or not finite; `describe` names one."""
    count = len(classes)
    shape = targets.shape[1:]
    if target == "mask":
        bad = (((targets < 0) | (targets >= count)) & (targets != NO_CLASS)).flatten(1).any(dim=1)
    elif target == "class":
        bad = (targets < 0) | (targets >= count) if not shape else torch.ones(len(targets), dtype=torch.bool)
    elif shape != (count,):
        raise DataError(
            f"{describe(0)} has {target} of shape {list(shape)}; use {counted(count, 'number')}, one for each name"
        )
    else:
        bad = ~(targets.isfinite() if target == "values" else (targets == 0) | (targets == 1)).all(dim=1)
    if not bad.any():
        return
    index = int(bad.nonzero()[0])
    seen = targets[index].tolist()
    if target == "class":
        raise DataError(f"{describe(index)} has label {seen}, outside 0 to {count - 1}, the numbers of its classes")
    if target == "mask":
        raise DataError(f"{describe(index)} has a mask with numbers outside 0 to {count - 1}, those of its classes")
    fault = "labels other than 0 and 1" if target == "labels" else "values that are not finite"
    raise DataError(f"{describe(index)} has {fault}: {seen}")


def to_mask(
    target: torch.Tensor, image: torch.Tensor, classes: Sequence[str], *, describe: Callable[[], str]
) -> torch.Tensor:
    """Return a mask as uint8 [height, width]; raises `DataError` where it does not fit the image or the classes."""
    size, height_width = list(target.shape), list(image.shape[-2:])
    if size != height_width:
        raise DataError(f"{describe()} has a mask {_size(size)} and an image {_size(height_width)}; make them alike")
    if target.is_floating_point() or target.is_complex():
        raise DataError(f"{describe()} has a mask of {target.dtype}; use whole numbers, those of the classes")
    bad = ((target < 0) | (target >= len(classes))) & (target != NO_CLASS)
    if bad.any():
        raise DataError(
            f"{describe()} has {int(target[bad][0])} in its mask, outside 0 to {len(classes) - 1}, the numbers of its "
            f"classes, and {NO_CLASS}, which marks pixels that do not count"
        )
    return target.to(torch.uint8)


def _size(size: Sequence[int]) -> str:
    return "x".join(map(str, size))
