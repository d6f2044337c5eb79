"""Exact mode gives the same bits at every number of processes, with resumes from any to any other."""

import json
from pathlib import Path
from typing import Any

import pytest
import xxhash

from tests.cli_runner import comparable, distrain, fit, status
from tests.e2e.test_resume import kill_after_checkpoint, start

# BatchNorm, dropout, augmentation, clipping, a moving average, slow weights, freezing, accumulation, and a smaller last
# window of five micro-batches (1,438 = 14 x 96 + 94 samples), in six micro-batches a step.
RECIPE = [
    "digits",
    "--set=train={epochs: 2, exact: true, micro_batch_size: 16, clip_norm: 0.5, ema_decay: 0.9, lookahead: {power: 1}}",
    "--set=model.freeze_epochs={features.0: 0.6}",
    "--set=data.batch_size=96",
    "--set=augment.train=[RandomCrop: {size: 8, padding: 1}]",
    "--set=optimizer={name: adamw, lr: 0.002, weight_decay: 0.01}",
    "--set=log.every_steps=4",
    "--set=checkpoint.every_steps=5",
]


def facts(run: Path) -> dict[str, Any]:
    """All that must be the same to the bit."""
    found = status(run)
    assert found["weights_digest"] and found["state_digest"]
    return {"weights": found["weights_digest"], "state": found["state_digest"], "lines": comparable(run)}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("alone")
    fit(*RECIPE, "--run=run", cwd=folder)
    return facts(folder / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    "processes",
    [
        2,
        3,
        4,
        6,
    ],
)
def test_any_number_of_processes_gives_the_bits_of_one(tmp_path: Path, alone: dict[str, Any], processes: int) -> None:
    done = fit(*RECIPE, f"--procs={processes}", "--run=run", cwd=tmp_path)
    assert facts(tmp_path / "run") == alone
    if processes == 4:
        assert "6 micro-batches of 16 over 4 processes, at most 2 each" in done.out


def test_run_killed_and_resumed_on_other_numbers_of_processes_gives_the_bits_of_one(
    tmp_path: Path, alone: dict[str, Any]
) -> None:
    for processes, step in ((1, 5), (2, 10), (4, 15), (3, 20)):
        process = start([*RECIPE, "--run=run", f"--procs={processes}"], tmp_path)
        kill_after_checkpoint(process, tmp_path / "run", step=step, delay_s=0.0)
    done = fit(*RECIPE, "--run=run", "--procs=1", cwd=tmp_path)
    assert "bits may differ" not in done.out
    found = status(tmp_path / "run")
    assert [attempt["world_size"] for attempt in found["attempts"]] == [1, 2, 4, 3, 1]
    assert facts(tmp_path / "run") == alone


OWN_CODE = """
import random
import numpy as np
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.first = nn.Linear(64, 16)
        self.first.weight.data = torch.from_numpy(np.random.uniform(-0.1, 0.1, (16, 64))).float()
        self.last = nn.Linear(16, num_classes)

    def forward(self, images):
        hidden = self.first(images.flatten(1)).relu()
        return self.last(hidden * random.uniform(0.5, 1.5) * np.random.uniform(0.5, 1.5) if self.training else hidden)

class Images:
    classes = ["dark", "bright"]

    def __init__(self, split, path=None):
        self.count = 72 if split == "train" else 20

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.rand(1, 8, 8) * random.random() * np.random.rand() + index % 2, index % 2
"""


def test_what_own_code_draws_is_the_same_on_any_number_of_processes_and_after_a_resume(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN_CODE)
    recipe = [
        "digits",
        "--set=data={source: mine:Images, batch_size: 16, num_workers: 0}",
        "--set=model.name=mine:Network",
        "--set=train={epochs: 8, exact: true, micro_batch_size: 4}",
        "--set=checkpoint.every_steps=3",
        "--set=augment.train=[RandomErasing]",
    ]
    fit(*recipe, "--run=alone", cwd=tmp_path)
    process = start([*recipe, "--set=data.num_workers=1", "--procs=2", "--run=together"], tmp_path)
    kill_after_checkpoint(process, tmp_path / "together", step=3, delay_s=0.0)
    fit("--run=together", "--procs=1", cwd=tmp_path)
    assert facts(tmp_path / "together") == facts(tmp_path / "alone")


@pytest.mark.slow
def test_channels_last_has_the_same_bits_at_any_number_of_processes(tmp_path: Path) -> None:
    changes = ["--set=compute.memory_format=channels_last", "--set=optimizer={name: sgd, lr: 0.05, momentum: 0.9}"]
    fit(*RECIPE, *changes, "--run=alone", cwd=tmp_path)
    fit(*RECIPE, *changes, "--procs=2", "--run=together", cwd=tmp_path)
    assert facts(tmp_path / "together") == facts(tmp_path / "alone")


@pytest.mark.slow
def test_mixed_and_resized_batches_are_the_same_at_any_number_of_processes(tmp_path: Path) -> None:
    changes = ["--set=augment={mixup: 0.2, cutmix: 1.0, mix_prob: 0.8, sizes: [[0, 6], [1, 10]]}"]
    fit(*RECIPE, *changes, "--run=alone", cwd=tmp_path)
    fit(*RECIPE, *changes, "--procs=2", "--run=together", cwd=tmp_path)
    assert facts(tmp_path / "together") == facts(tmp_path / "alone")


@pytest.mark.slow
def test_plain_mode_does_not_give_the_bits_of_one(tmp_path: Path, alone: dict[str, Any]) -> None:
    """So that the tests above are seen to test something."""
    fit(*RECIPE, "--set=train.exact=false", "--procs=2", "--run=run", cwd=tmp_path)
    assert facts(tmp_path / "run")["weights"] != alone["weights"]


def test_other_threads_and_versions_are_said_to_change_bits(tmp_path: Path) -> None:
    short = [*RECIPE, "--set=train.max_steps=10", "--run=run"]
    kill_after_checkpoint(start(short, tmp_path), tmp_path / "run", step=5, delay_s=0.0)
    newest = max((tmp_path / "run" / "checkpoints").glob("step-????????"))
    state, manifest = newest / "state.json", newest / "MANIFEST.json"
    written = json.loads(state.read_text())
    written["rounding"] |= {"threads": 8, "torch": "2.0.0"}
    state.write_text(json.dumps(written))
    listed = json.loads(manifest.read_text())
    digest = xxhash.xxh3_128(state.read_bytes()).hexdigest()
    listed["files"]["state.json"] = {"bytes": state.stat().st_size, "xxh3_128": digest}
    manifest.write_text(json.dumps(listed))
    done = fit(*short, cwd=tmp_path)
    assert "threads was 8 before and is 1 now: the quality of results is the same, but bits may differ" in done.out
    assert "torch was 2.0.0 before and is" in done.out


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--procs=7"], "train.exact has 6 micro-batches of 16 for 7 processes; use 1 to 6 processes"),
        (["--set=train.micro_batch_size=null"], "--set train.micro_batch_size=24"),
        (["--set=data.batch_size=90"], "data.batch_size=90 does not divide into micro-batches of 16"),
        (["--set=parallel.strategy=fsdp"], "train.exact and parallel.strategy=fsdp exclude each other"),
    ],
)
def test_what_exact_mode_cannot_do_is_said_in_one_sentence(tmp_path: Path, change: list[str], sentence: str) -> None:
    done = distrain("fit", *RECIPE, *change, "--run=run", cwd=tmp_path)
    assert done.code == 2
    assert sentence in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_verify_proves_that_a_killed_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    done = distrain("verify", "--procs=1", "--steps=12", cwd=tmp_path)
    assert done.code == 0, done.out + done.err
    assert "identical  on 1 process, killed and resumed" in done.out
    assert "the promise holds, at an equal number of processes" in done.out


@pytest.mark.slow
def test_verify_proves_the_promise_for_other_numbers_of_processes(tmp_path: Path) -> None:
    exact = ["--set=train.exact=true", "--set=train.micro_batch_size=16"]
    done = distrain("verify", "digits", *exact, "--procs=1,2", "--steps=12", cwd=tmp_path)
    assert done.code == 0, done.out + done.err
    assert done.out.count("identical") == 3
    assert "the promise holds, at every number of processes" in done.out
    assert not list(tmp_path.iterdir())
