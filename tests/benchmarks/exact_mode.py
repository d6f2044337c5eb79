"""Measures a step of exact mode against one of DistributedDataParallel, on the same ranks, network and batches.

    python -m tests.benchmarks.exact_mode --procs 2

Both strategies are driven as the training loop drives them: forward, backward, reduction, BatchNorm's statistics, fused
SGD; one thread a process, over gloo. They take turns in the same processes; medians of the turns are printed.
"""

import argparse
import copy
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18

from distrain.config.batching import Batching
from distrain.data.loading.epoch_order import uniform_order
from distrain.data.loading.sampler import GlobalBatch, TrainSampler
from distrain.distributed.ddp import Ddp
from distrain.distributed.exact import Exact
from distrain.distributed.strategy import Strategy
from distrain.distributed.world import join_world
from distrain.models.nets import DigitsCnn

CASES = {  # image size, channels, samples of a micro-batch, micro-batches a process, steps of a turn
    "digits-cnn, 1 micro-batch of 32 a process": (8, 1, 32, 1, 60),
    "digits-cnn, 4 micro-batches of 16 a process": (8, 1, 16, 4, 20),
    "ResNet-18 at 64x64, 1 micro-batch of 16 a process": (64, 3, 16, 1, 4),
    "ResNet-18 at 64x64, 3 micro-batches of 8 a process": (64, 3, 8, 3, 2),  # no whole subtrees: slices are exchanged
    "ResNet-18 at 64x64, 4 micro-batches of 8 a process": (64, 3, 8, 4, 2),
    "ResNet-18 at 224x224, 1 micro-batch of 8 a process": (224, 3, 8, 1, 1),
}


def network(case: str) -> nn.Module:
    return DigitsCnn(10, in_channels=1) if case.startswith("digits") else resnet18(num_classes=10)


class Contender:
    """A strategy with a network and an optimizer of its own."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        parameters = strategy.module.parameters()
        self.optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, fused=True)

    def seconds(self, global_batch: GlobalBatch, images: torch.Tensor, targets: torch.Tensor, steps: int) -> float:
        """Seconds a step of `steps` steps on one micro-batch."""
        dist.barrier()
        started = time.perf_counter()
        for step in range(steps):
            replica = self.strategy.begin_step(global_batch, step)
            for index in global_batch.local:
                with self.strategy.micro_batch(global_batch, index):
                    loss = F.cross_entropy(replica(images), targets)
                    (loss * (len(targets) * self.strategy.loss_scale / global_batch.num_samples)).backward()  # type: ignore[no-untyped-call]
            self.strategy.finish_step(global_batch, step)
            self.optimizer.step()
            self.strategy.zero_grad()
        return (time.perf_counter() - started) / steps


def run_rank(procs: int, turns: int, out: Path) -> None:
    """Measure every case on this rank; rank 0 writes the seconds of a step of each turn."""
    with join_world(device="cpu", processes=procs, threads=1) as world:
        found: dict[str, dict[str, list[float]]] = {}
        for case, (size, channels, samples, pieces, steps) in CASES.items():
            torch.manual_seed(0)
            model = network(case)
            batching = Batching(samples * pieces * procs, samples, pieces, procs)
            num_samples = batching.global_batch_size
            sampler = partial(uniform_order, num_samples=num_samples, seed=0)
            order = TrainSampler(
                num_samples=num_samples, sampler=sampler, batching=batching, drop_last=False, rank=world.rank
            )
            contenders = {
                "ddp": Contender(Ddp(copy.deepcopy(model), world)),
                "exact": Contender(Exact(copy.deepcopy(model), world, batching)),
            }
            images = torch.randn(samples, channels, size, size)
            targets = torch.randint(10, (samples,))
            times: dict[str, list[float]] = {name: [] for name in contenders}
            for turn in range(turns + 1):
                for name, contender in contenders.items():
                    seconds = contender.seconds(order.global_batch(0), images, targets, steps)
                    if turn > 0:  # the first turn warms up
                        times[name].append(seconds)
            found[case] = times
        if world.is_rank_zero:
            out.write_text(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--procs", type=int, default=2, help="processes")
    parser.add_argument("--turns", type=int, default=9, help="turns of each strategy")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)  # a rank of it
    arguments = parser.parse_args()
    if arguments.out:
        run_rank(arguments.procs, arguments.turns, arguments.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "times.json"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={arguments.procs}"]
        own = ["-m", "tests.benchmarks.exact_mode", "--procs", str(arguments.procs), "--turns", str(arguments.turns)]
        subprocess.run([*launch, *own, "--out", str(out)], check=True)
        times = json.loads(out.read_text())
    result = {
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {arguments.procs} processes of 1 thread",
        "milliseconds_per_step": {
            case: {name: round(statistics.median(values) * 1e3, 3) for name, values in case_times.items()}
            for case, case_times in times.items()
        },
        "ratio": {
            case: round(
                statistics.median(e / d for e, d in zip(case_times["exact"], case_times["ddp"], strict=True)), 3
            )
            for case, case_times in times.items()
        },
    }
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    print(f"torch {result['torch']} on {result['machine']}, {arguments.turns} turns")
    for case, ratio in result["ratio"].items():  # type: ignore[attr-defined]
        milliseconds = result["milliseconds_per_step"][case]  # type: ignore[index]
        print(f"{case:<52} ddp {milliseconds['ddp']:9.3f} ms, exact {milliseconds['exact']:9.3f} ms, ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
