"""Learns masks: the class of each pixel."""

from collections.abc import Mapping

import torch
from torch import nn

from distrain.data.sources.base import Batch
from distrain.data.sources.targets import NO_CLASS
from distrain.errors import ModelError
from distrain.training.own_code import check_value
from distrain.training.tasks.protocol import CONFUSION, LOSS, Losses, Sums, TaskSetup


class Segmentation:
    """The loss of the recipe for each pixel, of networks that return logits [n, classes, height, width].

    Those of `torchvision.models.segmentation` return these as `out` in a dict. Pixels of a mask that are 255 have no
    class: they count neither in the loss nor in the metrics. The mean of the loss is over all pixels, those too, so
    that it does not depend on how a batch is split.
    """

    def setup(self, setup: TaskSetup) -> None:
        """Take the loss from the recipe."""
        self._loss = setup.loss
        self._classes = tuple(map(str, setup.classes))
        self._name = f"model.name={setup.recipe.model.name}"
        self._has_classes = "iou_per_class" in {part.key for part in setup.recipe.eval.metrics or ()}

    def loss(self, model: nn.Module, batch: Batch) -> Losses:
        """Return the mean over the pixels."""
        images, masks = batch
        logits = self._logits(model, images)
        return {LOSS: check_value(self._loss(logits, masks), self._loss, logits=logits)}

    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """Return the sum of the loss over the samples, and how many pixels of each class have been taken for which."""
        images, masks = batch
        logits, count = self._logits(model, images), len(self._classes)
        loss = check_value(self._loss(logits, masks), self._loss, logits=logits)
        truth = masks.long()
        places = torch.where(truth == NO_CLASS, count * count, truth * count + logits.argmax(dim=1)).flatten()
        cells = torch.zeros(count * count + 1, dtype=torch.int64, device=masks.device)
        cells.index_add_(0, places, torch.ones_like(places))
        return {LOSS: loss.double() * len(masks), CONFUSION: cells[:-1].view(count, count)}

    def predict(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Return logits [n, classes, height, width]."""
        return self._logits(model, images)

    def metrics(self, sums: Sums, num_samples: int) -> dict[str, float]:
        """Return the mean of the classes' intersections over unions, and the share of the pixels that are right.

        The mean is over the classes that are in a mask or in a prediction.
        """
        cells = sums[CONFUSION].double()
        hits = cells.diag()
        unions = cells.sum(dim=0) + cells.sum(dim=1) - hits
        ratios = hits / unions  # NaN for a class that is nowhere
        found = {
            LOSS: float(sums[LOSS]) / num_samples,
            "iou": float(ratios.nanmean()),
            "pixel_accuracy": float(hits.sum() / cells.sum()),
        }
        if self._has_classes:
            named = zip(self._classes, ratios.tolist(), unions.tolist(), strict=True)
            found |= {f"iou/{name}": ratio for name, ratio, union in named if union}
        return found

    def _logits(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        outputs = model(images)
        logits = outputs.get("out") if isinstance(outputs, Mapping) else outputs
        expected = (len(images), len(self._classes), *images.shape[-2:])
        if not (isinstance(logits, torch.Tensor) and logits.is_floating_point() and logits.shape == expected):
            seen = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise ModelError(
                f"{self._name} gives {seen} for images {list(images.shape)}, and task=segmentation needs logits "
                f"{list(expected)}: of each class for each pixel; use unet, or a factory of torchvision, such as "
                f"torchvision.models.segmentation:fcn_resnet50"
            )
        return logits
