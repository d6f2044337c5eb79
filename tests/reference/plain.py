"""The training of a recipe in plain PyTorch, on what distrain has trained on: what its numbers must be.

Nothing of distrain computes here: the optimizers and schedules are torch's and timm's, losses and averages are written
out, and the metrics are scikit-learn's.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn import metrics as sk
from timm.optim._optim_factory import create_optimizer_v2
from timm.utils.agc import adaptive_clip_grad
from torch import nn
from torch.optim import lr_scheduler

from distrain.config import Recipe, Schedule
from tests.reference.logged import NUM_CLASSES, NUM_TRAIN, Network, Trained, read_data

OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
}


@dataclass
class Replayed:
    """What a step or an evaluation gave, by the number of steps that were finished then."""

    losses: dict[int, tuple[float, int]] = field(default_factory=dict)  # the mean over the step's samples, and these
    rates: dict[int, float] = field(default_factory=dict)
    gradient_norms: dict[int, float] = field(default_factory=dict)
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)  # at the end, or their moving averages

    def mean_loss(self, after: int, until: int) -> float:
        """Return the mean training loss over all samples of the steps after `after` and up to `until`."""
        of = [self.losses[step] for step in range(after + 1, until + 1)]
        return math.fsum(mean * samples for mean, samples in of) / sum(samples for _, samples in of)


def replay(trained: Trained, data: Path) -> Replayed:
    """Train in plain PyTorch what was trained."""
    recipe, found = trained.recipe, Replayed()
    model = Network(NUM_CLASSES, **recipe.model.arguments)
    model.load_state_dict(trained.initial)
    _, labels, val_images, val_labels = read_data(data)
    weights = _class_weights(recipe, labels)
    rates = _learning_rates(recipe.schedule, recipe.base_lr, _steps_per_epoch(recipe), _total_steps(recipe))
    optimizer = _optimizer(recipe, model)
    averages = {name: value.clone() for name, value in model.state_dict().items() if value.is_floating_point()}
    slow = {name: value.clone() for name, value in averages.items()}
    spe, lookahead = _steps_per_epoch(recipe), recipe.train.lookahead
    for step, pieces in enumerate(_steps(trained), start=1):
        is_frozen = {name: (step - 1) / spe < epochs for name, epochs in recipe.model.unfreeze_epochs.items()}
        size = sum(len(piece) for piece, _ in pieces)
        total = 0.0
        optimizer.zero_grad()
        for piece, shares in pieces:
            targets = labels[(piece[:, 0, 0, 0] * 255).round().long()] if shares is None else shares
            loss = loss_sum(recipe, model.train()(piece), targets, weights) / size
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        for name, parameter in model.named_parameters():
            if any(name.startswith(layer) and frozen for layer, frozen in is_frozen.items()):
                parameter.grad = None
        gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
        found.gradient_norms[step] = float(torch.cat(gradients).square().sum().sqrt())
        if recipe.train.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.train.clip_norm)
        if recipe.train.clip_value is not None:
            nn.utils.clip_grad_value_(model.parameters(), recipe.train.clip_value)
        if recipe.train.agc is not None:
            adaptive_clip_grad([w for n, w in model.named_parameters() if "head" not in n], recipe.train.agc)  # type: ignore[no-untyped-call]
        for group in optimizer.param_groups:
            group["lr"] = rates[step - 1] * group["factor"]
        optimizer.step()
        now = model.state_dict()
        if lookahead is not None and (step % lookahead.every_steps == 0 or step == _total_steps(recipe)):
            for name, value in slow.items():
                value.copy_(lookahead.decay * value + (1 - lookahead.decay) * now[name])
                now[name].copy_(value)
        decay = min(recipe.train.ema_decay or 0.0, step / (9 + step))
        averages = {name: decay * value + (1 - decay) * now[name] for name, value in averages.items()}
        found.losses[step], found.rates[step] = (total, size), rates[step - 1]
        found.weights = {**now, **averages} if recipe.train.ema_decay is not None else now
        if step % spe == 0 or step == _total_steps(recipe):
            found.evaluations[step] = _evaluate(recipe, found.weights, val_images, val_labels, weights)
    return found


def sample_numbers(trained: Trained, data: Path) -> list[int]:
    """Return the samples that were trained on, in their order, where they are not mixed; checks that they are these."""
    images, seen = read_data(data)[0], torch.cat([piece for step in _steps(trained) for piece, _ in step])
    numbers = (seen[:, 0, 0, 0] * 255).round().long()
    assert torch.allclose(seen, images[numbers], atol=1e-6)
    return numbers.tolist()


def loss_sum(recipe: Recipe, logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the sum over samples of the cross entropy, smoothed and weighted, written out."""
    log_p = logits - logits.logsumexp(1, keepdim=True)
    smoothing = recipe.loss.label_smoothing or 0.0
    shares = F.one_hot(targets, NUM_CLASSES).float() if targets.ndim == 1 else targets
    return -(((1 - smoothing) * shares + smoothing / NUM_CLASSES) * log_p * weights).sum()


def _steps_per_epoch(recipe: Recipe) -> int:
    size = recipe.data.batch_size
    return NUM_TRAIN // size if recipe.data.drop_last else math.ceil(NUM_TRAIN / size)


def _total_steps(recipe: Recipe) -> int:
    return recipe.train.epochs * _steps_per_epoch(recipe)


def _steps(trained: Trained) -> Iterator[list[tuple[torch.Tensor, torch.Tensor | None]]]:
    """Yield the micro-batches of each step, those of all ranks, which take neighbours of its samples each."""
    recipe, ranks = trained.recipe, len(trained.inputs)
    size, spe = recipe.data.batch_size, _steps_per_epoch(recipe)
    micro = recipe.train.micro_batch_size or size // ranks
    assert isinstance(micro, int)
    unread = [
        zip_longest(inputs, shares)  # without shares: samples are not mixed
        for inputs, shares in zip(trained.inputs, trained.shares, strict=True)
    ]
    for step in range(1, _total_steps(recipe) + 1):
        is_short = step % spe == 0 and not recipe.data.drop_last
        samples = NUM_TRAIN - (spe - 1) * size if is_short else size
        edges = [math.ceil(math.ceil(samples / micro) * rank / ranks) for rank in range(ranks + 1)]
        pieces = [next(unread[rank]) for rank in range(ranks) for _ in range(edges[rank], edges[rank + 1])]
        assert sum(len(piece) for piece, _ in pieces) == samples
        yield pieces
    assert all(next(rest, None) is None for rest in unread), "more was trained on than the recipe says"


def _class_weights(recipe: Recipe, labels: torch.Tensor) -> torch.Tensor:
    wanted = recipe.loss.class_weights
    if wanted is None:
        return torch.ones(NUM_CLASSES)
    if wanted == "balanced":
        return len(labels) / (NUM_CLASSES * torch.bincount(labels, minlength=NUM_CLASSES).float())
    return torch.tensor(wanted)


def _optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """Return torch's optimizer with a group for each weight, whose `factor` is that of its learning rate."""
    config = recipe.optimizer
    groups = []
    for name, parameter in model.named_parameters():
        factor = next((value for layer, value in config.lr_factors.items() if name.startswith(layer)), 1.0)
        is_exempt = name.endswith("bias") and "bias" in config.no_decay
        decay = 0.0 if is_exempt else config.weight_decay
        groups.append({"params": [parameter], "factor": factor, "weight_decay": decay})
    given = {name: getattr(config, name) for name in ("momentum", "nesterov", "betas", "alpha", "eps")}
    options = {name: value for name, value in given.items() if value is not None}
    if config.name.startswith("timm."):
        return create_optimizer_v2(groups, opt=config.name.removeprefix("timm."), lr=recipe.base_lr, **config.arguments)
    if config.name.startswith("torch.optim:"):
        return getattr(torch.optim, config.name.partition(":")[2])(groups, lr=recipe.base_lr, **config.arguments)  # type: ignore[no-any-return]
    rule: Callable[..., torch.optim.Optimizer] = OPTIMIZERS[config.name]
    return rule(groups, lr=recipe.base_lr, foreach=False, **options)


def _learning_rates(config: Schedule, base: float, per_epoch: int, total: int) -> list[float]:
    """Return the learning rate of each step, by torch's own schedulers after a linear warm-up."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=base)
    warmup = round(config.warmup_epochs * per_epoch)
    if config.name == "constant":
        schedule: lr_scheduler.LRScheduler = lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    elif config.name == "cosine":
        final = base * (config.final_factor or 0.0)
        schedule = lr_scheduler.CosineAnnealingLR(optimizer, total - warmup, eta_min=final)
    elif config.name == "onecycle":
        schedule = lr_scheduler.OneCycleLR(optimizer, base, total_steps=total, cycle_momentum=False)
    elif config.name == "poly":
        schedule = lr_scheduler.PolynomialLR(optimizer, total - warmup, power=config.power or 1.0)
    elif config.name == "restarts":
        assert config.period_epochs is not None
        period = int(config.period_epochs * per_epoch)
        schedule = lr_scheduler.CosineAnnealingWarmRestarts(optimizer, period, config.period_factor or 1)
    elif config.name == "step":
        assert config.step_epochs is not None
        schedule = lr_scheduler.StepLR(optimizer, int(config.step_epochs * per_epoch), config.gamma or 0.1)
    else:
        assert config.milestones_epochs is not None
        milestones = [int(epoch * per_epoch) for epoch in config.milestones_epochs]
        schedule = lr_scheduler.MultiStepLR(optimizer, milestones, config.gamma or 0.1)
    rates = [base * (step + 1) / (warmup + 1) for step in range(warmup)]
    while len(rates) < total:
        rates.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        if len(rates) < total:
            schedule.step()
    return rates


@torch.no_grad()
def _evaluate(
    recipe: Recipe,
    state: dict[str, torch.Tensor],
    images: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
) -> dict[str, float]:
    model = Network(NUM_CLASSES, **recipe.model.arguments)
    model.load_state_dict(state)
    logits = model.eval()(images)
    truth, answers = labels.numpy(), logits.argmax(dim=1).numpy()
    probabilities = logits.double().softmax(dim=1).numpy()
    present = [label for label in range(NUM_CLASSES) if (truth == label).any()]
    is_class = {label: truth == label for label in present}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, of classes that were never taken
        found = {
            "val/loss": loss_sum(recipe, logits, labels, weights).item() / len(labels),
            "val/top1": sk.accuracy_score(truth, answers),
            "val/top5": sk.top_k_accuracy_score(truth, probabilities, k=5, labels=range(NUM_CLASSES)),
            "val/f1": sk.f1_score(truth, answers, average="macro"),
            "val/precision": sk.precision_score(truth, answers, average="macro", zero_division=0),
            "val/recall": sk.recall_score(truth, answers, average="macro", zero_division=0),
            "val/auroc": np.mean([sk.roc_auc_score(is_class[c], probabilities[:, c]) for c in present]),
            "val/average_precision": np.mean(
                [sk.average_precision_score(is_class[c], probabilities[:, c]) for c in present]
            ),
        }
    accuracies = {f"val/top1/{c}": float((answers[is_class[c]] == c).mean()) for c in present}
    return {name: float(value) for name, value in found.items()} | accuracies
