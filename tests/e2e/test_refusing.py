"""A training continues while its disk cannot be written, and writes the waiting data afterwards."""

import errno
from pathlib import Path

import pytest

from tests.cli_runner import Launch, end_of, metrics, status, wait_for_step
from tests.refusing import refusing

RECIPE = ["--procs=1", "--device=cpu", "--set=train.epochs=30", "--set=eval.every_epochs=10", "--set=log.every_steps=5"]
RECIPE += ["--set=checkpoint={every_steps: 20, every_epochs: null}"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        errno.EIO,
        errno.ESTALE,
        errno.EDQUOT,
        errno.EROFS,
    ],
)
def test_disk_that_takes_nothing_for_a_while_costs_a_training_nothing(
    tmp_path: Path, launch: Launch, error: int
) -> None:
    run, flag = tmp_path / "run", tmp_path / "flag"
    training = launch("--run=run", *RECIPE, cwd=tmp_path, env=refusing(run, error, while_exists=flag))
    wait_for_step(run, 1)
    flag.touch()
    told = ""
    assert training.stdout is not None
    while not all(
        words in told for words in ("its lines wait in memory", "status.json could not be", "checkpoint step-")
    ):
        line = training.stdout.readline()
        assert line, f"the training has ended\n{told}"
        told += line
    flag.unlink()
    done = end_of(training)
    assert done.code == 0, told + done.out
    assert status(run)["state"] == "finished"
    assert "Traceback" not in told + done.out
    assert "Logging error" not in told + done.out
    log = (run / "logs" / "rank-0.log").read_text()
    assert "its lines wait in memory" in log
    assert "checkpoint step-" in log

    assert [record["step"] for record in metrics(run)] == list(range(5, 691, 5))
