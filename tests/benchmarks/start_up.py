"""Measures the time from a command to the end of its first optimizer step: `distrain fit` against a bare script.

    python -m tests.benchmarks.start_up

The bare script imports torch and torchvision's transforms, reads the same digits and takes one step with the same
network: with DistributedDataParallel under torchrun, and as `python bare.py`, too, where it is one process. distrain
does all that it does at its defaults: recipe, checks, run directory, metrics. All are told by the same hook of the
optimizer when the step is over, on rank 0, and take turns in fresh processes; medians of the turns are printed.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from distrain.data.sources import registry
from tests.benchmarks.first_step import RECIPE, bare_commands, begin, read_times, write_programs

DIGITS = Path(registry.__file__).with_name("digits.npz")


def seconds_to_first_step(command: list[str]) -> float:
    """Start a command in a folder of its own, wait for its end, and return what it took up to its first step."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        times = write_programs(folder, DIGITS)
        started = time.time()
        begin(command, folder).wait()
        return read_times(times)[0] - started


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=7, help="turns of each command, after one that warms up")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    arguments = parser.parse_args()

    rows = []
    for processes in arguments.processes:
        fit = [sys.executable, "-m", "distrain", "fit", *RECIPE, f"--procs={processes}", "--set=train.max_steps=1"]
        commands = {**bare_commands(processes), "distrain": fit}
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for turn in range(arguments.turns + 1):
            for name, command in commands.items():
                taken = seconds_to_first_step(command)
                if turn > 0:  # the first turn fills the caches of the disk
                    seconds[name].append(taken)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        rows.append(
            {
                "processes": processes,
                "seconds": {name: round(value, 3) for name, value in medians.items()},
                "range": {name: [round(min(v), 3), round(max(v), 3)] for name, v in seconds.items()},
                "ratio": {name: round(medians["distrain"] / medians[name], 3) for name in bare_commands(processes)},
            }
        )
    result = {"torch": torch.__version__, "machine": f"{platform.machine()}, {os.cpu_count()} cores", "rows": rows}
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    print(f"torch {result['torch']} on {result['machine']}, {arguments.turns} turns")
    for row in rows:
        ratios = ", ".join(f"{ratio} of {name}" for name, ratio in row["ratio"].items())
        print(f"{row['processes']} process{'es' if row['processes'] != 1 else ''}: distrain takes {ratios}")
        for name, value in row["seconds"].items():
            low, high = row["range"][name]
            print(f"  {name:<14} {value:6.2f} s to the end of the first step ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
