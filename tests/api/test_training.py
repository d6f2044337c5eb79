"""Runs that are started from Python: the same training as from the command line, with objects of this program."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import distrain
from distrain.errors import DataError, LaunchError, RunError, RunFailedError, UserError
from tests.cli_runner import fit as fit_by_command
from tests.cli_runner import status

QUIET = {"log.wandb": "disabled", "log.tensorboard": False}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def train(**options: Any) -> distrain.Run:
    values = {**QUIET, **options.pop("set", {})}
    return distrain.fit(set=values, **{"device": "cpu", "progress": False, **options})


def stop_after(run: distrain.Run, step: int) -> None:
    while run.status.step <= step:
        time.sleep(0.05)
    run.stop()


class Images:
    """Sixteen images of two classes, bright and dark."""

    classes = ("dark", "bright")

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((1, 8, 8), 255 * (index % 2), dtype=torch.uint8), index % 2


def test_run_of_python_is_that_of_the_command(tmp_path: Path) -> None:
    run = train(set={"train.max_steps": 6})
    fit_by_command("--device=cpu", "--set=train.max_steps=6", f"--run={tmp_path / 'other'}", cwd=tmp_path)
    other = status(tmp_path / "other")
    assert (run.digest, run.status.state_digest) == (other["weights_digest"], other["state_digest"])
    assert run.status.state == "finished"
    assert run.path.parent == tmp_path / "runs"


@pytest.mark.slow
def test_objects_of_a_program_train_stop_resume_and_predict(tmp_path: Path) -> None:
    class Net(nn.Sequential):
        def __init__(self) -> None:  # without num_classes
            super().__init__(nn.Flatten(), nn.Linear(64, 2))

    events: list[distrain.RunEvent] = []
    run = train(
        set={"train.epochs": 100_000, "data.batch_size": 8, "checkpoint.every_steps": 50},
        model=Net,
        train=Images(),
        val=Images(),
        wait=False,
        on_event=events.append,
    )
    while run.status.step < 10:
        assert run.status.state in {"starting", "running"}, run.log()
        time.sleep(0.05)
    with pytest.raises(RunError, match="is in use"):
        train(run=run.path)
    assert run.stop().status.state == "stopped"
    step = run.status.step
    assert run.checkpoints[-1].step == step
    (path,) = (run.path / "objects").glob("Net_*.pkl")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b" ")
    with pytest.raises(UserError, match="has other bytes than the object that the run was started with"):
        run.resume(progress=False)
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"model.name cannot change in run .* \('distrain_objects:Net_"):
        train(run=run.path, model=lambda: nn.Flatten())
    threading.Thread(target=stop_after, args=(run, step), daemon=True).start()
    assert run.resume(progress=False).status.state == "stopped"
    assert run.status.step > step
    assert len(run.status.attempts) >= 2
    assert {"state", "record", "checkpoint"} <= {event.kind for event in events}
    predictions = run.predict(np.stack([np.zeros((8, 8), np.uint8), np.full((8, 8), 255, np.uint8)]))
    assert predictions.labels == ["dark", "bright"]
    assert predictions.values.sum(axis=1) == pytest.approx([1, 1])
    assert run.export("safetensors").name == "model.safetensors"
    evaluation = run.evaluate()
    assert evaluation.metrics["val/top1"] == 1.0


def test_mistake_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    def broken(num_classes: int) -> nn.Module:
        raise ZeroDivisionError(f"for {num_classes}")

    with pytest.raises(UserError, match=r"ZeroDivisionError before the first step, at .*test_training\.py") as caught:
        train(model=broken)
    assert "for 10" in str(caught.value)
    assert "ZeroDivisionError" in caught.value.__notes__[0]  # the traceback of the other process
    with pytest.raises(DataError, match="train= needs val="):
        train(train=Images())
    with pytest.raises(LaunchError, match="--gpus and --procs both"):
        train(gpus=1, procs=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_failure_names_step_and_cause() -> None:
    class Breaks(nn.Module):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.layer, self.calls = nn.Linear(64, num_classes), 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.calls += self.training
            if self.calls > 4:
                raise ValueError("I am broken")
            logits: torch.Tensor = self.layer(images.flatten(1))
            return logits

    with pytest.raises(RunFailedError, match=r"failed at step 4 on rank 0 .*: ValueError: I am broken") as caught:
        train(model=Breaks)
    assert "raise ValueError" in caught.value.__notes__[0]
    assert distrain.open_run("last").status.state == "failed"


def test_interrupt_stops_the_run_saved(tmp_path: Path) -> None:
    """Ctrl-C in a program that waits for a run: the program continues, and the run is saved."""
    program = (
        "import distrain\n"
        f"run = distrain.fit(set={{'train.epochs': 100000, **{QUIET!r}}}, device='cpu')\n"
        "print('after it:', run.status.state, run.checkpoints[-1].step == run.status.step)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    assert process.stdout is not None
    while True:
        runs = list(tmp_path.glob("runs/*/status.json"))
        if runs and json.loads(runs[0].read_text())["step"] > 10:
            break
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(2)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "run directory" in out  # what the command line prints
    assert "interrupted: stopped at step" in out
    assert "after it: stopped True" in out


def test_queued_run_with_an_object_is_taken_out_again() -> None:
    run = distrain.submit_run(
        set=QUIET, model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), device="cpu", queue="local"
    )
    assert run.status.state == "queued"
    assert run.recipe.model.name.startswith("distrain_objects:")
    assert run.stop().status.state == "stopped"
