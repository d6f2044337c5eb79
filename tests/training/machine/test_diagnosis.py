"""A rank that holds up the others is named once, with its figures and what to look at; ranks that do not, never."""

from typing import Any

import pytest

from distrain.runs.status import Heartbeat
from distrain.training.machine.diagnosis import SlowRanks, find_slow_ranks

GPU = {"utilization": 1.0, "temperature_c": 60.0, "sm_clock_mhz": 1755.0, "throttled_thermal": 0.0}


def rank(number: int, host: str = "a", *, gpu: dict[str, float] | None = None, **figures: float) -> Heartbeat:
    of_gpu = {} if gpu is None else {f"gpu/0/{name}": value for name, value in {**GPU, **gpu}.items()}
    return Heartbeat(
        rank=number, host=host, pid=1, time=0.0, step=1, phase="data", progress=1, figures={**figures, **of_gpu}
    )


def sentences(ranks: list[Heartbeat]) -> list[str]:
    return [sentence for _, sentence in find_slow_ranks(ranks)]


def test_rank_that_waits_for_data_is_named_with_its_node() -> None:
    ranks = [*(rank(number, data_wait=0.02) for number in range(3)), rank(3, "b", data_wait=0.4)]
    (sentence,) = sentences(ranks)
    assert sentence.startswith("rank 3 on node b waits 40% of its time for data, the others 2%: look at ")


@pytest.mark.parametrize(
    "waits", [[0.4], [0.4, 0.4], [0.0, 0.1], [0.0, 0.0, 0.09], [0.5, 0.5, 0.52, 0.55]], ids=lambda waits: f"{waits}"
)
def test_ranks_that_wait_alike_are_not_named(waits: list[float]) -> None:
    assert sentences([rank(number, data_wait=wait) for number, wait in enumerate(waits)]) == []


def test_two_slow_ranks_of_many_are_both_named() -> None:
    waits = [0.0, 0.3, 0.01, 0.02, 0.5, 0.0]
    found = sentences([rank(number, data_wait=wait) for number, wait in enumerate(waits)])
    assert [sentence.split(" waits ")[0] for sentence in found] == ["rank 1 on node a", "rank 4 on node a"]


def test_ranks_without_figures_yet_are_left_out() -> None:
    assert sentences([rank(0), rank(1, data_wait=0.9)]) == []
    assert len(sentences([rank(0), rank(1, data_wait=0.9), rank(2, data_wait=0.0)])) == 1


def test_busy_cpu_is_named_where_the_others_wait_for_it() -> None:
    (sentence,) = sentences([rank(0, cpus_used=0.31), rank(1, cpus_used=0.97), rank(2, cpus_used=0.33)])
    assert sentence.startswith("rank 1 on node a computes with 0.97 CPUs, the others with 0.32, as they wait for it")
    assert sentences([rank(0, cpus_used=0.1), rank(1, cpus_used=0.25)]) == []  # neither is busy
    assert sentences([rank(0, cpus_used=0.55), rank(1, cpus_used=1.0)]) == []
    on_gpus = [rank(0, cpus_used=0.3, gpu={}), rank(1, cpus_used=1.0, gpu={})]  # a host that waits for its GPU computes
    assert sentences(on_gpus) == []


@pytest.mark.parametrize(
    ("gpu", "words"),
    [
        ({"throttled_thermal": 1.0, "temperature_c": 87.0}, "is throttled by temperature (87 C): look at its cooling"),
        ({"throttled_hardware": 0.8}, "is slowed down by its hardware: look at its power supply"),
        ({"sm_clock_mhz": 900.0}, "runs at 900 MHz, the others at 1,755 MHz: look at its clocks"),
    ],
)
def test_slow_gpu_is_named_by_the_number_of_its_rank(gpu: dict[str, float], words: str) -> None:
    (sentence,) = sentences([rank(2, gpu={}), rank(3, "b", gpu=gpu), rank(4, gpu={})])
    assert sentence.startswith(f"GPU 3 (rank 3 on node b) {words}")


@pytest.mark.parametrize(
    "gpu",
    [
        {"throttled_power": 1.0},  # full load
        {"throttled_thermal": 0.3},
        {"sm_clock_mhz": 1500.0},
        {"sm_clock_mhz": 300.0, "utilization": 0.1},  # idle
    ],
)
def test_gpu_that_works_as_it_should_is_not_named(gpu: dict[str, float]) -> None:
    assert sentences([rank(0, gpu={}), rank(1, gpu=gpu)]) == []


def test_temperature_is_reported_of_the_only_gpu_as_well() -> None:
    assert len(sentences([rank(0, gpu={"throttled_thermal": 1.0})])) == 1


def test_cause_is_reported_once_after_three_windows_in_a_row() -> None:
    slow: list[Any] = [rank(0, data_wait=0.0), rank(1, data_wait=0.5)]
    fine: list[Any] = [rank(0, data_wait=0.0), rank(1, data_wait=0.0)]
    ranks = SlowRanks()
    found = [len(ranks.find(window)) for window in (slow, slow, fine, slow, slow, slow, slow, fine, slow)]
    assert found == [0, 0, 0, 0, 0, 1, 0, 0, 0]
