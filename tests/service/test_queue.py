"""Jobs of the queue as files: what is frozen at submission, who may change them, and how the service settles them."""

import json
import os
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distrain.config import change_recipe, read_recipe
from distrain.config.profile import LaunchOptions
from distrain.errors import LaunchError, RunError
from distrain.runs.directory import RunDirectory
from distrain.runs.local_job import LocalJob, freeze_environment
from distrain.runs.overview import read_overviews
from distrain.runs.status import Change, State
from distrain.runs.stop_file import answer_stop, forget_stop, read_stop_reason, request_stop
from distrain.service import queue
from distrain.service.devices import require_leases
from distrain.service.launch import read_secrets
from distrain.service.queue import QueueOptions, find_owner_fault, resolve, submit
from distrain.service.server import Service
from distrain.service.table import JobTable, decide, read_queue
from distrain.service.unit import unit_file
from tests.fakes import gpu, use_nvml

ON_ONE_CPU = LaunchOptions(device="cpu", processes=1)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, and an umask that lets the group write."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTRAIN_LOCK_DIR", str(tmp_path / "locks"))
    umask = os.umask(0o002)
    yield tmp_path
    os.umask(umask)


def put(*, options: LaunchOptions = ON_ONE_CPU, **more: Any) -> RunDirectory:
    wanted = QueueOptions(options=options, root=Path("runs"), **more)
    found = resolve(references=["digits"], tasks=[], overrides=[], data=None, run=None, options=wanted)
    submit(found, is_snapshot=True, extras=[])
    return found[0].run


def job_of(run: RunDirectory) -> LocalJob:
    job = run.read_local_job()
    assert job is not None
    return job


def tick(*, slots: int = 1) -> list[str]:
    """Let a service that starts nothing (there are no devices) settle the jobs; returns what it says."""
    said: list[str] = []
    Service(Path("runs").absolute(), slots=slots, max_devices=None, notify=said.append).tick()
    return said


def set_state(run: RunDirectory, state: State, *, step: int = 0) -> None:
    status = run.read_status()
    if not status.attempts:
        status.begin_attempt(world_size=1, first_step=0)
    status.state, status.step = state, step
    run.write_status(status)


def test_submission_freezes_what_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "network.py").write_text("version = 1\n")
    monkeypatch.setenv("OMP_PROC_BIND", "true")
    monkeypatch.setenv("WANDB_API_KEY", "secret-1")
    monkeypatch.setenv("HF_TOKEN", "secret-2")
    monkeypatch.setenv("WANDB_PROJECT", "flowers")
    run = put(priority=3)
    (folder / "network.py").write_text("version = 2\n")
    job = job_of(run)
    assert (run.code / "network.py").read_text() == "version = 1\n"
    assert job.env["OMP_PROC_BIND"] == "true" and job.env["WANDB_PROJECT"] == "flowers"
    assert job.cwd == str(folder) and job.priority == 3 and job.devices == 1 and job.kind == "cpu"
    assert run.read_status().state == "queued"
    for path in run.path.rglob("*"):
        if path.is_file():
            assert b"secret-" not in path.read_bytes(), path


def test_names_in_the_job_file_that_scripts_rely_on(folder: Path) -> None:
    run = put(priority=2)
    found = json.loads(run.job.read_text())
    assert {"devices", "priority", "submitted_at", "submitted_by", "after"} <= found.keys()
    assert json.loads(run.status.read_text())["state"] == "queued"


@pytest.mark.parametrize(
    ("name", "is_kept"),
    [
        ("PATH", True),
        ("NCCL_DEBUG", True),
        ("LD_LIBRARY_PATH", True),
        ("WANDB_MODE", True),
        ("WANDB_API_KEY", False),
        ("HF_TOKEN", False),
        ("AWS_SECRET_ACCESS_KEY", False),
        ("CUDA_VISIBLE_DEVICES", False),
        ("CUDA_LAUNCH_BLOCKING", True),
        ("MY_PASSWORD", False),
        ("EDITOR", False),
    ],
)
def test_which_variables_a_job_keeps(name: str, is_kept: bool) -> None:
    assert (name in freeze_environment({name: "x"})) == is_kept


def test_nobody_else_can_write_to_a_submitted_run() -> None:
    run = put()
    for path in (run.path, *run.path.rglob("*")):
        assert not path.lstat().st_mode & (stat.S_IWGRP | stat.S_IWOTH), path
    assert find_owner_fault(run) is None
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o755  # all may read
    assert os.umask(0o002) == 0o002, "submitting changes the umask, which is that of all threads"


@pytest.mark.parametrize(
    "name", ["", "recipe.yaml", "job.json", "profile.yaml", "code", "plan.json", "status.json", "logs"]
)
def test_run_that_others_can_write_to_is_not_started(name: str) -> None:
    run = put()
    path = run.path / name
    path.chmod(path.stat().st_mode | stat.S_IWOTH)
    fault = find_owner_fault(run)
    assert fault is not None and "other users can write" in fault
    assert [text for text in tick() if "is not started: other users can write" in text]
    assert job_of(run).starts == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a run to another user")
def test_run_of_another_user_is_not_started() -> None:
    run = put()
    os.chown(run.path, 65534, -1)
    fault = find_owner_fault(run)
    assert fault is not None and "belongs to" in fault
    tick()
    assert job_of(run).starts == 0


def test_secrets_come_from_a_private_file(folder: Path) -> None:
    file = folder / "secrets.env"
    assert read_secrets(file) == {}
    file.write_text("# W&B\nexport WANDB_API_KEY='abc=='\n\nAWS_SECRET_ACCESS_KEY = xyz\n")
    file.chmod(0o600)
    assert read_secrets(file) == {"WANDB_API_KEY": "abc==", "AWS_SECRET_ACCESS_KEY": "xyz"}
    file.chmod(0o640)
    with pytest.raises(RunError, match="chmod 600"):
        read_secrets(file)


def test_run_outside_the_root_is_refused(folder: Path) -> None:
    options = QueueOptions(options=ON_ONE_CPU, root=Path("runs"))
    with pytest.raises(RunError, match="name one there"):
        resolve(references=[], tasks=[], overrides=[], data=None, run=folder / "x" / "y", options=options)
    assert not (folder / "x").exists() and not (folder / "runs").exists()


def test_several_nodes_are_refused() -> None:
    options = QueueOptions(
        options=LaunchOptions(nodes=2, node_rank=0, rendezvous="127.0.0.1:29400", device="cpu"), root=Path("runs")
    )
    with pytest.raises(LaunchError, match="this machine only"):
        resolve(references=[], tasks=[], overrides=[], data=None, run=None, options=options)


def test_job_waits_only_for_runs_that_exist() -> None:
    with pytest.raises(RunError, match="there is no run 'nothing'"):
        put(after=("nothing",))
    first = put()
    assert job_of(put(after=(first.path.name,))).after == [first.path.name]


def test_withdrawn_job_is_not_started_even_by_a_launcher_that_was_just_begun() -> None:
    run = put()
    before = job_of(run).starts
    assert queue.withdraw(run, "cancelled")
    assert run.read_status().state == "cancelled"
    assert job_of(run).starts == before + 1
    assert not queue.withdraw(run, "cancelled")
    with pytest.raises(RunError, match="was cancelled"):
        queue.cancel(run)


def test_resumed_job_is_queued_behind_the_others() -> None:
    first, second = put(), put()
    queue.withdraw(first, "stopped")
    queue.submit_again(first)
    assert [row["run"] for row in read_queue(Path("runs").absolute(), now=time.time())] == [
        second.path.name,
        first.path.name,
    ]
    with pytest.raises(RunError, match="in the queue already"):
        queue.submit_again(first)


def test_priority_orders_the_queue() -> None:
    first, second = put(), put()
    queue.set_priority(second, 5)
    rows = read_queue(Path("runs").absolute(), now=time.time())
    assert [row["run"] for row in rows] == [second.path.name, first.path.name]


@pytest.mark.parametrize("state", ["starting", "running", "stopping"])
def test_job_that_died_is_queued_first(state: State) -> None:
    run = put()
    _occupy(run)
    set_state(run, state)
    assert any("died, and is queued again" in text for text in tick())
    assert run.read_status().state == "queued"
    assert job_of(run).is_first and job_of(run).deaths == 1 and job_of(run).not_before == 0


def test_job_that_dies_again_and_again_fails() -> None:
    run = put()
    _occupy(run)
    for _ in range(4):
        set_state(run, "running")
        tick()
    assert run.read_status().state == "failed"
    assert job_of(run).fault == "it died 4 times without a newer checkpoint"


def test_job_that_died_with_a_newer_checkpoint_is_counted_from_one() -> None:
    run = put()
    _occupy(run)
    for step in (10, 20, 30, 40, 50, 60):
        _commit(run, step)
        set_state(run, "running", step=step)
        tick()
        assert run.read_status().state == "queued" and job_of(run).deaths == 1


@pytest.mark.parametrize(("reason", "end"), [("cancelled", "cancelled"), ("stopped", "stopped")])
def test_job_that_died_after_a_request_of_the_user_stays_ended(reason: Any, end: str) -> None:
    run = put()
    set_state(run, "stopping")
    request_stop(run, reason)
    tick()
    assert run.read_status().state == end


def test_preempted_job_is_queued_before_others_of_its_priority() -> None:
    run, other = put(), put()
    with run.changed_job() as job:
        job.stop_reason, job.queued_at = "for another", time.time() + 100
    set_state(run, "preempted", step=10)
    _occupy(run)
    tick()
    assert run.read_status().state == "queued"
    rows = read_queue(Path("runs").absolute(), now=time.time())
    assert [row["run"] for row in rows] == [run.path.name, other.path.name]


def test_time_limit_without_progress_is_no_endless_loop() -> None:
    run = put(time_limit_s=60.0)
    for step, end in ((10, "queued"), (20, "queued"), (20, "failed")):
        with run.changed_job() as job:
            job.stop_reason = "time limit"
        _commit(run, step)
        set_state(run, "preempted", step=step)
        _occupy(run)
        tick()
        assert run.read_status().state == end
    assert job_of(run).fault == "it made no progress in its time limit of 1 min 0 s"


def test_finished_or_queued_run_is_not_submitted_again() -> None:
    run = put()
    options = QueueOptions(options=ON_ONE_CPU, root=Path("runs"))
    cases: list[tuple[State, str]] = [("queued", "in the queue already"), ("finished", "has already finished")]
    for state, words in cases:
        set_state(run, state)
        with pytest.raises(RunError, match=words):
            resolve(references=[], tasks=[], overrides=[], data=None, run=run.path, options=options)
        with pytest.raises(RunError, match=words):
            queue.submit_again(run)
    with pytest.raises(RunError, match="only a run that waits or runs has a priority"):
        queue.set_priority(run, 3)


def test_finished_run_is_queued_again_to_be_extended() -> None:
    run = put()
    options = QueueOptions(options=ON_ONE_CPU, root=Path("runs"))
    wanted: dict[str, Any] = {"references": [], "tasks": [], "data": None, "run": run.path, "options": options}
    changes = {"train.epochs": Change(old=15, new=30)}
    set_state(run, "finished")
    _commit(run, 20)
    submit(resolve(**wanted, overrides=["train.epochs=30"]), is_snapshot=True, extras=[])
    assert run.read_status().state == "queued" and run.read_status().changes == changes

    set_state(run, "stopped")
    with pytest.raises(RunError, match=r"train\.seed cannot change in run"):
        resolve(**wanted, overrides=["train.seed=1"])
    recipe = change_recipe(read_recipe(run.recipe), ["train.epochs=40"])
    queue.submit_again(run, recipe)
    assert run.read_status().changes["train.epochs"] == Change(old=15, new=40)
    assert read_recipe(run.recipe).train.epochs == 40


@pytest.mark.parametrize(
    ("name", "text"),
    [("job.json", "{"), ("status.json", "garbage"), ("job.json", '{"queue": "local", "kind": "tpu", "devices": -1}')],
)
def test_damaged_job_is_named_and_keeps_no_other_from_running(name: str, text: str) -> None:
    damaged, whole = put(), put()
    (damaged.path / name).write_text(text)
    root = Path("runs").absolute()
    _occupy(whole)
    said = tick()
    rows = {row["run"]: row for row in read_queue(root, now=time.time())}
    assert rows[damaged.path.name]["state"] == "unreadable" and "damaged" in rows[damaged.path.name]["why"]
    assert [one for one in said if f"{damaged.path.name} is not started: " in one]
    assert whole.path.name in rows
    listed = {one.name: one.state for one in read_overviews(root)}
    assert listed == {damaged.path.name: "unreadable", whole.path.name: "queued"}


@pytest.mark.parametrize(("gone", "words"), [("cwd", "its working directory"), ("python", "its Python")])
def test_job_whose_folder_or_python_is_gone_fails_with_a_sentence(gone: str, words: str) -> None:
    run = put()
    with run.changed_job() as job:
        setattr(job, gone, "/nowhere/at/all")
    said: list[str] = []
    service = Service(Path("runs").absolute(), slots=1, notify=said.append)
    service.tick()
    service.tick()
    assert run.read_status().state == "failed"
    assert job_of(run).fault == f"{words} /nowhere/at/all is gone"
    assert f"{run.path.name} has failed: {words} /nowhere/at/all is gone" in said


def test_job_without_requeue_stays_stopped() -> None:
    run = put(requeue=False)
    set_state(run, "preempted", step=10)
    tick()
    assert run.read_status().state == "stopped"


def test_request_of_the_user_outranks_that_of_the_scheduler() -> None:
    run = put()
    request_stop(run, "cancelled")
    request_stop(run, "preempted")
    assert read_stop_reason(run) == "cancelled"
    answer_stop(run)
    assert not run.stop.exists() and read_stop_reason(run) == "cancelled"
    forget_stop(run)
    assert read_stop_reason(run) is None


def test_jobs_that_are_over_are_not_read_again_until_something_changes() -> None:
    run, waiting = put(), put()
    set_state(run, "stopped")
    table = JobTable(Path("runs").absolute())
    assert [entry.name for entry in table.read()] == [waiting.path.name]
    queue.submit_again(run)
    assert {entry.name for entry in table.read()} == {run.path.name, waiting.path.name}


def test_full_disk_holds_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    run = put()
    monkeypatch.setattr("distrain.service.table.MIN_DISK_BYTES", 1 << 62)
    assert tick() == []
    assert job_of(run).starts == 0
    (row,) = read_queue(Path("runs").absolute(), now=time.time())
    assert "the disk has only" in row["why"]


def test_gpus_are_assigned_by_uuid_and_only_those_in_service(monkeypatch: pytest.MonkeyPatch) -> None:
    use_nvml(monkeypatch, *map(gpu, range(4)))
    uuids = [gpu(number)["uuid"] for number in range(4)]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    folder = require_leases()
    folder.drain(uuids[1], "a test")
    assert folder.acquire(uuids[0], Path("/runs/of-another")) is not None
    on_gpus = LaunchOptions(device="cuda", processes=2)
    pair, single, many = put(options=on_gpus), put(options=ON_ONE_CPU), put(options=on_gpus)
    root = Path("runs").absolute()
    decision = decide(JobTable(root).read(), slots=1, starting=(), now=time.time(), root=root)
    assert {name: start.devices for name, start in decision.starts.items()} == {
        pair.path.name: (uuids[2], uuids[3]),
        single.path.name: ("cpu-0",),
    }
    assert many.path.name in decision.waits


def test_unit_file_is_accepted_by_systemd(folder: Path) -> None:
    text = unit_file(folder / "my runs 100%", slots=2, max_devices=None)
    assert f'"--root={folder}/my runs 100%%" --slots=2' in text
    unit = folder / "distrain.service"
    unit.write_text(text)
    try:
        done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs systemd-analyze")
    assert done.returncode == 0, done.stderr
    assert str(unit) not in done.stderr


def _occupy(run: RunDirectory) -> None:
    """Keep the service from starting the job again at once: it waits for a run that is not there yet."""
    with run.changed_job() as job:
        job.after = ["later"]


def _commit(run: RunDirectory, step: int) -> None:
    """Leave a folder that counts as a checkpoint."""
    folder = run.checkpoints / f"step-{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "MANIFEST.json").write_text("{}")
