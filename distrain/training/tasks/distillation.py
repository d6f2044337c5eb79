"""Learns from a teacher beside the targets: from its outputs, and from its features."""

import torch
import torch.nn.functional as F
from torch import nn

from distrain.config.metrics import Target
from distrain.data.sources.base import Batch
from distrain.errors import ModelError
from distrain.training.tasks.classification import Classification
from distrain.training.tasks.features import count_features, return_features
from distrain.training.tasks.protocol import LOSS, Losses, Sums, TaskSetup
from distrain.training.tasks.teacher import Teacher, open_teacher

LOGIT_WEIGHT, TEMPERATURE = 0.9, 4.0


class Distillation:
    """The loss of the recipe, and the distance of outputs and features to those of a teacher.

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, https://arxiv.org/abs/1503.02531; features as
    in Romero et al., "FitNets: Hints for Thin Deep Nets", 2015, https://arxiv.org/abs/1412.6550: those that enter the
    heads, the student's through a linear layer that is trained with it. The teacher gets the same augmented images. An
    evaluation measures the student alone, as that of a classification does.
    """

    _teacher: Teacher

    def setup(self, setup: TaskSetup) -> None:
        """Open the teacher, and let the student return its features where the recipe compares them."""
        config = setup.recipe.task
        self._labels = Classification()
        self._labels.setup(setup)
        self._target: Target = setup.target
        self._logit_weight = LOGIT_WEIGHT if config.logit_weight is None else config.logit_weight
        self._temperature = config.temperature or TEMPERATURE
        self._feature_weight = config.feature_weight or 0.0
        if not setup.is_training:
            return
        self._teacher = open_teacher(setup, uses_outputs=self._logit_weight > 0)
        if self._feature_weight:
            if not setup.heads:
                raise ModelError(
                    f"model.name={setup.recipe.model.name} has no linear layer as its head; name it with "
                    f"model.head_name, or remove task.feature_weight"
                )
            name = f"model.name={setup.recipe.model.name}"
            projection = nn.Linear(count_features(setup.network, setup.heads[0], name=name), self._teacher.num_features)
            return_features(setup.network, setup.heads[0], projection)

    def loss(self, model: nn.Module, batch: Batch) -> Losses:
        """Return the weighted sum, and its parts: `label_loss`, `logit_loss` and `feature_loss`."""
        images, targets = batch
        found = model(images)
        outputs, features = found if self._feature_weight else (found, None)
        their_outputs, their_features = self._teacher(images)
        losses = {"label_loss": self._labels.label_loss(outputs, targets)}
        total = (1 - self._logit_weight) * losses["label_loss"]
        if self._logit_weight:
            losses["logit_loss"] = self._distance(outputs.float(), their_outputs.float())
            total = total + self._logit_weight * losses["logit_loss"]
        if features is not None and their_features is not None:
            cosine = F.cosine_similarity(features.float(), their_features.float(), dim=1)
            losses["feature_loss"] = (1 - cosine).mean()
            total = total + self._feature_weight * losses["feature_loss"]
        return {LOSS: total, **losses}

    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """Return what a classification does."""
        return self._labels.evaluate(model, batch)

    def predict(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Return what a classification does."""
        return self._labels.predict(model, images)

    def fingerprint(self) -> dict[str, str]:
        """Return the digest of the teacher's weights."""
        return {"teacher": self._teacher.digest} if hasattr(self, "_teacher") else {}

    def _distance(self, outputs: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        """Return the mean over the samples; of softened outputs times the square of the temperature, as Hinton et al.

        Softening divides the gradients by that, so that the weight of the labels would depend on the temperature.
        """
        if self._target == "values":
            return F.mse_loss(outputs, theirs)
        softened, goal = outputs / self._temperature, theirs / self._temperature
        if self._target == "labels":
            distance = F.binary_cross_entropy_with_logits(softened, goal.sigmoid())
        else:
            distance = F.kl_div(
                softened.log_softmax(dim=1), goal.log_softmax(dim=1), reduction="batchmean", log_target=True
            )
        return distance * self._temperature**2
