"""Measures how long a training stands still when one of its processes is killed.

    python -m tests.benchmarks.restart

`distrain fit` trains the digits with two CPU processes and saves every 20 steps. Again and again one rank is killed
(SIGKILL), rank 1 and rank 0 in turn; measured is the time from the kill to the end of the next optimizer step, for
which the launcher has noticed the death, ended the other rank, and started both again. Medians are printed.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.benchmarks.first_step import RECIPE, begin, read_times, write_programs
from tests.benchmarks.start_up import DIGITS

SETTLE_S = 2.0  # steps and checkpoints between two kills
GIVE_UP_S = 120.0


def wait_for_first_step(times: Path, count: int) -> float:
    """Return the time of the `count`th first step, once there is one."""
    deadline = time.monotonic() + GIVE_UP_S
    while len(found := read_times(times)) < count:
        if time.monotonic() > deadline:
            raise SystemExit(f"no step was taken for {GIVE_UP_S:.0f} s")
        time.sleep(0.02)
    return found[count - 1]


def measure(kills: int) -> list[float]:
    """Seconds from each of `kills` kills to the next step."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        times = write_programs(folder, DIGITS)
        endless = ["--procs=2", "--run=run", "--set=train.epochs=100000", "--set=checkpoint.every_steps=20"]
        process = begin([sys.executable, "-m", "distrain", "fit", *RECIPE, *endless], folder)
        seconds = []
        try:
            wait_for_first_step(times, 1)
            for kill in range(kills):
                time.sleep(SETTLE_S)
                heartbeat = folder / "run" / "heartbeats" / f"rank-{1 - kill % 2}.json"
                killed = time.time()
                os.kill(json.loads(heartbeat.read_text())["pid"], signal.SIGKILL)
                seconds.append(wait_for_first_step(times, kill + 2) - killed)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    arguments = parser.parse_args()

    seconds = measure(arguments.kills)
    result = {
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "seconds": round(statistics.median(seconds), 2),
        "seconds_of_kills": [round(value, 2) for value in seconds],
    }
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    print(f"torch {result['torch']} on {result['machine']}")
    print(
        f"from a kill to the next step: {result['seconds']} s, median of {arguments.kills} "
        f"({min(seconds):.2f} to {max(seconds):.2f})"
    )


if __name__ == "__main__":
    main()
