"""Strategies share the work in different ways and train alike; a run moves from one to the other."""

from pathlib import Path

import pytest

from tests.cli_runner import fit, metrics, status
from tests.e2e.test_resume import committed, kill_after_checkpoint, start

RECIPE = [
    "digits",
    "--set=data.batch_size=96",
    "--set=train={epochs: 2, micro_batch_size: 16, ema_decay: 0.9, clip_norm: 0.5}",
    "--set=log.every_steps=1",
    "--set=checkpoint.every_steps=5",
]


def losses(run: Path) -> list[float]:
    return [record["train/loss"] for record in metrics(run)]


@pytest.mark.slow
def test_fsdp_trains_as_ddp_does_and_a_run_moves_between_them(tmp_path: Path) -> None:
    fit(*RECIPE, "--procs=2", "--run=ddp", cwd=tmp_path)
    fit(*RECIPE, "--procs=2", "--set=parallel.strategy=fsdp", "--run=fsdp", cwd=tmp_path)
    assert losses(tmp_path / "fsdp")[:10] == pytest.approx(losses(tmp_path / "ddp")[:10], rel=1e-3)
    assert losses(tmp_path / "fsdp") == pytest.approx(losses(tmp_path / "ddp"), rel=0.1)

    for strategy, processes in (("ddp", 2), ("fsdp", 3), ("fsdp", 2)):
        step = max(committed(tmp_path / "moved"), default=0) + 5  # one that this attempt has to take
        arguments = [*RECIPE, f"--set=parallel.strategy={strategy}", f"--procs={processes}", "--run=moved"]
        kill_after_checkpoint(start(arguments, tmp_path), tmp_path / "moved", step=step, delay_s=0.0)
    done = fit(*RECIPE, "--procs=1", "--run=moved", cwd=tmp_path)
    assert "strategy was fsdp before and is single now" in done.out
    assert [attempt["world_size"] for attempt in status(tmp_path / "moved")["attempts"]] == [2, 3, 2, 1]
    assert losses(tmp_path / "moved")[:10] == pytest.approx(losses(tmp_path / "ddp")[:10], rel=1e-3)
    assert losses(tmp_path / "moved") == pytest.approx(losses(tmp_path / "ddp"), rel=0.1)


@pytest.mark.slow
def test_fsdp_takes_windows_in_which_some_rank_has_nothing_to_do(tmp_path: Path) -> None:
    # The last window of an epoch has 1,438 - 4 x 300 = 238 samples: micro-batches of 50 for 5 of 6 passes.
    uneven = ["digits", "--set=data.batch_size=300", "--set=train={epochs: 2, micro_batch_size: 50}"]
    fit(*uneven, "--procs=3", "--set=eval.batch_size=300", "--run=ddp", cwd=tmp_path)
    fit(*uneven, "--procs=3", "--set=eval.batch_size=300", "--set=parallel.strategy=fsdp", "--run=fsdp", cwd=tmp_path)
    ddp, fsdp = (status(tmp_path / name)["last"] for name in ("ddp", "fsdp"))
    assert fsdp["val/loss"] == pytest.approx(ddp["val/loss"], rel=1e-2)


@pytest.mark.slow
def test_moving_average_is_what_is_evaluated(tmp_path: Path) -> None:
    plain = ["digits", "--set=train.epochs=1"]
    fit(*plain, "--run=plain", cwd=tmp_path)
    fit(*plain, "--set=train.ema_decay=0.5", "--run=averaged", cwd=tmp_path)
    without, averaged = status(tmp_path / "plain"), status(tmp_path / "averaged")
    assert averaged["weights_digest"] == without["weights_digest"]
    assert averaged["last"]["val/loss"] != without["last"]["val/loss"]


FEW = ["digits", "--set=data.train_samples=20", "--set=train.epochs=2", "--set=log.every_steps=1"]


@pytest.mark.parametrize(
    "strategy",
    [
        "parallel.strategy=auto",
        *(
            pytest.param(other, marks=pytest.mark.slow)
            for other in ("parallel.strategy=ddp", "parallel.strategy=fsdp", "train={epochs: 2, exact: true}")
        ),
    ],
)
def test_fewer_samples_than_give_every_rank_a_micro_batch_train_as_on_one_process(
    tmp_path: Path, strategy: str
) -> None:
    more = [f"--set={strategy}", "--set=train.micro_batch_size=32"]
    fit(*FEW, *more, "--procs=1", "--run=one", cwd=tmp_path)
    fit(*FEW, *more, "--procs=2", "--run=two", cwd=tmp_path)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert status(tmp_path / "two")["total_steps"] == 2
