"""Writes what `start_up` and `restart` train: a network that notes when each process has taken its first step."""

import os
import subprocess
import sys
from pathlib import Path

# Imported by distrain as `model.name: timed:network`, and by the bare script.
TIMED = """
import os
import time
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook


def network(num_classes, in_channels=1):
    return nn.Sequential(
        nn.Conv2d(in_channels, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 16, num_classes),
    )


def note(*_):
    handle.remove()
    if os.environ.get("RANK", "0") == "0":
        with open({times!r}, "a") as file:
            file.write(f"{{time.time()}}\\n")


handle = register_optimizer_step_post_hook(note)
"""

# What a plain program does up to its first step, with the imports of a training on images.
BARE = """
import os
import numpy as np
import torch
import torch.nn.functional as F
from torchvision.transforms import v2
from timed import network

if "RANK" in os.environ:
    torch.distributed.init_process_group("gloo")
with np.load({digits!r}) as arrays:
    images, labels = torch.from_numpy(arrays["images"][:64]), torch.from_numpy(arrays["labels"][:64]).long()
images = v2.RandomCrop(8, padding=1)(images.view(-1, 1, 8, 8).float())
model = network(10)
if "RANK" in os.environ:
    model = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.Adam(model.parameters(), lr=0.001, fused=True)
F.cross_entropy(model(images), labels).backward()
optimizer.step()
"""

RECIPE = [
    "digits",
    "--device=cpu",
    "--set=model.name=timed:network",
    "--set=optimizer={name: adam, lr: 0.001}",  # distrain takes SGD's steps itself, without the hook that notes them
    "--set=augment.train=[RandomCrop: {size: 8, padding: 1}]",
]


def write_programs(folder: Path, digits: Path) -> Path:
    """Write timed.py and bare.py into `folder`; returns the file into which first steps are noted, a time a line."""
    times = folder / "times"
    (folder / "timed.py").write_text(TIMED.format(times=str(times)))
    (folder / "bare.py").write_text(BARE.format(digits=str(digits)))
    return times


def bare_commands(processes: int) -> dict[str, list[str]]:
    """Return the ways in which the bare script is started; without torchrun it is one process."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    commands = {"bare, torchrun": [*torchrun, "bare.py"]}
    if processes == 1:
        commands["bare"] = [sys.executable, "bare.py"]
    return commands


def begin(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start a command in `folder`, whose modules it finds, without showing what it prints."""
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def read_times(times: Path) -> list[float]:
    """Return the noted times, in seconds since the epoch."""
    return [float(line) for line in times.read_text().split()] if times.exists() else []
