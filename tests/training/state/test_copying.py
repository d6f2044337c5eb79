"""A network that `copy.deepcopy` refuses trains as it does in plain PyTorch."""

import logging
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.training.state.factories import train


def normed(num_classes: int) -> nn.Module:
    with torch.random.fork_rng():
        return nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(64, 16)), nn.Linear(16, num_classes))


class Locked(nn.Sequential):
    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))
        self.lock = threading.Lock()


def locked(num_classes: int) -> nn.Module:
    return Locked(num_classes)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_old_weight_norm_is_trained_and_drawn(tmp_path: Path) -> None:
    done = train(tmp_path / "run", f"model.name={__name__}:normed", "log.tensorboard=true", "train.epochs=1")
    assert done.weights_digest is not None
    (events,) = (tmp_path / "run" / "tensorboard").glob("events*")
    assert b"weight_g" in events.read_bytes()  # in the graph


def test_network_that_nothing_can_copy_is_trained_and_its_graph_left_out_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        train(tmp_path / "run", f"model.name={__name__}:locked", "log.tensorboard=true", "train.epochs=1")
    assert "cannot be copied: cannot pickle '_thread.lock' object; TensorBoard does not show its graph" in caplog.text
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
