"""A session is made part by part, the same each time, and refused in a sentence where the parts do not fit."""

from pathlib import Path

import pytest
import torch
from torch import nn

from distrain.config import Recipe, load_recipe
from distrain.config.profile import Profile
from distrain.distributed.world import World
from distrain.errors import ModelError, RecipeError, UserError
from distrain.runs.directory import RunDirectory
from distrain.runs.status import SkippedBatch, Status
from distrain.training.build import build_session
from distrain.training.device.precision import Precision
from distrain.training.monitor import RankMonitor
from distrain.training.session import Session
from distrain.training.setup.checks import ON_CPU, ON_DEVICE, WITH_MICRO_BATCH, Parts, run_checks
from distrain.training.setup.data import set_up_data
from distrain.training.setup.loss import set_up_loss
from distrain.training.setup.network import set_up_network
from distrain.training.setup.task import describe_task
from distrain.training.tasks.build import build_task

ALONE = World(0, 1, 0, torch.device("cpu"))
PROFILE = Profile(launcher="inprocess", device="cpu", processes=1, threads=1)
SHORT = [
    "data={source: digits, batch_size: 16, train_samples: 77, val_samples: 23}",
    "train={epochs: 2, micro_batch_size: 4}",
    "log={tensorboard: false, wandb: disabled}",
]


def recipe_with(*overrides: str) -> Recipe:
    return load_recipe("digits", overrides=[*SHORT, *overrides])


def parts_of(*overrides: str, is_new: bool = True) -> Parts:
    recipe = recipe_with(*overrides)
    data = set_up_data(recipe, PROFILE, ALONE)
    loss = set_up_loss(recipe, data, ALONE)
    network = set_up_network(recipe, data, ALONE, is_new=is_new)
    task = build_task(describe_task(recipe, data, loss, network, ALONE))
    return Parts(recipe, ALONE, data, loss, network, task, Precision(recipe.precision, ALONE.device), is_new=is_new)


def session_of(path: Path, *overrides: str, status: Status | None = None) -> Session:
    run = RunDirectory(path)
    run.create()
    monitor = RankMonitor(run, rank=0)
    monitor.state.load(status or Status())
    return build_session(recipe_with(*overrides), PROFILE, run, ALONE, monitor, has_checkpoint=False)


def test_data_is_set_up_without_a_network() -> None:
    data = set_up_data(recipe_with(), PROFILE, ALONE)
    assert data.sampler.steps_per_epoch == 5
    assert data.total_steps == 10
    assert (data.num_classes, data.num_channels) == (10, 1)
    assert data.sample_images.shape[0] == len(data.first[1]) == 4  # a micro-batch has no more
    assert len(data.first_val[1]) == 8


def test_network_is_the_same_each_time_and_a_checkpoint_needs_no_weights() -> None:
    first, second = parts_of().network.model.state_dict(), parts_of().network.model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    resumed = parts_of("model.weights=/not/there.safetensors", is_new=False)
    assert resumed.network.model.state_dict().keys() == first.keys()


def test_checks_pass_for_parts_that_fit_and_change_nothing() -> None:
    parts = parts_of()
    before = {name: tensor.clone() for name, tensor in parts.network.model.state_dict().items()}
    random = torch.get_rng_state()
    run_checks([*ON_CPU, *WITH_MICRO_BATCH, *ON_DEVICE], parts)
    assert torch.equal(torch.get_rng_state(), random)
    after = parts.network.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert parts.network.model.training


def test_training_that_stops_before_its_end_is_refused_only_where_it_begins() -> None:
    frozen = "model.freeze_epochs={'*': 1}"
    with pytest.raises(ModelError, match="freeze_epochs"):
        run_checks(ON_CPU, parts_of(frozen))
    run_checks(ON_CPU, parts_of(frozen, is_new=False))


def test_samples_of_micro_batches_of_one_cannot_be_mixed() -> None:
    parts = parts_of("augment.mixup=0.2", "train.micro_batch_size=1")
    with pytest.raises(RecipeError, match="each has only one"):
        run_checks(WITH_MICRO_BATCH, parts)


def per_sample(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def test_loss_that_is_no_mean_is_refused() -> None:
    with pytest.raises(UserError, match="per_sample"):
        run_checks(ON_CPU, parts_of(f"loss={{name: '{__name__}:per_sample'}}"))


def test_first_check_that_fails_ends_the_checks() -> None:
    seen: list[str] = []

    def refuse(_: Parts) -> None:
        raise RecipeError("no")

    with pytest.raises(RecipeError, match="no"):
        run_checks([lambda _: seen.append("first"), refuse, lambda _: seen.append("third")], parts_of())
    assert seen == ["first"]


def test_session_skips_the_batches_of_the_state_and_shares_it(tmp_path: Path) -> None:
    skipped = [SkippedBatch(step=3, cause="the loss")]
    session = session_of(tmp_path / "run", status=Status(skipped_batches=skipped))
    try:
        assert session.skipped.between(0, session.total_steps) == [2]
        assert session.state is session.monitor.state
        assert session.num_samples(0, 5) == 77 - 16
    finally:
        session.close()


def test_micro_batch_size_of_auto_is_found_and_kept(tmp_path: Path) -> None:
    session = session_of(tmp_path / "run", "train.micro_batch_size=auto")
    try:
        size = session.sampler.batching.micro_batch_size
        assert 16 % size == 0
        assert session.run.read_micro_batch_size() == size
    finally:
        session.close()
