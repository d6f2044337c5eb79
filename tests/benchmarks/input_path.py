"""Measures how many training images a second reach a batch, by the usual way and by distrain's.

    python -m tests.benchmarks.input_path --data PHOTOGRAPHS --cifar CIFAR10

Both are image folders with train/. The usual way, 1.0: torchvision's ImageFolder with Pillow, transforms of
torchvision, and a DataLoader with 2 worker processes. Photographs become 224x224 crops (RandomResizedCrop, flip), those
of CIFAR-10 are padded, cropped and flipped. distrain gives batches of bytes on the CPU, which it normalises on the
device; on a GPU both are measured up to the normalised batch on it. All take turns in one process; what comes before a
turn's first batch, such as the start of processes, is left out. Medians of the turns.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from distrain.config import Augment, Data
from distrain.data.loading.loader import BatchReader, Loader, read_batches
from distrain.data.loading.sampler import MicroBatch
from distrain.data.sources.base import Source
from distrain.data.sources.cached import cache
from distrain.data.sources.registry import open_sources
from distrain.data.transforms.pipeline import Normalize, build_transforms

WORKERS = 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PHOTOGRAPHS: list[Any] = [{"RandomResizedCrop": {"size": 224, "antialias": True}}, "RandomHorizontalFlip"]
CIFAR: list[Any] = [{"RandomCrop": {"size": 32, "padding": 4}}, "RandomHorizontalFlip"]
NOT_NORMALIZED = {"mean": MEAN, "std": STD}

Batches = Callable[[], Iterator[int]]  # gives the size of each batch, once it is where it belongs


def usual(folder: Path, listed: list[Any], num_images: int, batch_size: int, device: torch.device) -> Batches:
    """The same transforms in torchvision's first form, on Pillow's images, and torch's own loader."""
    end = [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    first = transforms.RandomResizedCrop(224) if listed is PHOTOGRAPHS else transforms.RandomCrop(32, padding=4)
    dataset = ImageFolder(str(folder), transforms.Compose([first, *end]))
    passes = Subset(dataset, positions(len(dataset), num_images).tolist())  # several epochs in one: no pause between

    def read() -> Iterator[int]:
        loader = DataLoader(passes, batch_size, num_workers=WORKERS, pin_memory=device.type == "cuda")
        for images, targets in loader:
            images.to(device, non_blocking=True)
            targets.to(device, non_blocking=True)
            yield len(targets)

    return read


def ours(
    reader: BatchReader, num_images: int, batch_size: int, device: torch.device, *, loader: Loader, num_workers: int
) -> Batches:
    """Batches of distrain: bytes on the CPU, normalised on a GPU."""
    order = positions(len(reader.source), num_images)
    batches = [MicroBatch(order[start : start + batch_size]) for start in range(0, num_images, batch_size)]
    normalize = Normalize(Augment(**NOT_NORMALIZED), num_channels=3, device=device)

    def read() -> Iterator[int]:
        with closing(read_batches(reader, batches, num_workers=num_workers, device=device, loader=loader)) as reading:
            for images, targets in reading:
                if device.type == "cuda":
                    normalize(images)
                yield len(targets)

    return read


def positions(num_samples: int, num_images: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    rng = np.random.default_rng(0)
    passes = [rng.permutation(num_samples) for _ in range(-(-num_images // num_samples))]
    return np.concatenate(passes)[:num_images].astype(np.int64)


def images_per_s(batches: Batches, device: torch.device) -> float:
    with closing(batches()) as sizes:  # type: ignore[type-var]
        next(sizes)
        started = time.perf_counter()
        total = sum(sizes)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return total / (time.perf_counter() - started)


def reader_of(source: Source, listed: list[Any], device: torch.device) -> BatchReader:
    config = Augment.model_validate({"train": listed})
    return BatchReader(source, build_transforms(config.train, key="augment.train"), seed=0, device=device)


def pack(folder: Path, out: Path, *options: str) -> Source:
    """Pack photographs with `distrain data pack`, their shorter side 256 pixels."""
    command = [sys.executable, "-m", "distrain", "data", "pack", str(folder), str(out), "--size", "256", *options]
    subprocess.run(command, capture_output=True, check=True)
    return open_sources(Data(source="imagefolder", path=str(out), batch_size=1))["train"]


def contenders_for_photographs(arguments: argparse.Namespace, device: torch.device, out: Path) -> dict[str, Batches]:
    many, size = arguments.images, arguments.batch_size
    source = open_sources(Data(source="imagefolder", path=str(arguments.data), batch_size=1))["train"]
    read = partial(ours, num_images=many, batch_size=size, device=device, num_workers=WORKERS)
    found = {
        f"torchvision, Pillow, {WORKERS} processes": usual(arguments.data / "train", PHOTOGRAPHS, many, size, device),
        f"files, {WORKERS} processes": read(reader_of(source, PHOTOGRAPHS, device), loader="processes"),
        f"files, {WORKERS} threads": read(reader_of(source, PHOTOGRAPHS, device), loader="threads"),
    }
    for name, options in (("JPEGs", ()), ("pixels", ("--format", "pixels"))):
        packed = reader_of(pack(arguments.data, out / name, *options), PHOTOGRAPHS, device)
        for loader in ("processes", "threads"):
            found[f"packed {name} of 256, {WORKERS} {loader}"] = read(packed, num_images=4 * many, loader=loader)
    return found


def contenders_for_cifar(arguments: argparse.Namespace, device: torch.device) -> dict[str, Batches]:
    many, size = arguments.small_images, arguments.small_batch_size
    source = open_sources(Data(source="cifar10", path=str(arguments.cifar), batch_size=1))["train"]
    threads = len(os.sched_getaffinity(0))
    held = cache(source, "always", name="train", epochs=2, num_processes=threads)
    whole = ours(reader_of(held, CIFAR, device), 8 * many, size, device, loader="auto", num_workers=0)
    read = partial(ours, reader_of(source, CIFAR, device), many, size, device, num_workers=WORKERS)
    return {
        f"torchvision, Pillow, {WORKERS} processes": usual(arguments.cifar / "train", CIFAR, many, size, device),
        f"files, {WORKERS} processes": read(loader="processes"),
        f"files, {WORKERS} threads": read(loader="threads"),
        "held, whole batches, no worker": whole,
    }


def measure(contenders: dict[str, Batches], turns: int, device: torch.device) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for turn, (name, batches) in itertools.product(range(turns + 1), contenders.items()):
        rate = images_per_s(batches, device)
        if turn > 0:  # the first turn warms up
            found[name].append(rate)
    return found


def draw(results: dict[str, dict[str, list[float]]], file: Path) -> None:
    """Write a figure with a bar a contender, and the turns as dots on it."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(6 * len(results), 3), squeeze=False, layout="constrained")
    for axis, (title, rates) in zip(axes[0], results.items(), strict=True):
        names = list(rates)[::-1]
        axis.barh(names, [statistics.median(rates[name]) for name in names], color="#9db8d2")
        for name in names:
            axis.plot(rates[name], [name] * len(rates[name]), "k.", markersize=4)
        axis.set(title=title, xlabel="images a second")
    figure.savefig(file, dpi=150)
    plt.close(figure)


def summary(rates: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    base = statistics.median(next(iter(rates.values())))
    return {
        name: {
            "images_per_s": round(statistics.median(found), 1),
            "least": round(min(found), 1),
            "most": round(max(found), 1),
            "ratio": round(statistics.median(found) / base, 2),
        }
        for name, found in rates.items()
    }


def machine(device: torch.device) -> str:
    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPUs, {torch.get_num_threads()} threads{gpu}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="image folder of photographs, with train/")
    parser.add_argument("--cifar", type=Path, help="CIFAR-10 as an image folder, with train/")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument(
        "--images", type=int, default=1600, help="photographs of one turn, a quarter of those that are packed"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="photographs of a batch")
    parser.add_argument("--small-images", type=int, default=25600, help="images of CIFAR-10 of one turn")
    parser.add_argument("--small-batch-size", type=int, default=128, help="images of CIFAR-10 of a batch")
    parser.add_argument("--turns", type=int, default=5, help="turns of each contender")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--plot", type=Path, help="write a figure")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    rates: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        if arguments.data is not None:
            contenders = contenders_for_photographs(arguments, device, Path(folder))
            rates["photographs to 224x224"] = measure(contenders, arguments.turns, device)
        if arguments.cifar is not None:
            rates["CIFAR-10"] = measure(contenders_for_cifar(arguments, device), arguments.turns, device)
    if not rates:
        parser.error("give --data DIR, --cifar DIR, or both")
    result = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "machine": machine(device),
        "turns": arguments.turns,
        "results": {title: summary(found) for title, found in rates.items()},
    }
    if arguments.plot is not None:
        draw(rates, arguments.plot)
    print(json.dumps(result, indent=1) if arguments.json else text(result))


def text(result: dict[str, Any]) -> str:
    head = "torch {torch}, torchvision {torchvision} on {machine}, {turns} turns".format(**result)
    lines = [head]
    for title, contenders in result["results"].items():
        lines.append(title)
        lines += [
            f"  {name:<40} {found['images_per_s']:10,.0f} images/s ({found['least']:,.0f} to {found['most']:,.0f}), "
            f"{found['ratio']:.2f}"
            for name, found in contenders.items()
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
