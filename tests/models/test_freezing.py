"""Frozen weights and statistics do not change before the step that unfreezes them, whatever the strategy."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distrain.checkpoint.load import load_tensors
from distrain.checkpoint.tensors import digest, gather_tensors
from distrain.config import Model, Optimizer
from distrain.config.batching import solve_batching
from distrain.data.loading.epoch_order import uniform_order
from distrain.data.loading.sampler import TrainSampler
from distrain.distributed.exact import Exact
from distrain.distributed.parallelize import Strategy
from distrain.distributed.single import SingleProcess
from distrain.distributed.world import World
from distrain.errors import ModelError
from distrain.models.freezing import Freezing, check_something_trains, end_steps, freeze
from distrain.models.registry import build_model, head_paths
from distrain.runs.checkpoints import read
from distrain.training.device.precision import Precision
from distrain.training.optim.clipping import Clip, clip_gradients
from distrain.training.optim.optimizer import build_optimizer
from tests.checkpoint.factories import save

CPU = torch.device("cpu")
ALONE = World(rank=0, size=1, local_rank=0, device=CPU)
BATCHING = solve_batching(8, 4, 1)
STEPS_PER_EPOCH = 4


class Training:
    """The loop's steps on random images, as far as freezing is concerned."""

    def __init__(self, make: Callable[[nn.Module], Strategy], optimizer: dict[str, Any], **config: Any) -> None:
        torch.manual_seed(3)
        self.config = Model(name="digits-cnn", **config)
        self.model = build_model(self.config, num_classes=10, in_channels=1)
        heads = head_paths(self.config, self.model)
        self.unfreeze_steps = freeze(self.config, self.model, heads=heads, steps_per_epoch=STEPS_PER_EPOCH)
        self.strategy = make(self.model)
        self.ends = end_steps(self.config, self.model, heads=heads, steps_per_epoch=STEPS_PER_EPOCH)
        self.freezing = Freezing(self.model, self.unfreeze_steps, self.ends)
        self.optimizer = build_optimizer(Optimizer.model_validate({"lr": 0.1, **optimizer}), self.model)

    def step(self, step: int, clip: Clip | None = None) -> dict[str, torch.Tensor]:
        """Run a step and return copies of all weights and buffers."""
        sampler = partial(uniform_order, num_samples=80, seed=0)
        order = TrainSampler(num_samples=80, sampler=sampler, batching=BATCHING, drop_last=False, rank=0)
        global_batch = order.global_batch(step)
        replica = self.strategy.begin_step(global_batch, step)
        self.freezing.begin_step(step)
        torch.manual_seed(step)
        for index in global_batch.local:
            with self.strategy.micro_batch(global_batch, index):
                loss = F.cross_entropy(replica(torch.randn(4, 1, 8, 8)), torch.arange(4))
                (loss / 2).backward()  # type: ignore[no-untyped-call]
        self.strategy.finish_step(global_batch, step)
        with self.freezing.without_frozen_gradients(step):
            Precision("fp32", CPU).step(self.optimizer, list(self.model.parameters()), clip=clip)
        self.strategy.zero_grad()
        self.model.eval()
        self.model.train()  # as an evaluation leaves it
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


STRATEGIES: dict[str, Callable[[nn.Module], Strategy]] = {
    "single": SingleProcess,
    "exact": lambda module: Exact(module, ALONE, BATCHING),
}
RULES: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9, "weight_decay": 0.1},
    "adamw": {"name": "adamw", "weight_decay": 0.1},
    "rmsprop": {"name": "rmsprop", "momentum": 0.9, "weight_decay": 0.1},
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("rule", RULES)
def test_frozen_weights_and_statistics_do_not_change_until_they_are_unfrozen(strategy: str, rule: str) -> None:
    training = Training(
        STRATEGIES[strategy],
        RULES[rule],
        freeze=("features.0", "features.1", "features.3.0"),
        unfreeze_epochs={"features.1": 0.5},
    )
    states = [{name: tensor.clone() for name, tensor in training.model.state_dict().items()}]
    states += [training.step(step) for step in range(4)]
    for before, after, step in zip(states, states[1:], range(4), strict=False):
        for name, tensor in before.items():
            is_frozen = name.startswith(("features.0.", "features.3.0.")) or (
                name.startswith("features.1.") and step < 2
            )
            assert torch.equal(tensor, after[name]) == is_frozen, (name, step)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("rule", RULES)
def test_weights_that_are_trained_at_first_do_not_change_from_their_epoch_on(strategy: str, rule: str) -> None:
    training = Training(STRATEGIES[strategy], RULES[rule], freeze_epochs={"features.0.0": 0.5, "fc.bias": 0.75})
    states = [{name: tensor.clone() for name, tensor in training.model.state_dict().items()}]
    states += [training.step(step) for step in range(5)]
    for before, after, step in zip(states, states[1:], range(5), strict=False):
        for name, tensor in before.items():
            is_over = (name == "features.0.0.weight" and step >= 2) or (name == "fc.bias" and step >= 3)
            assert torch.equal(tensor, after[name]) == is_over, (name, step)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_run_saved_before_unfreezing_resumes_to_the_same_bits(tmp_path: Path, strategy: str) -> None:
    config: dict[str, Any] = {"freeze": ("features",), "unfreeze_epochs": {"features.1": 0.5, "features.3": 0.75}}
    whole = Training(STRATEGIES[strategy], RULES["sgd"], **config)
    whole.step(0)
    save(tmp_path, whole.model, whole.optimizer, 1)
    for step in range(1, 5):
        whole.step(step)
    pieced = Training(STRATEGIES[strategy], RULES["sgd"], **config)
    (found,) = [read(path) for path in tmp_path.iterdir()]
    load_tensors(found, model=pieced.model, optimizer=pieced.optimizer, world=ALONE)
    for step in range(1, 5):
        pieced.step(step)
    tensors = [gather_tensors(training.model, training.optimizer) for training in (whole, pieced)]
    assert digest(tensors[1]) == digest(tensors[0])
    assert "optimizer.features.3.0.weight.momentum_buffer" in tensors[0]


def test_no_optimizer_state_is_kept_for_frozen_weights() -> None:
    training = Training(SingleProcess, RULES["sgd"], freeze=("backbone",), unfreeze_epochs={"features.1": 0.5})
    names: dict[torch.Tensor, str] = {weight: name for name, weight in training.model.named_parameters()}
    training.step(0)
    assert {names[parameter] for parameter in training.optimizer.state} == {"fc.weight", "fc.bias"}
    training.step(2)
    assert "features.1.0.weight" in {names[parameter] for parameter in training.optimizer.state}
    assert "features.0.0.weight" not in {names[parameter] for parameter in training.optimizer.state}


def test_gradient_norm_is_clipped_over_updated_weights_only() -> None:
    config: dict[str, Any] = {"freeze": ("backbone",), "unfreeze_epochs": {"backbone": 1}}
    training = Training(SingleProcess, {}, **config)
    before = nn.utils.parameters_to_vector(training.model.parameters()).detach().clone()
    training.step(0, clip=partial(clip_gradients, clip_norm=0.01))
    after = nn.utils.parameters_to_vector(training.model.parameters()).detach()
    assert (after - before).norm() == pytest.approx(0.01 * 0.1, rel=1e-3)


def test_norm_layer_without_weights_is_frozen_with_the_layer_around_it() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, affine=False)), nn.Flatten(), nn.Linear(2, 2)
    )
    steps = freeze(Model(name="own", freeze=("0",)), model, heads=["2"], steps_per_epoch=1)
    freezing = Freezing(model, steps)
    freezing.begin_step(0)
    assert [module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d)] == [False]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"freeze": ("features.9",)}, r"model\.freeze: 'features\.9' is not the name of a weight"),
        ({"freeze": ("*",)}, "leaves no weight to train"),
        ({"freeze": ("*",), "unfreeze_epochs": {"fc": 1}}, "leaves no weight to train in the first step"),
        (
            {"freeze": ("fc",), "unfreeze_epochs": {"features": 1}},
            r"model\.unfreeze_epochs: 'features' matches nothing",
        ),
    ],
)
def test_invalid_freezing_is_one_sentence(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Training(SingleProcess, {}, **config)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"freeze_epochs": {"*": 1}}, "from epoch 1 on"),
        ({"freeze_epochs": {"*": 1.5, "fc": 3}}, "from epoch 3 on"),
        (
            {"freeze_epochs": {"fc": 0.5}, "freeze": ("features",), "unfreeze_epochs": {"features.1": 2}},
            "0.5 to epoch 2;",
        ),
        ({"freeze_epochs": {"*": 0}}, "from epoch 0 on"),
        ({"freeze_epochs": {"*": 4}}, None),
        ({"freeze_epochs": {"fc": 2}, "freeze": ("features",), "unfreeze_epochs": {"features.1": 2}}, None),
        ({"freeze": ("features",), "unfreeze_epochs": {"features.1": 9}}, None),
        ({"freeze_epochs": {"features": 0}}, None),
    ],
)
def test_epochs_in_which_nothing_trains_are_one_sentence(config: dict[str, Any], words: str | None) -> None:
    training = Training(SingleProcess, {}, **config)
    check = partial(
        check_something_trains,
        training.model,
        training.unfreeze_steps,
        training.ends,
        steps_per_epoch=STEPS_PER_EPOCH,
        total_steps=4 * STEPS_PER_EPOCH,
    )
    if words is None:
        check()
        return
    with pytest.raises(ModelError, match=f"leaves no weight to train .*{words}"):
        check()
