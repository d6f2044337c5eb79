"""Measures what the recipe's section `compute` and its `precision` bring: images a second of training steps.

    python -m tests.benchmarks.compute_modes [--device cuda] [--json] [--plot modes.png]

Each network is built, placed, compiled and stepped by distrain's own functions, in every mode; the modes take turns in
one process, and medians over the turns are printed beside the ratio to float32. Images are random, uint8, and on the
device already. `first` is the seconds of a mode's first step, which compiles.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from distrain.config import Recipe, load_recipe
from distrain.data.transforms.pipeline import Normalize
from distrain.distributed.compile import compile_network
from distrain.distributed.world import World
from distrain.models.registry import build_model
from distrain.training.device.precision import MEMORY_FORMATS, Precision, set_tf32, to_device
from distrain.training.losses import build_loss
from distrain.training.optim.optimizer import build_optimizer

MODES = {
    "fp32": [],
    "fp32, channels_last": ["compute.memory_format=channels_last"],
    "bf16": ["precision=bf16"],
    "bf16, channels_last": ["precision=bf16", "compute.memory_format=channels_last"],
    "bf16, channels_last, regional": [
        "precision=bf16",
        "compute={memory_format: channels_last, compile: regional}",
    ],
    "bf16, channels_last, whole": ["precision=bf16", "compute={memory_format: channels_last, compile: whole}"],
}
GPU_MODES = {
    "tf32": ["compute.tf32=true"],
    "bf16, channels_last, CUDA graphs": [
        "precision=bf16",
        "compute={memory_format: channels_last, compile: whole, cuda_graphs: true}",
    ],
}
NETWORKS = {"cifar-cnn": 32, "cifar-fast": 32, "resnet18": 64}  # the side of their images


def prepare(recipe: Recipe, world: World, *, batch_size: int, pixels: int) -> Callable[[], None]:
    """Return a training step of a recipe's network on random images, which runs without waiting for the device."""
    torch.manual_seed(0)
    device = world.device
    network = to_device(build_model(recipe.model, num_classes=10, in_channels=3), recipe, device).train()
    compile_network(recipe, network, world, micro_batch_size=batch_size, num_micro_batches=1, processes=1)
    optimizer = build_optimizer(recipe.optimizer, network)
    precision = Precision(recipe.precision, device)
    loss_function = build_loss(recipe.loss, num_classes=10, target="class", device=device)
    normalize = Normalize(
        recipe.augment,
        num_channels=3,
        device=device,
        memory_format=MEMORY_FORMATS[recipe.compute.memory_format],
    )
    images = torch.randint(256, (batch_size, 3, pixels, pixels), dtype=torch.uint8, device=device)
    targets = torch.randint(10, (batch_size,), device=device)

    def step() -> None:
        set_tf32(recipe, device)
        with precision.autocast():
            loss = loss_function(network(normalize(images)), targets)
        precision.backward(loss)
        precision.step(optimizer, list(network.parameters()), clip=None)
        optimizer.zero_grad()

    return step


def seconds_of(step: Callable[[], None], steps: int, device: torch.device) -> float:
    """Return the seconds of so many steps, done to the end."""
    wait(device)
    started = time.perf_counter()
    for _ in range(steps):
        step()
    wait(device)
    return time.perf_counter() - started


def wait(device: torch.device) -> None:
    """Let the device finish what it has been given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device) -> dict[str, Any]:
    """Return hardware and versions, for the head of a result."""
    processor = next((line.partition(": ")[2] for line in _cpuinfo() if line.startswith("model name")), "")
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor or platform.machine(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def measure(name: str, modes: dict[str, list[str]], arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return of each mode its images a second, their ratio to the first mode's, and the seconds of its first step."""
    device = torch.device(arguments.device)
    world = World(rank=0, size=1, local_rank=0, device=device)
    size, steps, pixels = arguments.batch_size, arguments.steps, NETWORKS[name]
    ways: dict[str, Callable[[], None]] = {}
    first: dict[str, float] = {}
    for mode, overrides in modes.items():
        if "regional" in mode and name == "cifar-cnn":
            continue  # it has no blocks of its own class
        fixed = [f"model={{name: {name}}}", f"data.batch_size={size}", "train.deterministic=false"]
        recipe = load_recipe("cifar10", overrides=[*fixed, "compute.tf32=false", *overrides])
        ways[mode] = prepare(recipe, world, batch_size=size, pixels=pixels)
        first[mode] = seconds_of(ways[mode], 1, device)
        seconds_of(ways[mode], 3, device)  # kernels are chosen, graphs are recorded
    turns = [{mode: seconds_of(way, steps, device) for mode, way in ways.items()} for _ in range(arguments.turns)]
    base = next(iter(ways))
    return {
        mode: {
            "images_per_s": round(statistics.median(size * steps / turn[mode] for turn in turns), 1),
            "ratio": round(statistics.median(turn[base] / turn[mode] for turn in turns), 3),
            "first_s": round(first[mode], 2),
        }
        for mode in ways
    }


def draw(results: dict[str, dict[str, dict[str, float]]], file: Path, title: str) -> None:
    """Draw the ratios as bars, one group a network."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(results), 1, figsize=(8, 1 + 2 * len(results)), squeeze=False, sharex=True)
    for axis, (name, found) in zip(axes[:, 0], results.items(), strict=True):
        bars = axis.barh(list(found), [row["ratio"] for row in found.values()])
        axis.bar_label(bars, fmt="%.2f", padding=3)
        axis.invert_yaxis()
        axis.set_title(name)
    axes[-1, 0].set_xlabel(f"speed over fp32, {title}")
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["cifar-cnn", "resnet18"])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10, help="steps of one turn")
    parser.add_argument("--turns", type=int, default=5, help="turns of each mode")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--plot", type=Path, help="draw the ratios into this file")
    arguments = parser.parse_args()
    modes = MODES | (GPU_MODES if arguments.device == "cuda" else {})
    about = machine(torch.device(arguments.device))
    results = {name: measure(name, modes, arguments) for name in arguments.networks}
    if arguments.plot is not None:
        draw(results, arguments.plot, f"{about['device']}, torch {about['torch']}")
    if arguments.json:
        print(json.dumps({**about, "batch_size": arguments.batch_size, "results": results}, indent=1))
        return
    print(f"torch {about['torch']} on {about['device']}, {about['threads']} threads, batch {arguments.batch_size}")
    print(f"{arguments.turns} turns of {arguments.steps} steps, medians")
    for name, found in results.items():
        for mode, row in found.items():
            print(
                f"{name:<11} {mode:<33} {row['images_per_s']:9.1f} images/s  {row['ratio']:6.3f} of fp32  "
                f"first step {row['first_s']:6.2f} s"
            )


if __name__ == "__main__":
    main()
