"""A run can be resumed with other compute settings, and its results can be used without them."""

import json
from pathlib import Path

import pytest

from tests.cli_runner import distrain, fit, metrics, status

FAST = [
    "digits",
    "--set=model.name=nets:net",
    "--set=data.batch_size=96",
    "--set=train={epochs: 2, micro_batch_size: 16, ema_decay: 0.9}",
    "--set=log.every_steps=1",
    "--set=checkpoint.every_steps=5",
]
NETS = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after)
    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)))

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.blocks = nn.Sequential(Block(1, 16), Block(16, 16))
        self.fc = nn.Linear(16, num_classes)
        self.register_buffer("first_look", torch.zeros(3))
    def initialize_from(self, images):
        self.first_look.copy_(torch.tensor([len(images), images.mean(), torch.rand(())]))
    def forward(self, x):
        return self.fc(self.blocks(x).mean(dim=(2, 3)))

def net(num_classes):
    return Net(num_classes)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path


def losses(run: Path) -> list[float]:
    return [record["train/loss"] for record in metrics(run)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compute", "strategy"),
    [
        ("{compile: whole, memory_format: channels_last}", "ddp"),
        ("{compile: regional}", "ddp"),
        ("{compile: regional, memory_format: channels_last}", "fsdp"),
    ],
)
def test_compiled_run_trains_as_a_plain_one_and_is_used_without_a_compiler(
    folder: Path, compute: str, strategy: str
) -> None:
    where = ["--procs=2", f"--set=parallel.strategy={strategy}"]
    fit(*FAST, *where, "--set=train.max_steps=10", "--run=plain", cwd=folder)
    done = fit(*FAST, *where, "--set=train.max_steps=10", f"--set=compute={compute}", "--run=quick", cwd=folder)
    assert "torch.compile took" in done.out
    assert losses(folder / "quick") == pytest.approx(losses(folder / "plain"), rel=2e-3)

    nowhere = {"PATH": str(folder), "CXX": "nowhere"}
    done = distrain("eval", "quick", "--json", cwd=folder, env=nowhere)
    assert done.code == 0, done.err
    assert json.loads(done.out)["metrics"]["val/loss"] == pytest.approx(status(folder / "quick")["last"]["val/loss"])
    done = distrain("export", "quick", "--out", "bundle", cwd=folder, env=nowhere)
    assert done.code == 0, done.err


@pytest.mark.slow
def test_compiled_run_goes_on_without_a_compiler_where_it_is_told_to(folder: Path) -> None:
    compiled = [*FAST, "--set=compute.compile=whole", "--set=train.epochs=20", "--run=run"]
    fit(*compiled, "--set=train.max_time=0.02", cwd=folder)
    done = distrain("fit", "--run=run", cwd=folder, env={"CXX": "nowhere"})
    assert status(folder / "run")["state"] == "finished", done.err


def test_machine_without_a_compiler_is_told_so_in_one_sentence(folder: Path) -> None:
    done = distrain("fit", *FAST, "--set=compute.compile=whole", "--run=run", cwd=folder, env={"CXX": "nowhere"})
    assert done.code == 2
    assert "nowhere is not installed" in done.err
    assert "--set compute.compile=none" in done.err
    assert "Traceback" not in done.out + done.err


@pytest.mark.slow
def test_network_is_shown_the_same_first_images_on_any_number_of_processes(folder: Path) -> None:
    from distrain.checkpoint.load import read_model

    looks = []
    for processes in (1, 2):
        run = folder / f"run-{processes}"
        one_thread = ["--set=train.max_steps=1", "--set=train.threads=1"]  # more of them add up in another order
        fit(*FAST, *one_thread, f"--procs={processes}", f"--run={run}", cwd=folder)
        looks.append(read_model(run / "checkpoints" / "step-00000001")["first_look"].tolist())
    assert looks[0] == looks[1]
    assert looks[0][0] == 1024
    assert looks[0][2] > 0
