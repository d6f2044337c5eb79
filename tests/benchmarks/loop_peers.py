"""Measures a step of distrain's loop beside those of bare PyTorch, accelerate and Lightning.

    python -m tests.benchmarks.loop_peers
    python -m tests.benchmarks.loop_peers --processes 2

Network, digits and SGD with momentum are those of `step_overhead`; the global batch is 64. Every contender lives in
processes of its own, of one thread each, and they take turns: while one trains, the others wait. With several
processes each trains over gloo, bare PyTorch with DistributedDataParallel. accelerate and Lightning read through
torch's DataLoader, whose dataset gathers a whole batch at once. Each logs what it logs by default: distrain its
metrics, with status and checkpoint; Lightning, at its defaults, its CSV file and progress bar; `barebones` and
accelerate nothing. Medians of the turns are printed. What is not installed is left out; pip install
"distrain[bench]" has all.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import logging
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from distrain.config import Data, load_recipe
from distrain.config.profile import Profile
from distrain.data.sources.base import TensorSource
from distrain.data.sources.registry import open_sources
from distrain.distributed.world import World, join_world
from distrain.runs.directory import RunDirectory
from distrain.training import trainer as engine
from distrain.training.monitor import RankMonitor
from tests.benchmarks.step_overhead import BATCH, network, overrides

Turn = Callable[[int, World], float]  # takes so many steps and returns its seconds


class Digits(Dataset[Any]):
    """The training digits as float32 [n, 1, 8, 8] and their classes; a batch is gathered in one operation."""

    def __init__(self) -> None:
        source = open_sources(Data(source="digits", batch_size=BATCH))["train"]
        assert isinstance(source, TensorSource)
        self.images, self.labels = source.images.float() / 255, source.targets

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> Any:
        chosen = torch.tensor(indices)
        return self.images[chosen], self.labels[chosen]

    def loader(self, world: World) -> "DataLoader[Any]":
        return DataLoader(self, batch_size=BATCH // world.size, shuffle=True, drop_last=True, collate_fn=lambda x: x)


def bare(steps: int, world: World, *, fused: bool) -> float:
    """Take the steps with nothing around them that training does not need."""
    digits = Digits()
    torch.manual_seed(0)
    model = network(10)
    if world.size > 1:
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=fused)
    per_epoch, size = len(digits) // BATCH, BATCH // world.size
    world.barrier()
    started = time.perf_counter()
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(digits))
        indices = order[(step % per_epoch) * BATCH + world.rank * size :][:size]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(digits.images[indices]), digits.labels[indices])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return time.perf_counter() - started


def distrain(steps: int, world: World, *, strategy: str = "auto") -> float:
    """Take the steps in the engine, with all that a run does: the last evaluation and save too."""
    recipe = load_recipe("digits", overrides=[*overrides(steps), f"parallel.strategy={strategy}"])
    with shared_folder(world) as folder:
        run = RunDirectory(folder / "run")
        if world.is_rank_zero:
            run.create()
        profile = Profile(launcher="inprocess", device="cpu", processes=world.size, threads=1)
        world.barrier()
        with contextlib.redirect_stdout(io.StringIO()), RankMonitor(run, rank=world.rank) as monitor:
            engine.train(recipe, profile, run, world, monitor)
            world.barrier()
        return run.read_status().train_seconds


def accelerate(steps: int, world: World) -> float:
    """Take the steps of accelerate's guide: model, optimizer and loader prepared, its defaults."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model = network(10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model, optimizer, loader = accelerator.prepare(model, optimizer, Digits().loader(world))
    step = 0
    world.barrier()
    started = time.perf_counter()
    while True:
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            accelerator.backward(loss)
            optimizer.step()
            step += 1
            if step == steps:
                return time.perf_counter() - started


def lightning(steps: int, world: World, *, barebones: bool) -> float:
    """Take the steps in Lightning's Trainer, from the start of its training to the end of it."""
    import lightning as L

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = network(10)
            self.seconds = 0.0

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            images, labels = batch
            loss = F.cross_entropy(self.model(images), labels)
            if not barebones:
                self.log("train/loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

        def on_train_start(self) -> None:
            self.seconds -= time.perf_counter()

        def on_train_end(self) -> None:
            self.seconds += time.perf_counter()

    torch.manual_seed(0)
    module = Module()
    with shared_folder(world) as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer = L.Trainer(
            accelerator="cpu",
            devices=world.size,
            strategy="ddp" if world.size > 1 else "auto",
            max_steps=steps,
            max_epochs=-1,
            barebones=barebones,
            default_root_dir=None if barebones else folder,
        )
        trainer.fit(module, Digits().loader(world))
        world.barrier()
    return module.seconds


CONTENDERS: dict[str, tuple[str, Turn]] = {  # by name: the package that it needs, and its turn
    "bare": ("torch", lambda steps, world: bare(steps, world, fused=False)),
    "bare, fused SGD": ("torch", lambda steps, world: bare(steps, world, fused=True)),
    "distrain": ("torch", distrain),
    "distrain, ddp": ("torch", lambda steps, world: distrain(steps, world, strategy="ddp")),
    "accelerate": ("accelerate", accelerate),
    "Lightning barebones": ("lightning", lambda steps, world: lightning(steps, world, barebones=True)),
    "Lightning": ("lightning", lambda steps, world: lightning(steps, world, barebones=False)),
}


@contextlib.contextmanager
def shared_folder(world: World) -> Iterator[Path]:
    """Yield a folder that is the same on all ranks and new for each turn."""
    name = [tempfile.mkdtemp() if world.is_rank_zero else ""]
    if world.size > 1:
        dist.broadcast_object_list(name)
    try:
        yield Path(name[0])
    finally:
        world.barrier()
        if world.is_rank_zero:
            subprocess.run(["rm", "-rf", name[0]], check=True)


def serve(name: str, processes: int) -> None:
    """Take a turn for each line on standard input, which says how many steps, and answer with its seconds."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the contenders print is not an answer
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    turn = CONTENDERS[name][1]
    with join_world(device="cpu", processes=processes, threads=1) as world:
        for line in sys.stdin:
            seconds = turn(int(line), world)
            answers.write(f"{seconds}\n")
            answers.flush()


class Contender:
    """The processes of one contender."""

    def __init__(self, name: str, processes: int, log: Any) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "tests.benchmarks.loop_peers", "--serve", name, "--processes", str(processes)]
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
        several = place | {"ACCELERATE_USE_CPU": "true"} if processes > 1 else {}
        self._ranks = [
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", **several, **_rank_variables(rank, processes)},
            )
            for rank in range(processes)
        ]

    def seconds(self, steps: int) -> float:
        """Have all ranks take the steps; returns the seconds of the slowest."""
        for rank in self._ranks:
            assert rank.stdin is not None
            rank.stdin.write(f"{steps}\n")
            rank.stdin.flush()
        answers = [rank.stdout.readline() for rank in self._ranks if rank.stdout is not None]
        if not all(answers):
            for rank in self._ranks:
                rank.kill()
            raise SystemExit("a contender has ended; --log FILE keeps what it said")
        return max(float(answer) for answer in answers)

    def close(self) -> None:
        for rank in self._ranks:
            assert rank.stdin is not None
            rank.stdin.close()
        for rank in self._ranks:
            rank.wait()


def _rank_variables(rank: int, processes: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2000, help="steps of one turn")
    parser.add_argument("--turns", type=int, default=15, help="turns of each contender, after one that warms up")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="what the contenders say on standard error")
    parser.add_argument("--serve", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.processes)
        return

    missing = {package for package, _ in CONTENDERS.values() if importlib.util.find_spec(package) is None}
    for package in sorted(missing):
        print(f'{package} is not installed, and its rows are left out; pip install "distrain[bench]"', file=sys.stderr)
    names = [name for name, (package, _) in CONTENDERS.items() if package not in missing]
    names = [name for name in names if arguments.processes > 1 or name != "distrain, ddp"]
    micros: dict[str, list[float]] = {name: [] for name in names}
    with arguments.log.open("w") as log:
        contenders = {name: Contender(name, arguments.processes, log) for name in names}
        for turn in range(arguments.turns + 1):
            for name, contender in contenders.items():
                seconds = contender.seconds(arguments.steps)
                if turn > 0:  # the first turn warms up
                    micros[name].append(seconds / arguments.steps * 1e6)
        for contender in contenders.values():
            contender.close()

    result = {
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {arguments.processes} processes of 1 thread",
        "steps_per_turn": arguments.steps,
        "rows": {
            name: {
                "microseconds_per_step": round(statistics.median(values), 1),
                "range": [round(min(values), 1), round(max(values), 1)],
                "over_bare": round(statistics.median(v - b for v, b in zip(values, micros["bare"], strict=True)), 1),
                "ratio": round(statistics.median(v / b for v, b in zip(values, micros["bare"], strict=True)), 3),
            }
            for name, values in micros.items()
        },
    }
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    print(f"torch {result['torch']} on {result['machine']}, {arguments.turns} turns of {arguments.steps} steps")
    for name, row in result["rows"].items():
        low, high = row["range"]
        print(
            f"{name:<20} {row['microseconds_per_step']:8.1f} us a step ({low:.1f} to {high:.1f}), "
            f"{row['over_bare']:+8.1f} us over bare, {row['ratio']:.3f} of it (medians of the turns)"
        )


if __name__ == "__main__":
    main()
