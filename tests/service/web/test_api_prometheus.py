"""Figures for Prometheus, as its own parser reads them."""

import math
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from distrain.runs.status import Heartbeat
from distrain.service.web.api.prometheus import Family, render
from tests.service.web.sites import client_of, make_run, put

HOSTILE = 'a"b\\c\nd} 1\n# x'


def samples(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation and family.type in {"gauge", "counter"}
        for sample in family.samples:
            assert (family.type == "counter") == sample.name.endswith("_total")
            found.setdefault(sample.name, {})[tuple(sample.labels.items())] = sample.value
    return found


def test_runs_queue_devices_and_what_trains_are_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTRAIN_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "runs"
    waiting = put(root)
    make_run(root, "over", '{"state": "finished"}')
    run = make_run(root, "trains")
    status = run.read_status()
    status.begin_attempt(world_size=1, first_step=0)
    status.attempts[-1].host, status.state = "another", "running"
    status.step, status.total_steps, status.epoch, status.heartbeat = 7, 20, 0.5, time.time()
    run.write_status(status)
    run.metrics.write_text('{"step": 7, "train/loss": NaN, "train/samples_per_s": 1234.5}\n')
    run.heartbeats.mkdir()
    beat = Heartbeat(rank=0, host=HOSTILE, pid=1, time=time.time() - 5, step=7, phase="step", progress=7)
    run.write_heartbeat(beat.model_copy(update={"figures": {"node/cpu": 12.5}}))
    answer = client_of(root).get("/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = samples(answer.text)
    assert found["distrain_runs"] == {(("state", state),): 1 for state in ("finished", "queued", "running")}
    assert found["distrain_queue_waiting_runs"] == {(): 1}
    assert (("run", waiting.path.name), ("kind", "cpu")) in found["distrain_queue_wait_seconds"]
    assert {dict(labels)["device"] for labels in found["distrain_device"]} >= {"cpu-0", "cpu-1"}
    of_run = (("run", "trains"),)
    assert found["distrain_run_step"][of_run] == 7 and found["distrain_run_target_steps"][of_run] == 20
    assert found["distrain_run_samples_per_second"][of_run] == 1234.5
    assert math.isnan(found["distrain_run_train_loss"][of_run])
    assert found["distrain_run_attempts_total"][of_run] == 1
    (labels, age), *_ = found["distrain_run_heartbeat_age_seconds"].items()
    assert dict(labels)["host"] == HOSTILE and 5 <= age < 60
    assert found["distrain_run_figure"][(*of_run, ("rank", "0"), ("figure", "node/cpu"))] == 12.5


def test_hostile_labels_and_numbers_that_are_not_finite_are_read_back() -> None:
    family = Family("x", "help")
    for value in (math.inf, -math.inf, 1e-300, 3, True):
        family.add(value, label=f"{HOSTILE}{value}")
    nothing: object
    for nothing in (None, "text", [1], {}, 10**400):
        family.add(nothing)
    found = samples(render([family, Family("empty", "nothing")]).decode())
    assert {dict(labels)["label"]: value for labels, value in found["x"].items()} == {
        f"{HOSTILE}{value}": value for value in (math.inf, -math.inf, 1e-300, 3, True)
    }
    assert render([Family("x", "help", samples=[({"name": "\udcff"}, 1)])]).endswith(b'{name="?"} 1\n')
