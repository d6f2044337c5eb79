"""The user is notified of what happens to a run, however it was started, and no handler can hurt it."""

import json
import os
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.cli_runner import Launch, end_of, fit, heartbeat, status, wait_for_step, wait_until
from tests.disk import small_disk
from tests.launchers.test_event_delivery import Server

ENDLESS = ["--set=train.epochs=20000", "--set=checkpoint.every_epochs=null", "--set=eval.every_epochs=null"]


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server([])
    yield server
    server.close()


def settings(tmp_path: Path, *handlers: dict[str, Any]) -> dict[str, str]:
    """Write the user's settings: a command that collects all events, and more handlers; returns the environment."""
    path = shlex.quote(str(tmp_path / "events.jsonl"))
    collect = {"command": f"cat >> {path}; echo >> {path}"}
    (tmp_path / "home" / "distrain").mkdir(parents=True)
    (tmp_path / "home" / "distrain" / "config.yaml").write_text(yaml.safe_dump({"on_event": [collect, *handlers]}))
    return {"XDG_CONFIG_HOME": str(tmp_path / "home")}


def events(tmp_path: Path) -> list[dict[str, Any]]:
    path = tmp_path / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line] if path.exists() else []


def names(tmp_path: Path) -> list[str]:
    return [event["event"] for event in events(tmp_path)]


@pytest.mark.slow
def test_run_of_two_processes_reports_its_start_and_end_and_keeps_the_secret(tmp_path: Path, server: Server) -> None:
    server.codes = [500, 503]
    hang = {"command": f"echo $$ > {tmp_path}/pid; sleep 600"}  # it must not keep the webhook from its last tries
    env = settings(tmp_path, hang, {"webhook": f"{server.url}?${{TOKEN}}", "events": ["finished"]})
    done = fit(*("--procs=2", "--set=train.max_steps=20", "--run=run"), cwd=tmp_path, env={**env, "TOKEN": "s3cret"})
    first, last = events(tmp_path)
    assert (first["event"], first["state"], first["text"]) == ("started", "starting", "run has started")
    assert (last["event"], last["state"], last["step"]) == ("finished", "finished", 20)
    assert last["metrics"]["val/top1"] == status(tmp_path / "run")["last"]["val/top1"]
    assert last["path"] == str(tmp_path / "run")
    (received,) = server.received
    assert received["event"] == "finished"
    assert received["text"].startswith("run has finished at step 20 of 20, top-1 ")
    assert server.paths == ["/hook?s3cret"] * 3
    for path in (tmp_path / "run").rglob("*"):
        assert path.is_dir() or b"s3cret" not in path.read_bytes(), path
    assert "s3cret" not in done.out + done.err
    assert done.out.count("note: on_event entry 2 of ") == 1
    wait_until(lambda: not psutil.pid_exists(int((tmp_path / "pid").read_text())), "the end of the command")


def test_killed_rank_is_a_failure(launch: Launch, tmp_path: Path) -> None:
    env = settings(tmp_path)
    process = launch("--procs=2", "--restarts=0", "--run=run", *ENDLESS, cwd=tmp_path, env=env)
    wait_for_step(tmp_path / "run", 5)
    os.kill(heartbeat(tmp_path / "run", 1)["pid"], signal.SIGKILL)
    assert end_of(process).code == 1
    assert names(tmp_path) == ["started", "failed"]
    failed = events(tmp_path)[1]
    assert failed["state"] == "failed"
    assert "on rank 1: Killed: " in failed["message"]


@pytest.mark.slow
def test_signal_of_a_scheduler_is_a_preemption_and_a_requested_stop_is_not(launch: Launch, tmp_path: Path) -> None:
    env = settings(tmp_path)
    process = launch("--device=cpu", "--run=run", *ENDLESS, cwd=tmp_path, env=env)
    wait_for_step(tmp_path / "run", 5)
    process.send_signal(signal.SIGTERM)
    assert end_of(process).code == 75
    step = status(tmp_path / "run")["step"]
    process = launch("--device=cpu", "--run=run", cwd=tmp_path, env=env)
    wait_for_step(tmp_path / "run", step + 1)
    (tmp_path / "run" / "stop").touch()
    assert end_of(process).code == 75
    assert names(tmp_path) == ["started", "preempted", "started", "stopped"]
    assert events(tmp_path)[1]["message"].startswith(f"was stopped by SIGTERM at step {step} of ")
    assert events(tmp_path)[2]["message"] == f"resumes at step {step}"


@pytest.mark.slow
def test_stall_is_reported_before_the_restart(launch: Launch, tmp_path: Path) -> None:
    env = settings(tmp_path)
    run = tmp_path / "run"
    process = launch("--procs=2", "--stall-timeout=3", "--run=run", *ENDLESS, cwd=tmp_path, env=env)
    wait_for_step(run, 5)
    os.kill(heartbeat(run, 1)["pid"], signal.SIGSTOP)
    wait_until(lambda: "stalled" in names(tmp_path), "the report of the stall")
    assert events(tmp_path)[1]["message"].startswith("has stalled: rank 1 (")
    process.send_signal(signal.SIGKILL)


@pytest.mark.slow
def test_disk_that_is_nearly_full_is_reported_while_the_run_trains_to_its_end(tmp_path: Path) -> None:
    env = settings(tmp_path)
    with small_disk(tmp_path / "disk", mebibytes=100) as disk:
        run = [f"--run={disk / 'run'}", "--device=cpu", "--set=train.max_steps=5", "--no-preflight"]
        fit(*run, cwd=tmp_path, env=env)
    assert sorted(names(tmp_path)) == ["disk", "finished", "started"]
    (full,) = [event for event in events(tmp_path) if event["event"] == "disk"]
    assert full["message"].startswith("is running out of disk space: ")


def test_wrong_settings_are_a_note_and_the_run_trains(tmp_path: Path) -> None:
    env = settings(tmp_path)
    (tmp_path / "home" / "distrain" / "config.yaml").write_text("on_event: [{}]")
    done = fit("--run=run", "--device=cpu", "--set=train.max_steps=2", cwd=tmp_path, env=env)
    assert "note: nobody is notified of the events of this run: " in done.out
    assert events(tmp_path) == []


def test_start_that_is_refused_is_no_event(tmp_path: Path) -> None:
    env = settings(tmp_path)
    fit("--run=run", "--device=cpu", "--data=nothing", cwd=tmp_path, env=env, code=2)
    assert events(tmp_path) == []
