"""Measures what a step pays for the ranks' agreement on when to stop.

    python -m tests.benchmarks.stop_agreement

Real gloo processes with a store of their own ask, as the loop does at the beginning of every step, whether they stop
before it. Nobody asked them to, so this is the price of an ordinary step. Between two questions they meet in a barrier,
so that all look into the store at once, as after a reduction. The slowest rank's mean is printed.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from distrain.distributed.stop_consensus import StopConsensus
from distrain.distributed.world import World, join_world

STEP_MS = 20.0  # the step that the share is stated of


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    arguments = parser.parse_args()

    rows = []
    for processes in arguments.processes:
        micros = [measure(processes, arguments.steps) for _ in range(arguments.turns)]
        median = statistics.median(micros)
        rows.append(
            {
                "processes": processes,
                "microseconds_per_step": round(median, 1),
                "microseconds_of_turns": [round(value, 1) for value in micros],
                "share_of_20_ms": round(median / (STEP_MS * 1000), 5),
            }
        )
    result = {"torch": torch.__version__, "machine": f"{platform.machine()}, {os.cpu_count()} cores", "rows": rows}
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    print(f"torch {result['torch']} on {result['machine']}, {arguments.turns} turns of {arguments.steps} steps")
    for row in rows:
        print(
            f"{row['processes']} processes: {row['microseconds_per_step']} us a step on the slowest rank "
            f"({', '.join(map(str, row['microseconds_of_turns']))}), {row['share_of_20_ms']:.2%} of a 20 ms step"
        )


def measure(processes: int, steps: int) -> float:
    """Microseconds that a question takes on the slowest of the ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    answers: mp.SimpleQueue[float] = context.SimpleQueue()
    ranks = [context.Process(target=ask, args=(rank, processes, port, steps, answers)) for rank in range(processes)]
    for process in ranks:
        process.start()
    micros = [answers.get() for _ in ranks]
    for process in ranks:
        process.join()
    return max(micros)


def ask(rank: int, processes: int, port: int, steps: int, answers: "mp.SimpleQueue[float]") -> None:
    """Ask `steps` times on one rank, and give the mean time of a question in microseconds."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with join_world(device="cpu", processes=processes, threads=1) as world:
        answers.put(mean_micros(world, steps))


def mean_micros(world: World, steps: int) -> float:
    seconds = 0.0
    with StopConsensus(world, is_requested=lambda: False, name="stop") as agreement:
        for step in range(steps):
            dist.barrier()
            started = time.perf_counter()
            assert not agreement.is_reached(step)
            seconds += time.perf_counter() - started
    return seconds / steps * 1e6


if __name__ == "__main__":
    main()
