"""What a network or a loss gives in its state_dict is there again after a resume, whatever it is."""

import logging
from pathlib import Path

import pytest

from distrain.errors import CheckpointError
from tests.checkpoint.factories import SINGLE
from tests.cli_runner import comparable, status
from tests.processes import run_ranks
from tests.training.state import factories
from tests.training.state.factories import train, train_and_resume, unfinish

NETWORKS = [
    "CountingInADict",
    "CountingInATensor",
    "CountingInAStream",
    "CountingInItsOwnWay",
    "CountingInABuffer",
    "Deeper",
]
LOSSES = ["Centred", "plain_centred"]


@pytest.mark.parametrize("network", NETWORKS)
def test_extra_state_of_a_network_comes_back(tmp_path: Path, network: str) -> None:
    train_and_resume(SINGLE, tmp_path, f"model.name={factories.__name__}:{network}")


@pytest.mark.parametrize("network", ["CountingInADict", "CountingInATensor", "CountingInABuffer"])
def test_extra_state_comes_back_beside_averages_and_slow_weights(tmp_path: Path, network: str) -> None:
    followed = "train={epochs: 2, micro_batch_size: 4, ema_decay: 0.9, lookahead: {every_steps: 3}}"
    train_and_resume(SINGLE, tmp_path, f"model.name={factories.__name__}:{network}", followed)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("network", ["old_weight_norm", "old_spectral_norm", "parametrized", "pruned"])
def test_weights_that_are_computed_from_others_come_back(tmp_path: Path, network: str, world_size: int) -> None:
    averaged = "train={epochs: 2, micro_batch_size: 4, ema_decay: 0.9}"
    run_ranks(train_and_resume, tmp_path, world_size, tmp_path, f"model.name={factories.__name__}:{network}", averaged)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("network", ["old_weight_norm", "old_spectral_norm", "parametrized"])
def test_weights_that_are_computed_from_others_are_divided_in_low_precision(tmp_path: Path, network: str) -> None:
    overrides = [f"model.name={factories.__name__}:{network}", "parallel.strategy=fsdp", "precision=bf16"]
    run_ranks(train_and_resume, tmp_path, 2, tmp_path, *overrides)


@pytest.mark.parametrize("loss", LOSSES)
def test_state_of_a_loss_comes_back(tmp_path: Path, loss: str) -> None:
    train_and_resume(SINGLE, tmp_path, f"loss.name={factories.__name__}:{loss}")


@pytest.mark.parametrize("strategy", ["auto", "ddp", "fsdp"])
@pytest.mark.parametrize("network", ["Deeper", "CountingInABuffer"])
def test_each_process_gets_its_own_extra_state_back(tmp_path: Path, strategy: str, network: str) -> None:
    overrides = [f"model.name={factories.__name__}:{network}", f"loss.name={factories.__name__}:Centred"]
    run_ranks(train_and_resume, tmp_path, 2, tmp_path, *overrides, f"parallel.strategy={strategy}")


@pytest.mark.parametrize("network", ["Deeper", "CountingInABuffer"])
def test_exact_mode_has_the_same_extra_state_on_any_number_of_processes(tmp_path: Path, network: str) -> None:
    overrides = [f"model.name={factories.__name__}:{network}", f"loss.name={factories.__name__}:Centred"]
    overrides += ["train={epochs: 2, micro_batch_size: 4, exact: true, ema_decay: 0.9}"]
    alone = train(tmp_path / "alone", *overrides)
    run_ranks(train_and_resume, tmp_path, 2, tmp_path, *overrides)
    facts = [(found["weights_digest"], found["state_digest"]) for found in map(status, sorted(tmp_path.glob("*/")))]
    assert facts == [(alone.weights_digest, alone.state_digest)] * 3
    unfinish(tmp_path / "resumed")  # killed on two processes, resumed on one
    again = train(tmp_path / "resumed", *overrides)
    assert (again.weights_digest, again.state_digest) == facts[0]
    assert comparable(tmp_path / "resumed") == comparable(tmp_path / "alone")


def test_checkpoint_from_before_the_loss_was_saved_is_loaded_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path / "run")
    unfinish(tmp_path / "run")
    with caplog.at_level(logging.WARNING):
        train(tmp_path / "run", f"loss.name={factories.__name__}:Centred")
    assert "checkpoint step-00000005 has no state of the loss, which keeps its initial one" in caplog.text


def test_checkpoint_of_a_network_that_had_no_extra_state_names_what_it_lacks(tmp_path: Path) -> None:
    train(tmp_path / "run", f"model.name={factories.__name__}:Base")
    unfinish(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"step-00000005 has no model\._extra_state"):
        train(tmp_path / "run", f"model.name={factories.__name__}:CountingInADict")
