"""Measures how long the curves of a run of a million records take: first, again, and after it has grown.

    python -m tests.benchmarks.curves [--records 1000000]

The records have the metrics of a run on one GPU, those of the machine in every tenth record. As root, the page cache is
dropped before the first read. Each read is in a process of its own; its time is without that of the imports. It prints
the first read, and of the others the median and the fastest of the turns, because other programs slow some of them down
on a shared machine. Each read is compared with all the records at the end.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from distrain.runs.directory import RunDirectory
from tests.benchmarks.many_runs import drop_page_cache

OF_EACH = ("train/loss", "train/lr", "train/samples_per_s", "train/grad_norm", "train/mfu", "checkpoint/blocked_s")
OF_THE_MACHINE = (
    *(f"gpu/0/{name}" for name in ("utilization", "memory_used_gib", "power_w")),
    *(f"rank/0/{name}" for name in ("data_wait", "step_s")),
    "node/0/cpu_utilization",
)
READ = """
import json, resource, sys, time
from pathlib import Path
from distrain.runs.curves import read_curves
from distrain.runs.directory import RunDirectory
started, processor = time.perf_counter(), time.process_time()
found = read_curves(RunDirectory(Path(sys.argv[1])), **json.loads(sys.argv[2]))
took, used = time.perf_counter() - started, time.process_time() - processor
extremes = {key: [curve.min.min(), curve.max.max(), int(curve.count.sum())] for key, curve in found.curves.items()}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"took": took, "used": used, "peak_kib": peak, "extremes": extremes}))
"""


def write(path: Path, first: int, number: int, draws: random.Random) -> None:
    with path.open("a", encoding="utf-8") as file:
        for step in range(first, first + number):
            record: dict[str, float] = {
                "step": step,
                "epoch": round(step / 390, 4),
                "time": round(1.7e9 + step / 31, 3),
            }
            record |= {key: draws.gauss(2, 1) for key in OF_EACH}
            if step % 10 == 0:
                record |= {key: float(f"{draws.uniform(0, 100):.5g}") for key in OF_THE_MACHINE}
            file.write(json.dumps(record) + "\n")


def read(run: RunDirectory, **options: Any) -> dict[str, Any]:
    """Read the curves in a process of its own, and return what that took."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(run.path), json.dumps(options)], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def read_extremes(run: RunDirectory) -> dict[str, list[float]]:
    """Return minimum, maximum and number of the values of each metric, from every line."""
    found: dict[str, list[float]] = {}
    with run.metrics.open(encoding="utf-8") as file:
        for line in file:
            for key, value in json.loads(line).items():
                if "/" in key:
                    low, high, count = found.get(key, (value, value, 0))
                    found[key] = [min(low, value), max(high, value), count + 1]
    return found


def report(title: str, found: list[dict[str, Any]]) -> None:
    fastest = min(found, key=lambda each: float(each["took"]))
    print(
        f"{title:36} {statistics.median(each['took'] for each in found):6.2f} s, fastest {fastest['took']:.2f} s, "
        f"of the processor {fastest['used']:.2f} s, peak memory {fastest['peak_kib'] / 1024:.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        run, draws, records = RunDirectory(Path(name)), random.Random(0), options.records
        write(run.metrics, 1, records, draws)
        print(f"{records} records, Python {sys.version.split()[0]}, {platform.machine()}, {os.cpu_count()} processors")
        where = "disk" if drop_page_cache() else "page cache"
        report(f"first, from the {where}", [first := read(run)])
        report("again", [read(run) for _ in range(options.turns)])
        report("one metric", [read(run, keys=["train/loss"]) for _ in range(options.turns)])
        report("900 steps, exact", [read(run, first_step=records // 2, last_step=records // 2 + 899)])
        assert first["extremes"] == read_extremes(run)
        grown = []
        for turn in range(options.turns):
            write(run.metrics, records + 1 + 1000 * turn, 1000, draws)
            grown.append(read(run))
        report("after 1,000 more records each", grown)
        assert grown[-1]["extremes"] == read_extremes(run)
        sizes = [run.metrics.stat().st_size, sum(path.stat().st_size for path in run.curves.iterdir())]
        print("metrics.jsonl {:.0f} MiB, curves/ {:.0f} MiB".format(*(size / 2**20 for size in sizes)))


if __name__ == "__main__":
    main()
