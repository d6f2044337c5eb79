"""A training that freezes and unfreezes weights resumes from a kill, and over strategies, without a difference."""

from pathlib import Path

import pytest
import torch

from distrain.checkpoint.load import read_model
from tests.cli_runner import checkpoint_steps, comparable, distrain, fit, metrics, status
from tests.e2e.test_resume import kill_after_checkpoint, start

STEPS_PER_EPOCH = 15
RECIPE = [
    "digits",
    "--set=data.batch_size=96",
    "--set=log.every_steps=5",
    "--set=checkpoint.every_steps=5",
    "--set=model.freeze=[features.0, features.1, features.3]",
    "--set=optimizer.no_decay=[norm, bias]",
    "--set=optimizer.layer_decay=0.7",
    "--set=optimizer.lr_factors={head: 2}",
]
EXACT = [
    *RECIPE,
    "--set=train={epochs: 5, exact: true, micro_batch_size: 24, clip_norm: 0.5, ema_decay: 0.9}",
    "--set=model.unfreeze_epochs={features.3: 4, features.1: 4.5}",
]


@pytest.mark.slow
def test_run_killed_before_the_thaw_ends_in_the_bits_of_the_undisturbed_run(tmp_path: Path) -> None:
    fit(*EXACT, "--procs=1", "--run=undisturbed", cwd=tmp_path)
    process = start([*EXACT, "--procs=1", "--run=disturbed"], tmp_path)
    kill_after_checkpoint(process, tmp_path / "disturbed", step=5, delay_s=0.0)
    fit(*EXACT, "--procs=2", "--run=disturbed", cwd=tmp_path)
    whole, pieced = status(tmp_path / "undisturbed"), status(tmp_path / "disturbed")
    assert 0 < pieced["attempts"][1]["first_step"] < 4 * STEPS_PER_EPOCH
    for digest in ("weights_digest", "state_digest"):
        assert pieced[digest] == whole[digest]
    assert comparable(tmp_path / "disturbed") == comparable(tmp_path / "undisturbed")


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return read_model(run / "checkpoints" / f"step-{step:08}")


@pytest.mark.slow
def test_ddp_and_fsdp_freeze_and_thaw_alike(tmp_path: Path) -> None:
    arguments = [
        *RECIPE,
        "--procs=2",
        "--set=train={epochs: 2, max_steps: 20, micro_batch_size: 16}",
        "--set=model.unfreeze_epochs={features.3: 0.5}",
        "--set=checkpoint.keep_last=9",
    ]
    for strategy in ("ddp", "fsdp"):
        fit(*arguments, f"--set=parallel.strategy={strategy}", f"--run={strategy}", cwd=tmp_path)
        run = tmp_path / strategy
        assert checkpoint_steps(run) == [5, 10, 15, 20]
        states = {step: weights(run, step) for step in (5, 10, 20)}
        for name, first in states[5].items():
            is_frozen = name.startswith(("features.0", "features.1"))
            assert torch.equal(first, states[20][name]) == is_frozen, name
            if name.startswith("features.3") and "running" not in name:
                assert not torch.equal(states[10][name], states[20][name]), name
    losses = [[record["train/loss"] for record in metrics(tmp_path / name)] for name in ("ddp", "fsdp")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_pattern_that_names_nothing_ends_the_run_in_one_sentence(tmp_path: Path) -> None:
    done = distrain("fit", "digits", "--set=model.freeze=[featurs]", "--run=run", cwd=tmp_path)
    assert done.code == 2
    assert "model.freeze: 'featurs' is not the name of a weight or layer; did you mean features" in done.err
    assert "Traceback" not in done.out + done.err
