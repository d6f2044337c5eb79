"""How a run ends when it is stopped, when it fails, and when somebody debugs it."""

import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli_runner import QUIET, command, distrain, fit, status, wait_for_step

LONG = ["digits", "--set=train.epochs=2000", "--set=log.every_steps=5", "--set=eval.every_epochs=null", "--run=run"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "number"), [pytest.param(1, signal.SIGINT, marks=pytest.mark.slow), (2, signal.SIGTERM)]
)
def test_stopped_run_saves_exits_resumable_and_goes_on(tmp_path: Path, processes: int, number: int) -> None:
    arguments = [*LONG, f"--procs={processes}"]
    process = subprocess.Popen(command("fit", *arguments, *QUIET), cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    wait_for_step(tmp_path / "run", 10)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75, out
    found = status(tmp_path / "run")
    assert found["state"] == "stopped"
    assert (tmp_path / "run" / "checkpoints" / f"step-{found['step']:08d}").is_dir()
    assert "resume with   distrain resume" in out

    process = subprocess.Popen(command("fit", "--run=run", *QUIET), cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    wait_for_step(tmp_path / "run", found["step"] + 10)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75, out
    assert f"at step {found['step']} of" in out
    if processes == 2:
        assert "processes was 2 before and is 1 now" in out


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_failure_is_told_once_with_rank_step_and_the_command_that_goes_on(tmp_path: Path, processes: int) -> None:
    (tmp_path / "broken.py").write_text(
        "import os, torch\n"
        "CALLS = []\n"
        "def loss(logits, targets):\n"
        "    CALLS.append(1)\n"
        "    if len(CALLS) > 50 and os.environ.get('RANK', '0') == os.environ.get('BROKEN_RANK'):\n"
        "        raise ArithmeticError('the loss broke')\n"
        "    return torch.nn.functional.cross_entropy(logits, targets)\n"
    )
    arguments = ["--set=loss={name: 'broken:loss'}", f"--procs={processes}", "--restarts=0", "--run=run"]
    last = str(processes - 1)
    done = distrain("fit", *arguments, *QUIET, cwd=tmp_path, env={"BROKEN_RANK": last})
    assert done.code == 1
    assert done.out.count("the loss broke") == 1
    assert f"on rank {last}" in done.out
    assert "Traceback" not in done.out + done.err
    assert f"rank-{last}.log" in done.out
    assert status(tmp_path / "run")["state"] == "failed"
    assert "the loss broke" in (tmp_path / "run" / "logs" / f"rank-{last}.log").read_text()

    mended = fit(*arguments, "--set=train.max_steps=5", cwd=tmp_path, env={"BROKEN_RANK": "none"}, code=2)
    assert "train.max_steps" in mended.err
    again = ["fit", "--run=run", f"--procs={processes}", "--restarts=0", "--verbose"]
    done = distrain(*again, cwd=tmp_path, env={"BROKEN_RANK": last})
    assert done.code == 1
    assert "ArithmeticError" in done.out
    assert "Traceback" in done.out


def test_breakpoint_stops_in_the_users_own_code(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__(64, num_classes)\n"
        "    def forward(self, images):\n"
        "        if self.training:\n"
        "            breakpoint()\n"
        "        return super().forward(images.flatten(1))\n"
    )
    done = subprocess.run(
        command("fit", "--set=model.name=nets:Net", "--set=train.max_steps=1", "--run=run", *QUIET),
        cwd=tmp_path,
        input="p 'seen', tuple(images.shape)\nc\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "('seen', (64, 1, 8, 8))" in done.stdout
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "precision", [pytest.param(precision, marks=pytest.mark.slow) for precision in ("bf16", "fp16")]
)
def test_mixed_precision_trains_and_resumes_to_the_bit(tmp_path: Path, precision: str) -> None:
    arguments = [f"--set=precision={precision}", "--set=train.epochs=1", "--set=train.clip_norm=1.0"]
    fit(*arguments, "--run=whole", cwd=tmp_path)
    fit(*arguments, "--run=pieced", "--set=checkpoint.every_steps=9", cwd=tmp_path)
    pieced = tmp_path / "pieced"
    for late in sorted((pieced / "checkpoints").glob("step-*"))[1:]:
        subprocess.run(["rm", "-r", str(late)], check=True)  # as if it had been killed before it wrote this one
    (pieced / "status.json").unlink()
    fit(*arguments, "--run=pieced", "--set=checkpoint.every_steps=9", cwd=tmp_path)
    assert status(pieced)["attempts"][0]["first_step"] == 18
    assert status(pieced)["weights_digest"] == status(tmp_path / "whole")["weights_digest"]
    assert status(pieced)["last"]["val/loss"] == status(tmp_path / "whole")["last"]["val/loss"]
