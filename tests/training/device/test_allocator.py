"""What a training frees is kept for its next step, and can be given back."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from distrain.training.device.allocator import forget_peak, retain_freed, resident_bytes

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "keep":
    retain_freed()
for size in (40, 1):  # MiB: a block that glibc maps by itself, and one that it may not
    for _ in range(20):  # until a block that fits is there
        torch.ones(size << 18)
    before = faults()
    for _ in range(10):
        torch.ones(size << 18)
    print(faults() - before)
held = resident_bytes("VmRSS")
forget_peak(torch.device("cpu"))
print(held - resident_bytes("VmRSS"))
"""


GUARDED = """
import resource
import torch
from distrain.training.device.allocator import MallocRetention, resident_bytes

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(40 << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

kept = MallocRetention()
torch.ones(300 << 18)
for step in range(4):  # as training goes on without it
    print(faults())
    kept.look(step)
faults()
print(faults())
kept.look(5)
count = resident_bytes("VmHWM") // (40 << 20)  # blocks: as much again as has been taken
held = [torch.ones(40 << 18) for _ in range(count)]
del held
before = resident_bytes("VmRSS")
kept.look(6)
print((before - resident_bytes("VmRSS")) / (count * 40 << 20))
larger = torch.ones((count + 5) * 40 << 18)
before = resident_bytes("VmRSS")
del larger
print((before - resident_bytes("VmRSS")) / ((count + 5) * 40 << 20))
"""


def run(mode: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_freed_memory_is_used_again_without_the_kernel_and_is_given_back_when_asked() -> None:
    mebibyte, page = 2**20, 4096
    large, small, returned = run("keep")
    assert large < 40 * mebibyte / page / 10
    assert small < mebibyte / page
    assert returned > 30 * mebibyte
    large, _, returned = run("as it is")
    assert large > 10 * 40 * mebibyte / page * 0.9 or large > 10 * 40 / 2 * 0.9  # pages of 4 KiB, or of 2 MiB
    assert returned < 30 * mebibyte


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_memory_is_kept_once_the_need_is_known_and_no_longer_when_much_more_is_taken() -> None:
    done = subprocess.run([sys.executable, "-c", GUARDED], capture_output=True, text=True, check=True)
    *learning, kept, returned, freed = [float(word) for word in done.stdout.split()]
    fresh = 10 * 40 / 2 * 0.9  # pages of 2 MiB, at least; of 4 KiB many more
    assert len(learning) == 4
    assert min(learning) > fresh
    assert kept < fresh / 10
    assert returned > 0.9  # of what was kept
    assert freed > 0.9  # of what is no longer
