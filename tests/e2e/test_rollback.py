"""A loss that is not finite costs its batch, and not the run."""

import math
import re
from pathlib import Path

import pytest

from tests.cli_runner import distrain, fit, metrics, status

# Sample 100 is not a number: one batch of every epoch cannot be trained on.
POISONED = """
import torch

class Samples(torch.utils.data.Dataset):
    classes = ["dark", "bright"]

    def __init__(self, count, poisoned):
        generator = torch.Generator().manual_seed(count)
        self.labels = torch.randint(2, (count,), generator=generator)
        self.images = torch.rand(count, 1, 8, 8, generator=generator) + self.labels.view(-1, 1, 1, 1)
        self.images[poisoned] = float("nan")

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], int(self.labels[index])

def no_loss(logits, targets):
    return logits.sum() * float("nan")

def samples(split, path):
    return Samples(400, [100]) if split == "train" else Samples(100, [])
"""
RECIPE = [
    "digits",
    "--set=data={source: 'poisoned:samples', batch_size: 20}",
    "--set=augment={train: [], eval: []}",
    "--set=train={epochs: 3, max_rollbacks: 3}",
    "--set=log.every_steps=5",
    "--set=checkpoint.every_steps=7",
    "--run=run",
]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_batch_whose_loss_is_not_finite_is_left_out_and_noted(tmp_path: Path, processes: int) -> None:
    (tmp_path / "poisoned.py").write_text(POISONED)
    done = fit(*RECIPE, f"--procs={processes}", cwd=tmp_path)
    found = status(tmp_path / "run")
    (skipped,) = found["skipped_batches"]  # its image is known for the cause from then on
    assert (found["rollbacks"], skipped["bad_samples"]) == (1, [100])
    assert done.out.count(f"warning: the loss is not finite in step {skipped['step']}: ") == 1
    assert "in the pixels of sample 100 of poisoned:samples there are values that are not finite" in done.out
    assert "later batches with sample 100 of poisoned:samples are skipped, too" in done.out
    assert "sample 100 of poisoned:samples" in (tmp_path / "run" / "logs" / "rank-0.log").read_text()
    records = metrics(tmp_path / "run")
    assert [record["step"] for record in records] == sorted({record["step"] for record in records})
    assert records[-1]["step"] == 60
    assert all(math.isfinite(value) for record in records for value in record.values())
    assert records[-1]["train/skipped_batches"] == 3
    assert found["state"] == "finished"
    assert found["last"]["val/top1"] > 0.9


def test_diverging_training_fails_with_the_cause_and_is_not_retried(tmp_path: Path) -> None:
    (tmp_path / "poisoned.py").write_text(POISONED)
    own = ["--set=train.max_rollbacks=1", "--set=loss={name: 'poisoned:no_loss'}"]
    done = distrain("fit", *RECIPE, *own, "--procs=2", cwd=tmp_path)
    assert done.code == 1
    assert "restart 1" not in done.out
    assert re.search(r"^failed at step (\d+) .* is not finite in step \1, and ", done.out, re.MULTILINE)
    assert "train.max_rollbacks=1" in done.out
    assert "optimizer.lr" in done.out
    found = status(tmp_path / "run")
    assert found["state"] == "failed"
    assert found["rollbacks"] == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_run_of_which_no_step_can_be_trained_fails(tmp_path: Path, processes: int) -> None:
    (tmp_path / "poisoned.py").write_text(POISONED)
    own = ["--set=train.max_steps=3", "--set=loss={name: 'poisoned:no_loss'}", f"--procs={processes}"]
    done = distrain("fit", *RECIPE, *own, cwd=tmp_path)
    assert done.code == 1
    assert "restart 1" not in done.out
    sentence = "the loss is not finite in step 3, and no batch of the run gave finite values; check the loss, the netw"
    assert f"TrainingError: {sentence}" in done.out
    found = status(tmp_path / "run")
    assert (found["state"], found["rollbacks"]) == ("failed", 2)
