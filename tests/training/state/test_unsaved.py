"""What a network changes in training and does not save is said at the start; what only looks like it is not."""

import logging
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from distrain.errors import ModelError
from distrain.runs.directory import RunDirectory
from distrain.runs.query import describe_unsaved
from distrain.tensors.preserve_state import preserve_state
from distrain.training.unsaved import find_unsaved
from tests.cli_runner import distrain
from tests.training.state import factories
from tests.training.state.factories import Base, Centred, CountingInABuffer, CountingInADict, CountingInATensor, train

IMAGES = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Varied(nn.Module):
    """Changes one thing of each kind in training, and keeps what is no state."""

    hidden: torch.Tensor
    lazy: torch.Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.utils.spectral_norm(nn.Linear(64, 8))
        self.bn = nn.BatchNorm1d(8)
        self.register_buffer("hidden", torch.zeros(8), persistent=False)
        self.register_buffer("constant", torch.ones(3), persistent=False)
        self.plain = torch.zeros(8)
        self.largest = torch.tensor(0.0)
        self.count, self.seen, self.history = 0, Counter[str](), list[float]()
        self.draws, self.numpy_draws, self.torch_draws = random.Random(0), np.random.default_rng(0), torch.Generator()
        self.last_answers: torch.Tensor | None = None  # what follows is no state: it is as the last pass left it
        self.batch_size = 0
        self.known = {"statistics": self.bn.running_mean}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.bn(self.norm(images.flatten(1)))
        if self.training:
            self.hidden += 1
            self.plain = self.plain + features.detach().mean(dim=0) + 1
            self.largest = torch.maximum(self.largest, images.max())
            self.count += 1
            self.seen["passes"] += 1
            self.history.append(float(self.count))
            self.draws.random(), self.numpy_draws.random(), torch.rand(1, generator=self.torch_draws)
        self.last_answers, self.batch_size = features, len(images)
        return features


def unsaved(module: nn.Module) -> list[str]:
    with preserve_state(module):
        module.train()
        return find_unsaved(module, lambda: module(IMAGES), lambda: module(IMAGES.flip(0) * 2 + 1), name="mine:x")


def test_each_kind_of_state_that_is_not_saved_is_found_and_caches_are_not() -> None:
    names = ["hidden", "plain", "largest", "count", "seen", "history", "draws", "numpy_draws", "torch_draws"]
    assert sorted(unsaved(nn.Sequential(Varied()))) == sorted(f"0.{name}" for name in names)


def test_trial_leaves_no_trace_in_plain_attributes() -> None:
    varied = Varied()
    before = varied.numpy_draws.bit_generator.state, varied.draws.getstate(), varied.torch_draws.get_state()
    assert unsaved(varied)
    assert (varied.count, varied.seen, varied.history, varied.last_answers) == (0, {}, [], None)
    assert varied.hidden.sum() == varied.plain.sum() == varied.largest == 0
    assert varied.numpy_draws.bit_generator.state == before[0]
    assert varied.draws.getstate() == before[1]
    assert torch.equal(varied.torch_draws.get_state(), before[2])


@pytest.mark.parametrize("network", [CountingInADict, CountingInATensor, CountingInABuffer])
def test_what_extra_state_gives_back_is_saved(network: type[Base]) -> None:
    net = network(10)
    assert unsaved(net) == []
    assert net.seen == 0


def test_loss_that_saves_its_state_has_nothing_to_be_told() -> None:
    loss = Centred()
    targets = torch.arange(2)
    with preserve_state(loss):
        first = lambda: loss(torch.zeros(2, 10), targets)  # noqa: E731
        assert find_unsaved(loss, first, lambda: loss(torch.ones(2, 10), targets), name="mine:x") == []
    assert loss.center.sum() == loss.batches["train"] == 0


class Growing(nn.Module):
    kept: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(0, 64))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.kept = torch.cat([self.kept, images.flatten(1)])
        return images


class Late(Growing):
    def __init__(self) -> None:
        super().__init__()
        self.kept = None  # type: ignore[assignment]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.kept = images.mean(dim=0)
        return images


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (
            Growing,
            r"mine:x: a training pass makes \[2, 64\] of kept, which was \[0, 64\], so that no checkpoint of it could",
        ),
        (
            Late,
            r"mine:x: a training pass makes \[1, 8, 8\] of kept, which was none, so that no checkpoint of it could be",
        ),
    ],
)
def test_buffer_whose_shape_no_new_network_has_is_refused(network: type[nn.Module], words: str) -> None:
    net = network()
    before = {name: tensor.shape for name, tensor in net.state_dict().items()}
    with pytest.raises(ModelError, match=words):
        unsaved(net)
    assert {name: tensor.shape for name, tensor in net.state_dict().items()} == before


def test_it_is_said_once_at_the_start_and_kept_in_the_status(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        done = train(tmp_path / "run", f"model.name={factories.__name__}:Base", "train.epochs=1")
    assert done.unsaved_state == ["seen"]
    assert (note := describe_unsaved(RunDirectory(tmp_path / "run"))) is not None
    assert note.startswith("no checkpoint holds seen, ")
    said = [record.getMessage() for record in caplog.records if "no checkpoint holds" in record.getMessage()]
    (only,) = said
    assert only.startswith(
        f"model.name={factories.__name__}:Base changes seen in training, which no checkpoint holds: a "
    )
    assert only.endswith("register it as a persistent buffer, or return it from get_extra_state")


@pytest.mark.slow
def test_verify_tells_what_is_not_saved_and_holds_the_promise_for_what_is(tmp_path: Path) -> None:
    arguments = ["--set=loss.label_smoothing=null", "--steps=12", "--procs=1"]
    done = distrain(
        "verify", "digits", *arguments, "--set=model.name=tests.training.state.factories:Base", cwd=tmp_path
    )
    assert done.code == 1
    assert "not saved, so not the same after a resume: seen" in done.out
    assert "the promise does not hold: the network or the loss has state that is not saved" in done.out
    done = distrain(
        "verify", "digits", *arguments, "--set=model.name=tests.training.state.factories:Deeper", cwd=tmp_path
    )
    assert done.code == 0, done.out + done.err
