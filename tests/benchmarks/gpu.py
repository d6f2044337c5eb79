"""Measures distrain on one GPU beside hand-tuned loops of the same training, in turns, by one command.

    python -m tests.benchmarks.gpu --data CIFAR [--packed DIR.packed] [--json] [--device cuda]

fast      cifar10-fast, seed by seed: seconds of training and accuracy of the recipe through the engine, and of a bare
          loop of the same network and settings that holds all images on the device and augments whole batches there.
resnet50  ResNet-50 at 224 pixels, bf16, channels_last, random images: images a second of the engine, which reads them
          from memory batch by batch, and of a bare loop that trains on one batch that is on the device already; both
          plain and compiled.
packed    with --packed: imagenet-resnet50's augmentation from a packed dataset, all of it, over the same network fed
          from memory as above: what the way of the images to the GPU leaves of its speed.

CIFAR holds train/ and test/, a folder a class in each, or torchvision's files. `--tiny` makes everything so small that
it runs on a CPU in minutes: its figures mean nothing.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from distrain.config import Data, Recipe, load_recipe
from distrain.config.profile import Profile
from distrain.data.sources.base import TensorSource
from distrain.data.sources.files import FileSource
from distrain.data.sources.registry import open_sources
from distrain.distributed.world import World
from distrain.models.cifar_fast import CifarFast
from distrain.runs.directory import RunDirectory
from distrain.training import trainer
from distrain.training.monitor import RankMonitor
from tests.benchmarks.compute_modes import machine, wait

QUIET = ["log.tensorboard=false", "log.wandb=disabled", "checkpoint.every_epochs=null", "checkpoint.keep_best=false"]


@dataclass(frozen=True)
class Sizes:
    """How much is trained."""

    fast_samples: int | None  # of CIFAR-10; None: all
    fast_steps: int
    classes: int
    batch: int  # of ResNet-50
    pixels: int
    images: int  # in memory
    steps: int


WHOLE = Sizes(fast_samples=None, fast_steps=476, classes=1000, batch=256, pixels=224, images=4096, steps=150)
TINY = Sizes(fast_samples=64, fast_steps=3, classes=10, batch=2, pixels=32, images=16, steps=3)


def train(recipe: Recipe, device: torch.device) -> tuple[RunDirectory, list[dict[str, float]], Any]:
    """Train a recipe through the engine and return its records and its last status; the run directory is gone then."""
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder) / "run")
        run.create()
        profile = Profile(launcher="inprocess", device=device.type, processes=1, threads=torch.get_num_threads())
        world = World(rank=0, size=1, local_rank=0, device=device)
        with contextlib.redirect_stdout(io.StringIO()), RankMonitor(run, rank=0) as monitor:
            trainer.train(recipe, profile, run, world, monitor)
        records = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        return run, records, run.read_status()


# Part 1: cifar10-fast.


def fast_distrain(seed: int, arguments: argparse.Namespace, sizes: Sizes) -> dict[str, float]:
    """Return seconds of training and accuracy of the recipe, through the engine."""
    changes = [f"train.seed={seed}", f"train.max_steps={sizes.fast_steps}", *QUIET, *arguments.set]
    if sizes.fast_samples is not None:
        changes += [f"data.train_samples={sizes.fast_samples}", f"data.val_samples={sizes.fast_samples}"]
        changes += [f"data.batch_size={sizes.fast_samples // 4}"]
    recipe = load_recipe("cifar10-fast", overrides=changes, data=arguments.data)
    _, _, status = train(recipe, torch.device(arguments.device))
    return {"seconds": status.train_seconds, "accuracy": status.last["val/top1"]}


class Cifar:
    """CIFAR-10 on the device, normalised, with the augmentation of whole batches."""

    def __init__(self, data: str, device: torch.device, samples: int | None) -> None:
        sources = open_sources(Data(source="cifar10", path=data, batch_size=1))
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)))
        self.parts = {}
        for split, source in sources.items():
            chosen = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))[: samples or len(source)]
            if isinstance(source, TensorSource):
                images, targets = source.images[chosen], source.targets[chosen]
            else:
                assert isinstance(source, FileSource)
                images = torch.stack([source.read(int(i))[0] for i in chosen])
                targets = source.targets[chosen]
            images = ((images / 255 - mean) / std).to(device, memory_format=torch.channels_last)
            self.parts[split] = images, targets.to(device)

    def batches(self, epoch: int, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield an epoch of whole batches, shuffled, flipped in turn, and shifted by up to two pixels."""
        images, targets = self.parts["train"]
        device, count = images.device, len(images)
        padded = F.pad(images, [2] * 4, mode="reflect")
        shifts = torch.randint(5, (2, count), device=device)
        rows, columns = (torch.arange(32, device=device) + shift[:, None] for shift in shifts)  # [n, 32]
        order = torch.randperm(count, device=device)
        for start in range(0, count - batch_size + 1, batch_size):
            chosen = order[start : start + batch_size]
            cut = padded[chosen[:, None, None], :, rows[chosen][:, :, None], columns[chosen][:, None, :]]
            cut = cut.permute(0, 3, 1, 2)  # channels last in memory
            is_flipped = (chosen + epoch) % 2 == 1
            yield torch.where(is_flipped[:, None, None, None], cut.flip(-1), cut), targets[chosen]


def fast_bare(seed: int, cifar: Cifar, device: torch.device, sizes: Sizes) -> dict[str, float]:
    """Return seconds of training and accuracy of a loop with nothing in it that this training does not need."""
    torch.manual_seed(seed)
    total, batch_size = sizes.fast_steps, 1024 if sizes.fast_samples is None else sizes.fast_samples // 4
    net = CifarFast(10, 3)
    images, _ = cifar.parts["train"]
    wait(device)
    started = time.perf_counter()
    with torch.no_grad():
        net.initialize_from(images[:1024].cpu())
    net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    norms = [p for name, p in net.named_parameters() if ".norm" in name and p.requires_grad]
    others = [p for name, p in net.named_parameters() if ".norm" not in name and p.requires_grad]
    groups = [
        {"params": norms, "factor": 64.0, "weight_decay": 0.00133 / 64},
        {"params": others, "factor": 1.0, "weight_decay": 0.00133},
    ]
    optimizer = torch.optim.SGD(groups, lr=1.5, momentum=0.85, nesterov=True, fused=True)
    live = [t for t in net.state_dict().values() if t.is_floating_point()]
    slow = [t.clone() for t in live]
    step = epoch = 0
    while step < total:
        for inputs, targets in cifar.batches(epoch, batch_size):
            rise = int(0.23 * total)
            factor = 0.2 + 0.8 * step / max(rise, 1) if step < rise else 0.07 + 0.93 * (total - step) / (total - rise)
            for group in optimizer.param_groups:
                group["lr"] = 1.5 * group["factor"] * factor
            with torch.autocast(device.type, torch.bfloat16):
                loss = F.cross_entropy(net(inputs), targets, label_smoothing=0.2)
            loss.backward()  # type: ignore[no-untyped-call]
            if epoch >= 3:
                net.whiten.bias.grad = None  # type: ignore[union-attr]
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            with torch.no_grad():
                if step % 5 == 0:
                    torch._foreach_lerp_(slow, live, 1 - 0.774 * (step / total) ** 3)
                if step % 5 == 0 or step == total:
                    torch._foreach_copy_(live, slow)
            if step == total:
                break
        epoch += 1
    wait(device)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "accuracy": accuracy(net.eval(), *cifar.parts["val"])}


@torch.no_grad()
def accuracy(net: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> float:
    """Return the share that is right of images, with six views of each."""

    def look(view: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = net(view).float() + net(view.flip(-1)).float()
        return outputs

    hits = 0
    for start in range(0, len(targets), 2000):
        batch, truth = images[start : start + 2000], targets[start : start + 2000]
        padded = F.pad(batch, [1] * 4, mode="reflect")
        with torch.autocast(batch.device.type, torch.bfloat16):
            logits = 2 * look(batch) + look(padded[:, :, :32, :32]) + look(padded[:, :, 2:, 2:])
        hits += int((logits.argmax(1) == truth).sum())
    return hits / len(targets)


def compare_fast(arguments: argparse.Namespace, sizes: Sizes) -> dict[str, Any]:
    """Train both ways with each seed in turn, after a first turn that warms up."""
    device = torch.device(arguments.device)
    cifar = Cifar(arguments.data, device, sizes.fast_samples)
    rows: dict[str, list[dict[str, float]]] = {"distrain": [], "bare": []}
    for turn in range(arguments.seeds + 1):
        ours, theirs = fast_distrain(turn, arguments, sizes), fast_bare(turn, cifar, device, sizes)
        if turn > 0:
            rows["distrain"].append(ours)
            rows["bare"].append(theirs)
    pairs = list(zip(rows["distrain"], rows["bare"], strict=True))
    found: dict[str, Any] = {
        way: {
            "seconds": round(statistics.median(row["seconds"] for row in each), 3),
            "accuracy_mean": round(statistics.mean(row["accuracy"] for row in each), 4),
            "accuracies": [round(row["accuracy"], 4) for row in each],
        }
        for way, each in rows.items()
    }
    found["ratio_of_seconds"] = round(statistics.median(a["seconds"] / b["seconds"] for a, b in pairs), 3)
    return found


# Parts 2 and 3: ResNet-50.


def resnet_recipe(sizes: Sizes, *, compile_mode: str, more: list[str], data: str) -> Recipe:
    """Return imagenet-resnet50 for a few steps, without what is not the same in the bare loop."""
    changes = [
        f"data.batch_size={sizes.batch}",
        "data.repeats=1",
        "augment.mixup=null",
        "augment.cutmix=null",
        f"train.max_steps={sizes.steps}",
        "train.ema_decay=null",
        "train.deterministic=false",
        "precision=bf16",
        f"compute={{memory_format: channels_last, compile: {compile_mode}}}",
        f"log.every_steps={max(1, sizes.steps // 3)}",
        "eval.every_epochs=null",
        f"data.val_samples={min(sizes.images, 64)}",
        *QUIET,
        *more,
    ]
    return load_recipe("imagenet-resnet50", overrides=changes, data=data)


def resnet_rate(recipe: Recipe, device: torch.device) -> float:
    """Return images a second of the engine's steps, after a third of them in which it warms up and compiles."""
    _, records, _ = train(recipe, device)
    return statistics.median(record["train/samples_per_s"] for record in records[1:] if "train/samples_per_s" in record)


def bare_step(sizes: Sizes, device: torch.device, *, compile_mode: str) -> Callable[[], None]:
    """Return the step of a loop that trains on one batch of uint8 images on the device."""
    from torchvision.models import resnet50

    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    net = resnet50(num_classes=sizes.classes).to(device, memory_format=torch.channels_last).train()
    run = torch.compile(net) if compile_mode != "none" else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=2e-5, fused=True)
    images = torch.randint(256, (sizes.batch, 3, sizes.pixels, sizes.pixels), dtype=torch.uint8, device=device)
    targets = torch.randint(sizes.classes, (sizes.batch,), device=device)

    def step() -> None:
        inputs = images.to(torch.float32, memory_format=torch.channels_last).sub_(120.0).div_(58.0)
        with torch.autocast(device.type, torch.bfloat16):
            loss = F.cross_entropy(run(inputs), targets, label_smoothing=0.1)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def bare_rate(step: Callable[[], None], sizes: Sizes, device: torch.device) -> float:
    """Return images a second after a third of the steps."""
    steps = max(1, sizes.steps // 3)
    for _ in range(steps):
        step()
    wait(device)
    started = time.perf_counter()
    for _ in range(2 * steps):
        step()
    wait(device)
    return 2 * steps * sizes.batch / (time.perf_counter() - started)


def write_images(folder: Path, sizes: Sizes) -> str:
    """Write random images and classes as a file of arrays, and return its path."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for split, count in (("train", sizes.images), ("val", min(sizes.images, 64))):
        shape = (count, 3, sizes.pixels, sizes.pixels)
        tensors[f"{split}_images"] = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        tensors[f"{split}_labels"] = torch.arange(count) % sizes.classes
    names = json.dumps([str(number) for number in range(sizes.classes)])
    save_file(tensors, folder / "images.safetensors", {"classes": names})
    return str(folder / "images.safetensors")


def compare_resnet(arguments: argparse.Namespace, sizes: Sizes) -> dict[str, Any]:
    """Return the engine's rate over the bare loop's, plain and compiled, in turns; with packed data too."""
    device = torch.device(arguments.device)
    found: dict[str, Any] = {}
    in_memory = ["data.source=tensors", "data.num_workers=0", "augment.train=[]", "augment.eval=[]"]
    with tempfile.TemporaryDirectory() as folder:
        data = write_images(Path(folder), sizes)
        for mode in arguments.compile:
            rows: dict[str, list[float]] = {"distrain": [], "bare": []}
            for _ in range(arguments.turns):
                recipe = resnet_recipe(sizes, compile_mode=mode, more=in_memory, data=data)
                rows["distrain"].append(resnet_rate(recipe, device))
                rows["bare"].append(bare_rate(bare_step(sizes, device, compile_mode=mode), sizes, device))
                if arguments.packed is not None:
                    more = [f"data.num_workers={arguments.workers}"]
                    if arguments.tiny:
                        more += [f"augment.train.0.RandomResizedCrop.size={sizes.pixels}"]
                    recipe = resnet_recipe(sizes, compile_mode=mode, more=more, data=arguments.packed)
                    rows.setdefault("packed", []).append(resnet_rate(recipe, device))
            medians = {way: round(statistics.median(rates), 1) for way, rates in rows.items()}
            ratios = [ours / theirs for ours, theirs in zip(rows["distrain"], rows["bare"], strict=True)]
            found[mode] = {"images_per_s": medians, "ratio": round(statistics.median(ratios), 3)}
            if "packed" in rows:
                shares = [packed / ours for packed, ours in zip(rows["packed"], rows["distrain"], strict=True)]
                found[mode]["packed_over_memory"] = round(statistics.median(shares), 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=["fast", "resnet50"], default=["fast", "resnet50"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--data", help="CIFAR-10, for the part `fast`")
    parser.add_argument("--packed", help="a packed dataset: trains imagenet-resnet50 from it, too")
    parser.add_argument("--workers", type=int, default=8, help="loader processes of the packed training")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of cifar10-fast, each way")
    parser.add_argument("--turns", type=int, default=3, help="turns of ResNet-50, each way")
    parser.add_argument("--compile", nargs="+", choices=["none", "regional", "whole"], default=["none", "regional"])
    parser.add_argument("--set", action="append", default=[], help="a change of cifar10-fast, as of `distrain fit`")
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that everything runs")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    arguments = parser.parse_args()
    if "fast" in arguments.parts and arguments.data is None:
        parser.error("the part `fast` trains on CIFAR-10: name it with --data, or take --parts resnet50")
    sizes = TINY if arguments.tiny else WHOLE
    result: dict[str, Any] = machine(torch.device(arguments.device))
    if "fast" in arguments.parts:
        result["fast"] = compare_fast(arguments, sizes)
    if "resnet50" in arguments.parts:
        result["resnet50"] = compare_resnet(arguments, sizes)
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    print(
        f"torch {result['torch']} on {result['device']}{', tiny: the figures mean nothing' if arguments.tiny else ''}"
    )
    for way in ("distrain", "bare") if "fast" in result else ():
        row = result["fast"][way]
        print(f"cifar10-fast {way:<9} {row['seconds']:8.2f} s, accuracy {row['accuracy_mean']:.2%} {row['accuracies']}")
    if "fast" in result:
        print(f"cifar10-fast: distrain takes {result['fast']['ratio_of_seconds']} of the bare loop's time")
    for mode, row in result.get("resnet50", {}).items():
        rates = ", ".join(f"{way} {rate:.1f}" for way, rate in row["images_per_s"].items())
        print(f"resnet50, compile {mode}: images/s {rates}; distrain over bare {row['ratio']}")


if __name__ == "__main__":
    main()
