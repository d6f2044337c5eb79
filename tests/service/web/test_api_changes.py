"""What REST changes: runs are submitted, stopped, resumed, cancelled, moved and labelled as on the command line."""

import json
import os
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from distrain.runs.directory import RunDirectory
from distrain.runs.labels import read_labels
from distrain.service import queue
from tests.service.web.sites import client_of, make_run, put
from tests.users import NOBODY

CPU = {"kind": "cpu", "count": 1}


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the runs, beside code, in which the application was started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTRAIN_LOCK_DIR", str(tmp_path / "locks"))
    (tmp_path / "network.py").write_text("version = 1\n")
    umask = os.umask(0o002)
    yield tmp_path / "runs"
    os.umask(umask)


@pytest.fixture
def client(root: Path) -> TestClient:
    return client_of(root)


def keep_from_others(run: RunDirectory) -> None:
    """Take the permission to write from others, which the umask of these tests gives."""
    for path in (run.path, *run.path.rglob("*")):
        path.chmod(path.stat().st_mode & 0o755)


def submit(client: TestClient, status: int = 201, **body: Any) -> Any:
    answer = client.post("/api/v1/runs", json={"recipe": "digits", "devices": CPU} | body)
    assert answer.status_code == status, answer.text
    if status == 201:
        assert client.get(answer.headers["location"]).json()["run"] == answer.json()["path"]
    return answer.json()


def job_of(run: RunDirectory) -> Any:
    return json.loads(run.job.read_text())


def post(client: TestClient, run: RunDirectory, what: str, body: Any = None) -> tuple[int, str]:
    answer = client.post(f"/api/v1/runs/{run.path.name}/{what}", json=body)
    found = answer.json()
    return answer.status_code, found["message"] if answer.is_success else found["detail"]


def test_submitted_run_is_in_the_queue_with_what_was_requested(client: TestClient, root: Path) -> None:
    first = submit(client)
    changes = {"optimizer.lr": 1e-5, "train.epochs": 3}
    second = submit(client, set=changes, priority=4, after=[first["run"]], time="1:00:00", requeue=False)
    run = RunDirectory(root / second["run"])
    job, recipe = job_of(run), run.recipe.read_text()
    assert run.read_status().state == "queued" and second["queue"] == "local"
    assert (job["kind"], job["devices"], job["priority"], job["requeue"]) == ("cpu", 1, 4, False)
    assert job["after"] == [first["run"]] and job["time_limit_s"] == 3600 and job["cwd"] == str(root.parent)
    assert "lr: 1.0e-05" in recipe and "epochs: 3" in recipe
    assert (run.code / "network.py").read_text() == "version = 1\n"
    assert queue.find_owner_fault(run) is None
    assert [row["run"] for row in client.get("/api/v1/queue").json()] == [second["run"], first["run"]]


def test_run_is_trained_again_with_its_own_code_and_environment(client: TestClient, root: Path) -> None:
    old = RunDirectory(root / submit(client, set={"optimizer.lr": 0.3})["run"])
    with old.changed_job() as job:
        job.env = {"OMP_PROC_BIND": "true"}
    (root.parent / "network.py").write_text("version = 2\n")
    found = submit(client, recipe=None, run=old.path.name, devices=None, set={"train.epochs": 2})
    new = RunDirectory(root / found["run"])
    assert new.path != old.path
    assert (new.code / "network.py").read_text() == "version = 1\n"
    assert job_of(new)["env"] == {"OMP_PROC_BIND": "true"}
    assert "lr: 0.3" in new.recipe.read_text() and "epochs: 2" in new.recipe.read_text()


def test_run_that_others_could_have_changed_is_neither_trained_again_nor_resumed(
    client: TestClient, root: Path
) -> None:
    run = put(root)
    queue.withdraw(run, "stopped")
    run.recipe.chmod(run.recipe.stat().st_mode | stat.S_IWOTH)
    assert "other users can write" in submit(client, 409, recipe=None, run=run.path.name)["detail"]
    status, sentence = post(client, run, "resume")
    assert status == 409 and "other users can write" in sentence
    assert client.put(f"/api/v1/runs/{run.path.name}/labels", json={"note": "x"}).status_code == 200


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a run to another user")
def test_run_of_another_user_is_shown_and_not_changed(client: TestClient, root: Path) -> None:
    run = put(root)
    os.chown(run.path, NOBODY, -1)
    assert client.get(f"/api/v1/runs/{run.path.name}").status_code == 200
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    for what, body in (("stop", None), ("cancel", None), ("resume", None), ("priority", {"priority": 3})):
        status, sentence = post(client, run, what, body)
        assert status == 409 and "belongs to nobody" in sentence, what
    assert client.put(f"/api/v1/runs/{run.path.name}/labels", json={"note": "x"}).status_code == 409
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "recipe",
    [
        "model: {name: 'mine:Net'}",
        "loss: {name: 'mine:Loss'}",
        "data: {source: 'mine:make'}",
        "data: {more: [{source: 'mine:make'}]}",
        "augment: {train: [{'mine:Blur': {}}]}",
        "augment: {eval: ['mine:Blur']}",
    ],
)
def test_run_of_own_code_is_trained_again_only_where_serve_allows_code(
    client: TestClient, root: Path, recipe: str
) -> None:
    run = make_run(root, status='{"state": "stopped"}')
    run.recipe.write_text(f"name: x\n{recipe}\n")
    keep_from_others(run)
    problem = submit(client, 422, recipe=None, run="one")
    assert "--allow-code" in problem["detail"]
    with client_of(root, allow_code=True) as allowed:
        found = allowed.post("/api/v1/runs", json={"run": "one", "devices": CPU}).json()
        assert "--allow-code" not in found.get("detail", "")


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"recipe": "digit"}, 422, "did you mean digits"),
        ({"recipe": "/etc/passwd"}, 422, "not a built-in recipe"),
        ({"recipe": None}, 422, "either recipe or run"),
        ({"run": "x"}, 422, "either recipe or run"),
        ({"recipe": None, "run": "nothing"}, 404, "there is no run 'nothing'"),
        ({"recipe": None, "run": "../outside"}, 404, "there is no run"),
        ({"after": ["nothing"]}, 404, "there is no run 'nothing'"),
        ({"set": {"optimizer.lr": -1}}, 422, "optimizer.lr"),
        ({"set": {"train.epochs=1\ndata.path": "/"}}, 422, "set"),
        ({"profile": "../launch"}, 422, "not a launch profile"),
        ({"profile": "slurm-2x4"}, 422, ""),
        ({"devices": {"kind": "cpu", "count": 0}}, 422, "devices.count"),
        ({"time": "soon"}, 422, "H:M:S"),
        ({"time": "0:0:1"}, 422, "too short"),
        ({"priority": 10**7}, 422, "priority"),
        ({"launcher": "slurm"}, 422, "launcher"),
        ({"data": "/etc"}, 422, "/etc"),
    ],
)
def test_request_that_is_not_valid_is_refused_and_leaves_nothing(
    client: TestClient, root: Path, body: dict[str, Any], status: int, words: str
) -> None:
    problem = submit(client, status, **body)
    assert problem["status"] == status and words in problem["detail"]
    assert not root.exists()


def test_many_requests_at_once_are_all_queued_and_the_umask_stays(client: TestClient, root: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        names = {found["run"] for found in threads.map(lambda _: submit(client), range(4))}
    assert len(names) == 4 and os.umask(0o002) == 0o002
    for path in root.glob("*/**/*"):
        assert not path.lstat().st_mode & (stat.S_IWGRP | stat.S_IWOTH), path


def test_waiting_run_is_stopped_resumed_and_cancelled(client: TestClient, root: Path) -> None:
    run = put(root)
    name = run.path.name
    assert post(client, run, "stop") == (200, f"took {name} out of the queue")
    assert run.read_status().state == "stopped"
    assert post(client, run, "resume") == (202, f"{name} is in the queue")
    status, sentence = post(client, run, "resume")
    assert status == 409 and "in the queue already" in sentence
    assert post(client, run, "cancel") == (200, f"cancelled {name}")
    for what in ("stop", "cancel"):
        status, sentence = post(client, run, what)
        assert status == 409 and f"run {name} is not running: it was cancelled; `distrain resume" in sentence


def test_training_run_is_asked_to_stop(client: TestClient, root: Path) -> None:
    run = put(root)
    status = run.read_status()
    status.begin_attempt(world_size=1, first_step=0)
    status.state, status.step, status.heartbeat = "running", 7, time.time()
    status.attempts[-1].host = "another"
    run.write_status(status)
    assert post(client, run, "stop") == (202, f"asked {run.path.name} to stop; it is at step 7")
    assert run.stop.read_text() == "stopped"
    assert post(client, run, "stop")[0] == 202
    assert post(client, run, "cancel")[0] == 202
    assert run.stop.read_text() == "cancelled"


def test_run_of_no_queue_is_neither_resumed_nor_moved(client: TestClient, root: Path) -> None:
    run = make_run(root, status='{"state": "stopped"}')
    keep_from_others(run)
    assert post(client, run, "resume")[0] == 409
    status, sentence = post(client, run, "priority", {"priority": 3})
    assert status == 409 and "is in no queue" in sentence


def test_priority_moves_a_run_forward(client: TestClient, root: Path) -> None:
    first, second = put(root), put(root)
    assert post(client, second, "priority", {"priority": 3}) == (200, f"{second.path.name} has priority 3")
    assert [row["run"] for row in client.get("/api/v1/queue").json()] == [second.path.name, first.path.name]
    for body in ({"priority": 10**7}, {"priority": "high"}, {}, None):
        assert post(client, second, "priority", body)[0] == 422


def test_labels_are_replaced(client: TestClient, root: Path) -> None:
    run = make_run(root)
    keep_from_others(run)

    def put_labels(body: Any) -> Any:
        return client.put("/api/v1/runs/one/labels", json=body)

    assert put_labels({"tags": ["a", "b", "a"], "note": " hello\n"}).json() == {"tags": ["a", "b"], "note": "hello"}
    assert read_labels(run).tags == ["a", "b"]
    assert put_labels({"tags": ["a b"]}).status_code == 422
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda number: put_labels({"tags": [f"t{number}"]}).status_code, range(40)))
    assert answers == [200] * 40
    assert not list(run.path.glob(".*"))
