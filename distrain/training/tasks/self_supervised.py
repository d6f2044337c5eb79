"""Learns without labels: two views of an image are to be more alike than views of different images."""

import torch
import torch.nn.functional as F
from torch import nn

from distrain.data.sources.base import Batch
from distrain.training.own_code import check_outputs
from distrain.training.tasks.protocol import LOSS, Losses, Sums, TaskSetup

TEMPERATURE = 0.2
NEIGHBOURS = "knn"


class SelfSupervised:
    """The NT-Xent loss of SimCLR: Chen et al., 2020, https://arxiv.org/abs/2002.05709.

    `data.repeats: 2` makes the two views: each sample is twice in a row in a micro-batch, augmented on its own. Both
    pass through the network at once, whose head is the projection. The other images of a micro-batch are the negative
    examples, so that the loss depends on the size of the micro-batch, but not on the number of processes.
    """

    def setup(self, setup: TaskSetup) -> None:
        """Take the temperature and the number of outputs from the recipe."""
        config = setup.recipe.task
        self._temperature = config.temperature or TEMPERATURE
        self._num_outputs = len(config.outputs(setup.classes))

    def loss(self, model: nn.Module, batch: Batch) -> Losses:
        """Return the loss of samples of which each is there twice in a row."""
        images, _ = batch
        return {LOSS: self._contrast(self.predict(model, images))}

    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """Return the loss of each image and its mirror image, and how many nearest neighbours are of the same class.

        The neighbours of an image are the others of its batch: `eval.batch_size` decides among how many they are.
        """
        images, targets = batch
        pairs = torch.stack([images, images.flip(-1)], dim=1).flatten(0, 1)
        outputs = self.predict(model, pairs)
        loss = self._contrast(outputs) if len(images) > 1 else outputs.new_zeros(())
        own = F.normalize(outputs[::2].float(), dim=1)
        alike = (own @ own.T).fill_diagonal_(-torch.inf)
        hits = (targets[alike.argmax(dim=1)] == targets) & (len(images) > 1)
        return {LOSS: loss.double() * len(images), NEIGHBOURS: hits.sum()}

    def predict(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Return the projections [n, dimensions]."""
        return check_outputs(model(images), model, num_samples=len(images), num_outputs=self._num_outputs)

    def _contrast(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of outputs [2n, dimensions], of which two in a row are views of an image."""
        unit = F.normalize(outputs.float(), dim=1)
        with torch.autocast(outputs.device.type, enabled=False):
            alike = (unit @ unit.T / self._temperature).fill_diagonal_(-torch.inf)
        partners = torch.arange(len(outputs), device=outputs.device) ^ 1
        return F.cross_entropy(alike, partners)
