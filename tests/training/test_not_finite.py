"""Wherever a number that is not finite arises, the batch that did it is named and left out, and no other one is."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from distrain.config import load_recipe
from distrain.config.profile import Profile
from distrain.distributed.world import World
from distrain.errors import ModelError, TrainingError
from distrain.rng import permutation
from distrain.runs.directory import RunDirectory
from distrain.runs.status import Status
from distrain.training import build, trainer
from distrain.training.monitor import RankMonitor
from distrain.training.session import Session
from tests.processes import run_ranks

COUNT, BATCH, BAD = 48, 8, 13  # samples, samples a step, and the one that is the cause
PER_EPOCH = COUNT // BATCH
ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
MARK = 1e9  # a pixel of the bad sample, where the network or the loss looks for it


class Samples(Dataset[tuple[torch.Tensor, Any]]):
    """Bright and dark images of 1x4x4 pixels; `bad` makes one of them what breaks a step."""

    classes = ("dark", "bright")

    def __init__(self, bad: Callable[[torch.Tensor], torch.Tensor] | None, target: float | None = None) -> None:
        generator = torch.Generator().manual_seed(5)
        self.labels = torch.randint(2, (COUNT,), generator=generator)
        self.images = torch.rand(COUNT, 1, 4, 4, generator=generator) + self.labels.view(-1, 1, 1, 1)
        if bad is not None:
            self.images[BAD] = bad(self.images[BAD])
        self.values = self.labels[:, None].repeat(1, 2).float()
        if target is not None:
            self.target = "values"
            self.values[BAD] = target

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any]:
        return self.images[index], self.values[index] if hasattr(self, "target") else int(self.labels[index])


def _samples(make: Callable[[], Samples], split: str) -> Samples:
    return make() if split == "train" else Samples(None, 0.0 if hasattr(make(), "target") else None)


def nan_image(split: str, path: str | None) -> Samples:
    return _samples(partial(Samples, lambda image: image * float("nan")), split)


def constant_image(split: str, path: str | None) -> Samples:
    return _samples(partial(Samples, lambda image: image * 0 + 0.5), split)


def marked_image(split: str, path: str | None) -> Samples:
    return _samples(partial(Samples, lambda image: image * 0 + MARK), split)


def huge_image(split: str, path: str | None) -> Samples:
    return _samples(partial(Samples, lambda image: image * 1e20), split)


def huge_target(split: str, path: str | None) -> Samples:
    return _samples(partial(Samples, None, target=1e30), split)


class Spread(nn.Module):
    """Pools mean and standard deviation; the gradient of the latter's root is not finite where an image is constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(8, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.conv(images)
        logits: torch.Tensor = self.head(torch.cat([maps.mean((2, 3)), maps.var((2, 3)).sqrt()], 1))
        return logits


def plain(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, num_classes))


def spread(num_classes: int) -> nn.Module:
    return Spread()


def normed(num_classes: int) -> nn.Module:
    """A norm layer at the input: an image of 1e20 makes its variance infinite, and its answers 0."""
    return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, num_classes))


def nan_weights(num_classes: int) -> nn.Module:
    net = plain(num_classes)
    nn.init.constant_(net.get_parameter("1.bias"), float("nan"))
    return net


class Masked(nn.Module):
    """Has constants that are not finite, as masks of attention are, and a value that is near overflow."""

    mask: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, float("-inf"), torch.finfo(torch.float32).min]))
        self.head = nn.Linear(16, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(images.flatten(1)) * self.mask.exp().sum()
        return logits


def masked(num_classes: int) -> nn.Module:
    return Masked()


def _is_marked(logits: torch.Tensor) -> torch.Tensor:
    return logits.detach().abs().amax() > MARK / 1000


def nan_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    found = nn.functional.cross_entropy(logits, targets)
    return found * torch.where(_is_marked(logits), float("nan"), 1.0)


def steep_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Finite, and so is its gradient, of which a learning rate of 1000 makes an update that overflows."""
    found = nn.functional.cross_entropy(logits, targets)
    return found + torch.where(_is_marked(logits), 1e9, 0.0) * logits.sum()


BASE = [
    "augment={train: [], eval: []}",
    "optimizer={name: sgd, lr: 0.01, momentum: 0.9}",
    "schedule={name: constant}",
    "log={tensorboard: false, wandb: disabled, every_steps: 100}",  # it is seen at the end of an epoch
    "checkpoint={every_epochs: 1, keep_best: false}",
]
HERE = __name__
# What breaks the step, and the words for it.
PLACES = {
    "image": (["nan_image", "plain"], [], "the loss"),
    "target": (
        ["huge_target", "plain"],
        ["data.target=values", "loss={name: mse}", "eval={metrics: [mae], best: mae}"],
        "the loss",
    ),
    "loss": (["marked_image", "plain"], [f"loss={{name: '{HERE}:nan_loss'}}"], "the loss"),
    "gradient": (["constant_image", "spread"], [], "the gradient of conv.bias"),
    "clipped": (["constant_image", "spread"], ["train.clip_norm=1"], "the gradient of conv.bias"),
    "update": (
        ["marked_image", "plain"],
        [f"loss={{name: '{HERE}:steep_loss'}}", "optimizer={name: sgd, lr: 1000}"],
        "a weight after the update",
    ),
    "statistics": (["huge_image", "normed"], ["train.ema_decay=0.9"], "the statistic 0.running_var"),
}


def train(world: World, path: Path, place: str, overrides: list[str], *, epochs: int = 2) -> tuple[Status, Session]:
    """Train on this rank, and return the status and the last session."""
    (data, network), own, _ = PLACES[place]
    sessions: list[Session] = []

    def building(*args: Any, **kwargs: Any) -> Session:
        sessions.append(build.build_session(*args, **kwargs))
        return sessions[-1]

    run = RunDirectory(path)
    if world.is_rank_zero and not run.path.exists():
        run.create()
    world.barrier()
    profile = Profile(launcher="torchrun", device="cpu", processes=world.size, threads=1)
    chosen = [f"data={{source: '{HERE}:{data}', batch_size: {BATCH}}}", f"model={{name: '{HERE}:{network}'}}"]
    recipe = load_recipe("digits", overrides=[*chosen, f"train={{epochs: {epochs}}}", *BASE, *own, *overrides])
    with pytest.MonkeyPatch.context() as patch, RankMonitor(run, rank=world.rank) as monitor:
        patch.setattr(trainer, "build_session", building)
        assert trainer.train(recipe, profile, run, world, monitor)
        world.barrier()
    return run.read_status(), sessions[-1]


def step_of(epoch: int) -> int:
    """Return the step, counted from 1, that trains on the bad sample in an epoch."""
    order: list[int] = permutation(0, epoch, COUNT).tolist()
    return epoch * PER_EPOCH + order.index(BAD) // BATCH + 1


def check(world: World, path: Path, place: str, overrides: list[str]) -> None:
    status, session = train(world, path / "run", place, overrides)
    # Bad pixels are known for the cause at once; else the second epoch finds it again.
    epochs = [0] if place == "image" else [0, 1]
    assert [batch.step for batch in status.skipped_batches] == [step_of(epoch) for epoch in epochs]
    assert {batch.cause for batch in status.skipped_batches} == {PLACES[place][2]}
    assert all(BAD in batch.samples for batch in status.skipped_batches)
    assert [batch.bad_samples for batch in status.skipped_batches] == [[BAD] if place == "image" else []] * len(epochs)
    assert status.rollbacks == len(epochs)
    assert (status.state, status.step) == ("finished", 2 * PER_EPOCH)
    assert session.skipped.between(0, 2 * PER_EPOCH) == [step_of(0) - 1, step_of(1) - 1]
    for name, tensor in session.tensors().items():  # weights, statistics, momentum and averages
        tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        assert tensor.isfinite().all(), name


@pytest.mark.parametrize("place", PLACES)
def test_batch_that_did_it_is_left_out_wherever_it_arises(tmp_path: Path, place: str) -> None:
    check(ALONE, tmp_path, place, [])


@pytest.mark.parametrize(
    ("place", "overrides"),
    [
        ("image", ["train.micro_batch_size=2"]),
        ("gradient", []),
        ("gradient", ["parallel.strategy=ddp", "train.micro_batch_size=2"]),
        ("gradient", ["parallel.strategy=fsdp"]),
        ("clipped", ["parallel.strategy=fsdp"]),
        ("gradient", ["train.exact=true", "train.micro_batch_size=2"]),
        ("statistics", []),
        ("update", []),
    ],
)
def test_two_processes_leave_out_the_same_batch(tmp_path: Path, place: str, overrides: list[str]) -> None:
    run_ranks(check, tmp_path, 2, tmp_path, place, overrides)


def test_message_names_the_samples_and_those_that_all_batches_share(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("distrain"), "propagate", True)
    train(ALONE, tmp_path / "run", "gradient", [], epochs=3)
    searches = [text for record in caplog.records if "to find the one" in (text := record.getMessage())]
    assert searches == [  # the loss of the next step shows it; later batches are named at once
        f"values that are not finite appeared by step {step_of(0) + 1}: training resumes from the newest checkpoint "
        "and checks every step to find the one that caused them"
    ]
    first, second, *_ = [record.getMessage() for record in caplog.records if "rollback" in record.getMessage()]
    assert first.startswith(f"the gradient of conv.bias is not finite in step {step_of(0)}: ")
    assert "(rollback 1 of at most 3)" in first
    for sample in permutation(0, 0, COUNT)[(step_of(0) - 1) * BATCH :][:BATCH]:
        assert f"sample {sample} of {HERE}:constant_image" in first
    assert f"the skipped batches (steps {step_of(0)}, {step_of(1)}) have in common: " in second
    assert f"sample {BAD} of {HERE}:constant_image" in second


def test_sample_that_three_batches_share_is_left_out_of_all_later_epochs(tmp_path: Path) -> None:
    status, session = train(ALONE, tmp_path / "run", "gradient", [], epochs=6)
    assert [batch.step for batch in status.skipped_batches] == [step_of(epoch) for epoch in range(3)]
    assert [batch.bad_samples for batch in status.skipped_batches] == [[], [], [BAD]]
    assert session.skipped.between(0, 6 * PER_EPOCH) == [step_of(epoch) - 1 for epoch in range(6)]
    assert status.state == "finished"


@pytest.mark.parametrize(("place", "first"), [("image", 1), ("gradient", 3), ("gradient", 4)])
def test_resume_leaves_out_what_the_unbroken_run_does(tmp_path: Path, place: str, first: int) -> None:
    whole, session = train(ALONE, tmp_path / "whole", place, [], epochs=5)
    train(ALONE, tmp_path / "parts", place, [], epochs=first)
    parts, resumed = train(ALONE, tmp_path / "parts", place, [], epochs=5)
    assert resumed.skipped.between(0, 5 * PER_EPOCH) == session.skipped.between(0, 5 * PER_EPOCH)
    assert parts.skipped_batches == whole.skipped_batches
    assert parts.state_digest == whole.state_digest is not None


def always_nan(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A finite loss whose gradient never is."""
    return ((logits - logits.detach()).abs().sum() + 0.0).sqrt() * 0.0 + 1.0


def endless(world: World, path: Path, overrides: list[str]) -> None:
    with pytest.raises(TrainingError, match=r"train\.max_rollbacks=2 allows no further rollback"):
        train(world, path / "run", "image", [f"loss={{name: '{HERE}:always_nan'}}", *overrides])
    status = RunDirectory(path / "run").read_status()
    assert status.rollbacks == 2
    assert [batch.step for batch in status.skipped_batches] == [1, 2]


@pytest.mark.parametrize("processes", [1, 2])
def test_rollbacks_are_counted_and_end(tmp_path: Path, processes: int) -> None:
    overrides = [f"data={{source: '{HERE}:marked_image', batch_size: {BATCH}}}", "train.max_rollbacks=2"]
    run_ranks(endless, tmp_path, processes, tmp_path, overrides)


@pytest.mark.parametrize("processes", [1, 2])
def test_step_that_loss_scaling_skips_is_no_rollback(tmp_path: Path, processes: int) -> None:
    run_ranks(skip_by_scaling, tmp_path, processes, tmp_path)


def skip_by_scaling(world: World, path: Path) -> None:
    status, session = train(world, path / "run", "gradient", ["precision=fp16"])
    assert (status.state, status.rollbacks) == ("finished", 0)
    assert session.precision.state()["scale"] <= 2.0**14  # halved twice at least
    assert all(weight.isfinite().all() for weight in session.model.parameters())


def test_constants_that_are_not_finite_are_no_fault_and_their_average_is_theirs(tmp_path: Path) -> None:
    PLACES["masked"] = (["marked_image", "masked"], [], "")
    status, session = train(ALONE, tmp_path / "run", "masked", ["train.ema_decay=0.9"])
    assert (status.state, status.rollbacks) == ("finished", 0)
    assert session.average is not None
    assert torch.equal(session.average.tensors["mask"], session.model.get_buffer("mask"))
    assert status.last is not None and status.last["val/loss"] < 1e9


def test_weights_that_are_not_finite_before_the_first_step_are_named(tmp_path: Path) -> None:
    PLACES["start"] = (["marked_image", "nan_weights"], [], "")
    with pytest.raises(ModelError, match=r"^1\.bias of the network at the start has values that are not finite"):
        train(ALONE, tmp_path / "run", "start", [])


def test_what_an_earlier_version_left_out_stays_left_out() -> None:
    status = Status.model_validate({"skipped_steps": [3, 8]})
    assert [batch.step for batch in status.skipped_batches] == [4, 9]  # it counted from 0
    again = Status.model_validate_json(status.model_dump_json())
    assert again == status
    assert again.model_dump()["rollbacks"] == 2


def test_checkpoint_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    """As one of an earlier version may be, which looked at the weights alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distrain.training.trainer.sync_losses", lambda session, steps: session.losses.sync_losses(steps))
        train(ALONE, tmp_path / "run", "statistics", [], epochs=1)
    with pytest.raises(ModelError, match=r"^0\.running_var of checkpoint step-00000006 has values that are not finite"):
        train(ALONE, tmp_path / "run", "statistics", [])
