"""Measures what it saves a training on a CPU to keep the memory that it frees, as distrain's workers do.

    python -m tests.benchmarks.kept_memory

MobileNetV2 on 32 images of 224x224 pixels, and the network of the cifar10 recipe on 128 of 32x32, are trained by the
same bare PyTorch loop on as many threads as torch takes, with glibc's allocator as it is and with
`retain_freed` of distrain, in turns and in fresh processes. Medians of the turns are printed: the time of a step, the
share of it in the kernel, and the memory at its peak.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from typing import Any

import torch

PROGRAM = """
import json, resource, sys, time
import torch
import torch.nn.functional as F
from distrain.training.device.allocator import retain_freed, resident_bytes
from distrain.models.registry import build_model
from distrain.config import Model

name, size, pixels, steps, is_kept = sys.argv[1], *map(int, sys.argv[2:])
if is_kept:
    retain_freed()
torch.manual_seed(0)
model = build_model(Model(name=name), num_classes=10, in_channels=3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
images, targets = torch.randn(size, 3, pixels, pixels), torch.arange(size) % 10

def step():
    F.cross_entropy(model(images), targets).backward()
    optimizer.step()
    optimizer.zero_grad()

for _ in range(2):
    step()
begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
for _ in range(steps):
    step()
seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
kernel, user = after.ru_stime - before.ru_stime, after.ru_utime - before.ru_utime
print(json.dumps({
    "seconds_a_step": seconds / steps,
    "kernel_share": kernel / (kernel + user),
    "peak_mebibytes": resident_bytes("VmHWM") / 2**20,
}))
"""
CASES = {"mobilenet_v2": (32, 224, 4), "cifar-cnn": (128, 32, 20)}  # images of a step, their side, steps
WAYS = {"as it is": 0, "kept": 1}


def measure(name: str, is_kept: int) -> dict[str, float]:
    numbers = [str(number) for number in (*CASES[name], is_kept)]
    done = subprocess.run([sys.executable, "-c", PROGRAM, name, *numbers], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def summary(turns: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(statistics.median(turn[key] for turn in turns), 4) for key in turns[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    arguments = parser.parse_args()

    result: dict[str, Any] = {"torch": torch.__version__, "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    for name in CASES:
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(arguments.turns):
            for way, is_kept in WAYS.items():
                found[way].append(measure(name, is_kept))
        medians = {way: summary(turns) for way, turns in found.items()}
        ratio = medians["kept"]["seconds_a_step"] / medians["as it is"]["seconds_a_step"]
        result[name] = {**medians, "ratio": round(ratio, 3)}
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    print(f"torch {result['torch']} on {result['machine']}, {arguments.turns} turns")
    for name in CASES:
        print(f"{name}: ratio {result[name]['ratio']}")
        for way in WAYS:
            figures = result[name][way]
            print(
                f"  {way:10}{figures['seconds_a_step']:7.3f} s a step, {figures['kernel_share']:4.0%} of it in the "
                f"kernel, {figures['peak_mebibytes']:,.0f} MiB at the peak"
            )


if __name__ == "__main__":
    main()
