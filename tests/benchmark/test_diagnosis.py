"""Results, and the diagnosis that follows from them."""

from dataclasses import replace
from typing import Any

import pytest

from distrain.benchmark.diagnosis import DiagnosisInput, diagnose
from distrain.benchmark.results import Saving
from distrain.messages import MEBIBYTE
from tests.benchmark.factories import figures, reduction

GPU = DiagnosisInput(
    cpus=16,
    device="cuda",
    precision="bf16",
    source="imagefolder",
    path="/photos",
    checkpoint_every_steps=None,
    checkpoint_every_epochs=1,
)
CPU = replace(GPU, cpus=2, device="cpu", precision="fp32")


def rates(loader: float, compute: float, together: float) -> dict[str, Any]:
    return {"loader_images_per_s": loader, "compute_images_per_s": compute, "images_per_s": together}


@pytest.mark.parametrize(
    ("setting", "changes", "words"),
    [
        (  # no CPU is left for more loader processes
            CPU,
            {**rates(450, 1900, 430), "num_workers": 2},
            "input-bound: the loader gives 450 images/s and the network takes 1,900, together they reach 430; "
            "pack the data: distrain data pack /photos",
        ),
        (  # 450 a process: 1900 / 450 x 1.1 = 4.6
            GPU,
            {**rates(900, 1900, 890), "num_workers": 2},
            "the network takes 1,900, together they reach 890; --set data.num_workers=5",
        ),
        (  # 15 CPUs are free, and 47 were needed
            replace(GPU, source="cifar10"),
            {**rates(90, 1900, 85), "num_workers": 2},
            "this machine's 16 CPUs cannot do more: make the images smaller",
        ),
        (  # one after the other they make 1 / (1/2000 + 1/2000): a loader process would do
            GPU,
            {**rates(2000, 2000, 1000), "num_workers": 0},
            "input-bound: the loader gives 2,000 images/s and the network takes 2,000, together they reach 1,000; "
            "--set data.num_workers=2",
        ),
        (CPU, {**rates(500, 450, 240), "num_workers": 2}, "input-bound"),  # both on the same two CPUs
        (GPU, {**rates(500, 450, 440), "num_workers": 2}, "compute-bound"),
        (CPU, {**rates(1_000_000, 94, 70), "num_workers": 0}, "compute-bound"),  # slower by chance, not by its input
        (GPU, rates(6000, 2000, 1950), "the loader could give 6,000 (3.0 times as many); more devices make it faster"),
        (CPU, rates(6000, 2000, 1950), "--set precision=bf16"),
        (
            GPU,
            {"processes": 2, "communication": reduction(exposed_s=0.04)},
            "communication-bound: 40% of a step is spent on the gradients of the other processes (44.0 MiB at 0.9 "
            "GB/s); a larger data.batch_size",
        ),
        (GPU, {"processes": 2, "communication": reduction(exposed_s=0.01)}, "compute-bound"),
        (GPU, {"processes": 2, "communication": reduction(exposed_s=None)}, "compute-bound"),
    ],
)
def test_bottleneck_and_advice(setting: DiagnosisInput, changes: dict[str, Any], words: str) -> None:
    assert words in diagnose(figures(**changes), setting, [])[0]


@pytest.mark.parametrize(
    ("blocked_s", "commit_s", "words"),
    [
        (0.05, 0.5, "(1.0 MiB) every 10 steps costs 4.8%: training is blocked for 50.0 ms, and it is on disk after "),
        (0.05, 0.5, "; every 50 steps would cost 1%"),  # 0.05 / (50 x 0.1 + 0.05) = 0.99%
        (0.005, 0.5, "costs 0.5%: training is blocked for 5.0 ms, and it is on disk after 0.50 s"),
        (0.005, 1.5, "; the next one is scheduled before that, and waits"),  # ten steps take 1 s
    ],
)
def test_cost_of_checkpoints(blocked_s: float, commit_s: float, words: str) -> None:
    saving = Saving(num_bytes=MEBIBYTE, blocked_s=blocked_s, commit_s=commit_s, first_blocked_s=0.1)
    told = diagnose(figures(saving=saving), GPU, [])[1]
    assert words in told
    assert ("would cost" in told) == (blocked_s == 0.05)
    assert ("waits" in told) == (commit_s == 1.5)


def test_checkpoint_by_time_alone_has_no_cost_per_step() -> None:
    assert len(diagnose(figures(), replace(GPU, checkpoint_every_epochs=None), [])) == 1
    assert "every 4 steps" in diagnose(figures(), replace(GPU, checkpoint_every_steps=4), [])[1]


def test_scaling_is_reported_for_the_largest_number_of_processes() -> None:
    assert diagnose(figures(), GPU, [(2, 0.99), (4, 0.9)])[1] == "4 processes are 3.60 times as fast as one (90% of 4)"
    crowded = diagnose(figures(num_workers=0), CPU, [(4, 0.3)])[1]
    assert crowded.endswith("(30% of 4): 4 processes of 1 thread share 2 CPUs")
    assert "2 processes of 1 thread and 4 loader processes each share" in diagnose(figures(), CPU, [(2, 0.6)])[1]


PARTS = {"data": 0.0, "prepare": 0.0, "forward": 0.02, "backward": 0.04, "wait": 0.03, "reduce": 0.005, "update": 0.005}


def test_waiting_for_other_ranks_is_distinguished_from_the_transfer() -> None:
    waiting = {"processes": 2, "num_workers": 0, "parts_s": PARTS, "communication": reduction(exposed_s=0.0)}
    (words,) = diagnose(figures(**waiting), replace(GPU, checkpoint_every_epochs=None), [])
    assert words == (
        "waiting-bound: 30% of a step is spent waiting for the last rank's gradients, whose reduction alone takes "
        "50.0 ms; some are slower than others; look for other programs on their devices"
    )
    crowded = diagnose(figures(**{**waiting, "threads": 2}), CPU, [])[0]
    assert crowded.endswith("; 2 processes of 2 threads share 2 CPUs")
    assert "compute-bound" in diagnose(figures(**{**waiting, "parts_s": {**PARTS, "wait": 0.01}}), GPU, [])[0]


@pytest.mark.parametrize("setting", [CPU, GPU])
def test_more_devices_are_not_advised_where_they_scale_badly(setting: DiagnosisInput) -> None:
    measured = figures(**rates(6000, 2000, 1950))
    assert "more devices" in diagnose(measured, setting, [(2, 0.99)])[0]
    bound, scaling, *_ = diagnose(measured, setting, [(2, 0.55)])
    assert "more devices" not in bound
    assert "more processes on this machine do not" in bound
    assert scaling.startswith("2 processes are 1.10 times as fast as one (55% of 2)")


def test_full_memory_is_reported() -> None:
    memory = figures().memory.model_copy(update={"peak": 95 * MEBIBYTE})
    assert "95 MiB of 100; a smaller train.micro_batch_size than 100" in diagnose(figures(memory=memory), GPU, [])[-1]
