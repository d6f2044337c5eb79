"""Creates results of a measurement, which tests modify."""

from typing import Any

from distrain.benchmark.results import BenchmarkResult, Communication, Memory, Saving, Spread
from distrain.messages import MEBIBYTE


def figures(**changes: Any) -> BenchmarkResult:
    """One process with a batch of 100 that takes 0.1 s, of an epoch of 10 steps; a checkpoint costs it nothing."""
    return BenchmarkResult(
        processes=1,
        device="a processor",
        threads=1,
        num_workers=4,
        global_batch_size=100,
        micro_batch_size=100,
        accumulation=1,
        num_train_samples=1000,
        num_val_samples=200,
        steps_per_epoch=10,
        began=0.0,
        step_s=Spread(median=0.1, lower=0.1, upper=0.1, deviation=0.0, count=10),
        images_per_s=1000.0,
        memory=Memory(
            peak=10 * MEBIBYTE,
            peaks=[10 * MEBIBYTE],
            weights=1,
            gradients=44 * MEBIBYTE,
            optimizer=1,
            averages=0,
            activations=1,
            total=100 * MEBIBYTE,
        ),
        loader_images_per_s=6000.0,
        compute_images_per_s=1000.0,
        parts_s={"data": 0.0, "prepare": 0.002, "forward": 0.028, "backward": 0.06, "update": 0.009, "other": 0.001},
        saving=Saving(num_bytes=MEBIBYTE, blocked_s=0.0, commit_s=0.5, first_blocked_s=0.0),
    ).model_copy(update=changes)


def reduction(*, exposed_s: float | None = 0.0) -> Communication:
    """44 MiB in 50 ms."""
    return Communication(gradient_bytes=44 * MEBIBYTE, all_reduce_s=0.05, latency_s=0.0, exposed_s=exposed_s)
