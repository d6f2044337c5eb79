"""Measures how long `distrain runs` takes for thousands of runs: from the disk, from its index, and without one.

    python -m tests.benchmarks.many_runs [--runs 10000]

The runs are copies of the files of one real run, except its tensors: each with another learning rate and seed, and
another accuracy. As root, the page cache is dropped before the first list. The fastest of the warm lists is printed as
well as the median: on a shared machine, others slow some of them down.
"""

import argparse
import json
import os
import platform
import random
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


def seconds(arguments: list[str], folder: Path) -> float:
    started = time.perf_counter()
    subprocess.run(
        command("runs", *arguments),
        cwd=folder,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - started


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
        results = {f"first, from the {where}": [seconds([], folder)]}
        results["warm"] = [seconds([], folder) for _ in range(options.turns)]
        results["warm, --sort -val/top1 --columns"] = [
            seconds(["--sort=-val/top1", "--columns=optimizer.lr,val/top1"], folder) for _ in range(options.turns)
        ]
        results["warm, best"] = [seconds(["best"], folder) for _ in range(options.turns)]
        results["warm, --json"] = [seconds(["--json"], folder) for _ in range(3)]
        shutil.rmtree(folder / "cache")
        results["without the index"] = [seconds([], folder)]
        shutil.rmtree(folder / "runs")
        (folder / "runs").mkdir()
        results["an empty folder"] = [seconds([], folder) for _ in range(options.turns)]
        print(
            f"{options.runs} runs, Python {sys.version.split()[0]}, {platform.machine()}, {os.cpu_count()} processors"
        )
        for title, found in results.items():
            print(f"{title:36} {statistics.median(found):6.2f} s, fastest {min(found):.2f} s")


if __name__ == "__main__":
    main()
