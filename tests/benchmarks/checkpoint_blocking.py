"""Measures how long a checkpoint holds up the training: an asynchronous save against `torch.save` of the same state.

    python -m tests.benchmarks.checkpoint_blocking

The state is a ResNet-50 with SGD's momentum. After distrain's save come the forward and backward pass of the next step,
on 16 images of 64 pixels, beside which the weights are copied; then the update may come. Blocked is what the save and
the wait before the update take. What the passes take longer than without a save is told beside it. The save is waited
for, outside the measurement, before the next turn: nothing else is under way on the disk. Medians are printed.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torchvision.models import resnet50

from distrain import config as recipe
from distrain.checkpoint.tensors import Tensors, changed_by_update, gather_tensors
from distrain.checkpoint.writer import Checkpointer
from distrain.distributed.world import World


class Training:
    """A ResNet-50 with momentum, in the middle of its training."""

    def __init__(self, device: torch.device) -> None:
        self.model = resnet50().to(device)
        self.images = torch.randn(16, 3, 64, 64, device=device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.pass_seconds()
        self.optimizer.step()

    @property
    def tensors(self) -> Tensors:
        """The weights, buffers and momentum."""
        return gather_tensors(self.model, self.optimizer)

    def pass_seconds(self) -> float:
        """Seconds of a forward and a backward pass."""
        started = time.perf_counter()
        self.model(self.images).square().mean().backward()
        if self.images.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started


def torch_seconds(tensors: Tensors, file: Path) -> float:
    """Seconds of a `torch.save` that brings the file to disk, as a checkpoint must be."""
    started = time.perf_counter()
    with file.open("wb") as stream:
        torch.save(tensors, stream)
        stream.flush()
        os.fsync(stream.fileno())
    return time.perf_counter() - started


def save_seconds(writer: Checkpointer, step: int, training: Training) -> tuple[float, float, float]:
    """Seconds that training is held up, that the passes take longer, and until the checkpoint is committed."""
    undisturbed = training.pass_seconds()
    tensors = training.tensors
    started = time.perf_counter()
    writer.save(step, tensors=tensors, state={}, stable=changed_by_update(training.model, tensors))
    blocked = time.perf_counter() - started
    slowed = training.pass_seconds() - undisturbed
    waiting = time.perf_counter()
    writer.wait_for_staging()
    blocked += time.perf_counter() - waiting
    writer.wait()
    return blocked, slowed, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=7, help="turns of each, after one that warms up")
    parser.add_argument("--device", default="cpu", help="where the tensors are: cpu or cuda")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder if left out")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    arguments = parser.parse_args()

    device = torch.device(arguments.device)
    training = Training(device)
    seconds: dict[str, list[float]] = {"torch.save": [], "blocked": [], "passes slowed by": [], "committed": []}
    world = World(rank=0, size=1, local_rank=0, device=device)
    config = recipe.Checkpoint(keep_last=1)
    with (
        tempfile.TemporaryDirectory(dir=arguments.folder) as folder,
        Checkpointer(Path(folder) / "checkpoints", config=config, world=world) as writer,
    ):
        for turn in range(arguments.turns + 1):
            blocked, slowed, committed = save_seconds(writer, turn, training)
            saved = torch_seconds(training.tensors, Path(folder) / "state.pt")
            if turn > 0:  # the first turn makes the copies' memory and fills the caches
                for name, value in zip(seconds, (saved, blocked, slowed, committed), strict=True):
                    seconds[name].append(value)
            else:
                first_blocked = blocked

    medians = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "mebibytes": round(sum(t.numel() * t.element_size() for t in training.tensors.values()) / 2**20, 1),
        "turns": arguments.turns,
        "seconds": {name: round(value, 4) for name, value in medians.items()},
        "first_blocked_seconds": round(first_blocked, 4),
        "ratio": round(medians["blocked"] / medians["torch.save"], 3),
    }
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{result['mebibytes']} MiB on {result['device']}, torch {result['torch']} on {result['machine']}")
    for name, value in medians.items():
        print(f"{name:<16} {value:7.4f} s ({min(seconds[name]):.4f} to {max(seconds[name]):.4f})")
    print(f"training is blocked for {result['ratio']} of torch.save; by the first save of a run {first_blocked:.4f} s")


if __name__ == "__main__":
    main()
