"""Measures how long `distrain runs` takes for thousands of runs: from the disk, from its index, and without one.

    python -m tests.benchmarks.many_runs [--runs 10000]

The runs are copies of the files of one real run, except its tensors: each with another learning rate and seed, and
another accuracy. As root, the page cache is dropped before the first list. It prints the median and the fastest of the
turns, because others slow some of them down on a shared machine, and the processor time of the fastest.
"""

import argparse
import json
import os
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.cli_runner import command, fit

SETTLE_S = 3.0  # files that have just changed are not remembered


def copy_run(source: Path, target: Path, number: int, draws: random.Random) -> None:
    """Copy a run without tensors, as a run of a sweep over learning rates and seeds."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.distcp", ".metadata"))
    recipe = target / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8").replace("  seed: 0", f"  seed: {number % 5}")
    recipe.write_text(text.replace("  lr: 0.1", f"  lr: {draws.uniform(0.01, 1.0):.4g}"), encoding="utf-8")
    status = json.loads((target / "status.json").read_text(encoding="utf-8"))
    status["best"]["val/top1"] = status["last"]["val/top1"] = draws.random()
    (target / "status.json").write_text(json.dumps(status, indent=1), encoding="utf-8")


def measure(arguments: list[str], folder: Path) -> tuple[float, float]:
    """Return how long a list takes, and how much processor time, in seconds."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        command("runs", *arguments),
        cwd=folder,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def drop_page_cache() -> bool:
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3", encoding="utf-8")
    except OSError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--turns", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fit("--run=original", "--set=train.max_steps=60", "--device=cpu", cwd=folder)
        draws = random.Random(0)
        for number in range(options.runs):
            copy_run(folder / "original", folder / "runs" / f"digits-20261127-{number:06d}-{number:04x}", number, draws)
        time.sleep(SETTLE_S)
        where = "disk" if drop_page_cache() else "page cache"
        results = {f"first, from the {where}": [measure([], folder)]}
        results["warm"] = [measure([], folder) for _ in range(options.turns)]
        results["warm, --sort -val/top1 --columns"] = [
            measure(["--sort=-val/top1", "--columns=optimizer.lr,val/top1"], folder) for _ in range(options.turns)
        ]
        results["warm, best"] = [measure(["best"], folder) for _ in range(options.turns)]
        results["warm, --json"] = [measure(["--json"], folder) for _ in range(3)]
        shutil.rmtree(folder / "cache")
        results["without the index"] = [measure([], folder)]
        shutil.rmtree(folder / "runs")
        (folder / "runs").mkdir()
        results["an empty folder"] = [measure([], folder) for _ in range(options.turns)]
        print(
            f"{options.runs} runs, Python {sys.version.split()[0]}, {platform.machine()}, {os.cpu_count()} processors"
        )
        for title, found in results.items():
            median, (fastest, processor) = statistics.median(seconds for seconds, _ in found), min(found)
            print(f"{title:32} {median:6.2f} s, fastest {fastest:.2f} s, of the processor {processor:.2f} s")


if __name__ == "__main__":
    main()
