"""Learns from targets: the loss of the recipe between the outputs of the network and classes, labels or values."""

import torch
from torch import nn

from distrain.data.sources.base import Batch
from distrain.training.own_code import check_outputs, check_value, with_checks
from distrain.training.tasks.protocol import LOSS, OUTPUTS, Losses, Sums, TaskSetup
from distrain.training.test_time_augmentation import predict_with_tta


class Classification:
    """The loss of the recipe; the outputs of an image may be averaged over several views of it in evaluation."""

    def setup(self, setup: TaskSetup) -> None:
        """Take the loss and the views from the recipe."""
        self._loss = setup.loss
        self._views = setup.recipe.eval
        self._num_outputs = len(setup.classes)
        self._train_loss = with_checks(setup.recipe, setup.network, setup.loss, num_outputs=self._num_outputs)

    def loss(self, model: nn.Module, batch: Batch) -> Losses:
        """Return the loss of the outputs in training."""
        images, targets = batch
        return {LOSS: self._train_loss(model(images), targets)}

    def label_loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the same of outputs in training that are known already."""
        return self._train_loss(outputs, targets)

    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """Return the sum of the loss, and the outputs."""
        images, targets = batch
        outputs = self.predict(model, images)
        loss = check_value(self._loss(outputs, targets), self._loss, logits=outputs)
        return {LOSS: loss.double() * len(targets), OUTPUTS: outputs}

    def predict(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Return outputs [n, outputs]: logits of classes or labels, or values."""

        def predict(view: torch.Tensor) -> torch.Tensor:
            return check_outputs(model(view), model, num_samples=len(view), num_outputs=self._num_outputs)

        return predict_with_tta(predict, images, self._views)
