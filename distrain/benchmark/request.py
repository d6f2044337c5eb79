"""Reads and writes `measurement.json`, the request that makes a worker measure instead of train."""

import json

from pydantic import BaseModel

from distrain.runs.directory import RunDirectory, write_atomically
from distrain.system.files import to_json


class Order(BaseModel):
    """What to measure besides the throughput, the memory and the reduction, and for how long."""

    steps: int | None = None  # of a stretch; None takes as many as fit into `stretch_s`
    stretch_s: float = 5.0
    least_samples: int | None = None  # fewer training samples give the epochs that are planned no step
    has_parts: bool = False  # loader alone, compute alone, the parts of a step
    has_checkpoint: bool = False
    has_evaluation: bool = False
    largest_micro_batch: int | None = None  # find the largest divisor of it that memory holds; None: do not look


def write_order(folder: RunDirectory, order: Order) -> None:
    """Write the request."""
    write_atomically(folder.measurement, to_json(order))


def read_order(folder: RunDirectory) -> Order:
    """Read the request."""
    return Order.model_validate(json.loads(folder.measurement.read_text(encoding="utf-8")))
