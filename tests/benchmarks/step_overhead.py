"""Measures what a step of distrain's loop costs over the shortest loop that trains the same network.

    python -m tests.benchmarks.step_overhead

A two-layer network on the 8x8 digits, batch 64, SGD with momentum, one process. Both loops gather shuffled batches from
the same tensors; distrain's also normalises them, seeds the network's draws, follows a schedule, and writes metrics,
status and checkpoints to a real run directory. The two take turns in one process; medians over the turns are printed.
"""

import argparse
import contextlib
import io
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from distrain.config import Data, load_recipe
from distrain.config.profile import Profile
from distrain.data.sources.base import TensorSource
from distrain.data.sources.registry import open_sources
from distrain.distributed.world import World
from distrain.runs.directory import RunDirectory
from distrain.training import trainer
from distrain.training.monitor import RankMonitor

HIDDEN = 128
BATCH = 64


def network(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, num_classes))


def bare_seconds(images: torch.Tensor, labels: torch.Tensor, steps: int, *, fused: bool) -> float:
    """Seconds of `steps` steps of a loop with nothing in it that training does not need."""
    torch.manual_seed(0)
    model = network(10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=fused)
    per_epoch = len(labels) // BATCH
    started = time.perf_counter()
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(labels))
        indices = order[(step % per_epoch) * BATCH :][:BATCH]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images[indices]), labels[indices])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return time.perf_counter() - started


def overrides(steps: int) -> list[str]:
    """Return what makes the digits' recipe a run of so many steps of `network`, with its metrics logged."""
    return [
        "model.name=tests.benchmarks.step_overhead:network",
        "loss.label_smoothing=0",
        "optimizer={name: sgd, lr: 0.05, momentum: 0.9}",
        "schedule={name: cosine}",
        f"train={{epochs: 100000, max_steps: {steps}}}",
        "data.drop_last=true",
        "eval.every_epochs=null",
        "checkpoint.every_epochs=null",
        "log={every_steps: 50, tensorboard: false, wandb: disabled}",
    ]


def distrain_seconds(folder: Path, steps: int) -> float:
    """Seconds of the same steps in the engine, with all that a run does: the last evaluation and save too."""
    recipe = load_recipe("digits", overrides=overrides(steps))
    run = RunDirectory(folder)
    run.create()
    profile = Profile(launcher="inprocess", device="cpu", processes=1, threads=torch.get_num_threads())
    world = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    with contextlib.redirect_stdout(io.StringIO()), RankMonitor(run, rank=0) as monitor:
        trainer.train(recipe, profile, run, world, monitor)
    return run.read_status().train_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=4000, help="steps of one turn")
    parser.add_argument("--turns", type=int, default=15, help="turns of each loop")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    arguments = parser.parse_args()

    sources = open_sources(Data(source="digits", batch_size=BATCH))
    assert isinstance(sources["train"], TensorSource)
    images, labels = sources["train"].images.float() / 255, sources["train"].targets
    micros: dict[str, list[float]] = {"bare": [], "bare, fused SGD": [], "distrain": []}
    for turn in range(arguments.turns + 1):
        with tempfile.TemporaryDirectory() as folder:
            seconds = {
                "bare": bare_seconds(images, labels, arguments.steps, fused=False),
                "bare, fused SGD": bare_seconds(images, labels, arguments.steps, fused=True),
                "distrain": distrain_seconds(Path(folder) / "run", arguments.steps),
            }
        if turn > 0:  # the first turn warms up
            for name, value in seconds.items():
                micros[name].append(value / arguments.steps * 1e6)

    differences = [ours - bare for ours, bare in zip(micros["distrain"], micros["bare"], strict=True)]
    quarters = statistics.quantiles(differences, n=4)
    medians = {name: statistics.median(values) for name, values in micros.items()}
    result = {
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "steps_per_turn": arguments.steps,
        "microseconds_per_step": {name: round(value, 1) for name, value in medians.items()},
        "overhead_microseconds": round(statistics.median(differences), 1),
        "overhead_middle_half": [round(edge, 1) for edge in (quarters[0], quarters[2])],
        "ratio": round(medians["distrain"] / medians["bare"], 3),
    }
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    print(f"torch {result['torch']} on {result['machine']}, {arguments.turns} turns of {arguments.steps} steps")
    for name, value in medians.items():
        low, high = min(micros[name]), max(micros[name])
        print(f"{name:<16} {value:7.1f} us a step ({low:.1f} to {high:.1f}), {value / medians['bare']:.3f} of bare")
    low, high = result["overhead_middle_half"]
    overhead = result["overhead_microseconds"]
    print(
        f"overhead of distrain over bare, median of the turns: {overhead} us a step ({low} to {high} in half of them)"
    )


if __name__ == "__main__":
    main()
