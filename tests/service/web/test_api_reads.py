"""What REST reads: the same as the command line's `--json`, in parts, and a problem for what is not there."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.cli_runner import distrain
from tests.service.web.sites import client_of, make_run, put, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two runs that have ended, the second with a tag, and one in the queue."""
    folder = tmp_path_factory.mktemp("site")
    before = Path.cwd()
    os.chdir(folder)
    train(folder, "first")
    train(folder, "second", "--set=optimizer.lr=0.05")
    distrain("runs", "tag", "second", "baseline", cwd=folder)
    put(folder / "runs")
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def client(folder: Path) -> TestClient:
    return client_of(folder / "runs")


def printed(*arguments: str, cwd: Path) -> Any:
    done = distrain(*arguments, "--root", str(cwd / "runs"), "--json", cwd=cwd)
    assert done.code == 0, done.err
    return json.loads(done.out)


def get(client: TestClient, path: str, **query: Any) -> Any:
    answer = client.get(f"/api/v1{path}", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(client: TestClient, path: str, status: int, **query: Any) -> str:
    answer = client.get(f"/api/v1{path}", params=query)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status and problem["title"]
    return str(problem["detail"])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sort": "-start"},
        {"filter": "state=finished", "sort": "-optimizer.lr"},
        {"columns": "name,optimizer.lr,val/top1,train/loss", "filter": "recipe=digits", "sort": "best"},
    ],
)
def test_list_is_that_of_the_command_line(folder: Path, client: TestClient, options: dict[str, str]) -> None:
    arguments = [f"--{name}={value}" for name, value in options.items()]
    answer = get(client, "/runs", **options)
    assert answer["runs"] == printed("runs", *arguments, cwd=folder)
    assert answer["total"] == len(answer["runs"]) > 0


def test_one_run_the_queue_and_a_comparison_are_those_of_the_command_line(folder: Path, client: TestClient) -> None:
    assert get(client, "/runs/first") == printed("runs", "show", "first", cwd=folder)
    assert get(client, "/queue") == printed("queue", cwd=folder)
    compared = get(client, "/compare", runs="first,second")
    assert compared == printed("runs", "compare", "first", "second", cwd=folder)
    assert compared["recipe"]["optimizer.lr"] == [0.1, 0.05]


def test_devices_are_those_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTRAIN_LOCK_DIR", str(tmp_path))
    done = distrain("devices", "--json", cwd=tmp_path)
    found = get(client_of(tmp_path), "/devices")
    known = {row["id"]: row for row in json.loads(done.out)}
    assert {"cpu-0", "cpu-1"} <= {row["id"] for row in found}
    assert all(known.get(row["id"], row) == row for row in found)


def test_curves_are_the_records_of_the_run(folder: Path, client: TestClient) -> None:
    records = [json.loads(line) for line in (folder / "runs/first/metrics.jsonl").read_text().splitlines()]
    losses = {record["step"]: record["train/loss"] for record in records if "train/loss" in record}
    found = get(client, "/runs/first/metrics", keys="train/loss,val/top1")
    curve = found["curves"]["train/loss"]
    assert (
        found["records"] == len(records) and found["step"] == 5 and list(found["curves"]) == ["train/loss", "val/top1"]
    )
    assert dict(zip(curve["step"], curve["mean"], strict=True)) == losses and curve["is_exact"]
    assert get(client, "/runs/first/metrics", keys="train/loss", first_step=3)["curves"]["train/loss"]["step"][0] >= 3
    assert set(get(client, "/runs/first/keys")["keys"]) == set(get(client, "/runs/first/metrics")["curves"])
    assert "did you mean train/loss" in refused(client, "/runs/first/metrics", 422, keys="train/los")
    assert "points" in refused(client, "/runs/first/metrics", 422, keys="train/loss", points=1)


def test_list_comes_in_parts_that_links_connect(client: TestClient) -> None:
    names, path = list[str](), "/api/v1/runs?limit=2&sort=name"
    answers = []
    while path:
        answers.append(client.get(path))
        names += [Path(run["run"]).name for run in answers[-1].json()["runs"]]
        path = answers[-1].links.get("next", {}).get("url", "")
    assert len(answers) == 2 and len(names) == 3 and names == sorted(names)
    assert client.get(answers[1].links["prev"]["url"]).json() == answers[0].json()
    assert "prev" not in answers[0].links


def test_column_that_only_runs_of_another_part_have_is_null(client: TestClient) -> None:
    parts = [get(client, "/runs", columns="val/top1", limit=1, offset=number)["runs"][0] for number in range(3)]
    assert parts[0]["val/top1"] is not None
    assert parts[2]["val/top1"] is None


@pytest.mark.parametrize("name", ["nothing", "..", "%2e%2e", "%2E%2E%2Fruns", "a" * 300, ".serve", "first%00", "%ff"])
def test_only_runs_of_the_folder_have_an_address(client: TestClient, name: str) -> None:
    for path in (f"/runs/{name}", f"/runs/{name}/logs"):
        answer = client.get(f"/api/v1{path}")
        assert answer.status_code == 404, answer.text
        assert answer.headers["content-type"] == "application/problem+json"


def test_bad_parameters_are_problems_of_one_sentence(client: TestClient) -> None:
    assert "no run has this key" in refused(client, "/runs", 422, sort="optimiser.lr")
    assert "did you mean optimizer.lr" in refused(client, "/runs", 422, columns="optimiser.lr")
    assert "not KEY=VALUE" in refused(client, "/runs", 422, filter="finished")
    assert "limit" in refused(client, "/runs", 422, limit=1001)
    assert "offset" in refused(client, "/runs", 422, offset=-1)
    assert "2 to 20" in refused(client, "/compare", 422, runs="first")
    assert "there is no run 'third'" in refused(client, "/compare", 404, runs="first,third")
    assert "/docs" in refused(client, "/nothing", 404)
    assert client.delete("/api/v1/runs").status_code == 405


def test_folder_without_runs_has_an_empty_list(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "missing"):
        assert get(client_of(root), "/runs") == {"runs": [], "total": 0, "limit": 100, "offset": 0}
        assert get(client_of(root), "/queue") == []


def test_unreadable_run_is_listed_with_its_fault(tmp_path: Path) -> None:
    make_run(tmp_path, status="{")
    run = get(client_of(tmp_path), "/runs/one")
    assert run["state"] == "unreadable" and "is damaged" in run["fault"]


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    make_run(tmp_path, status='{"state": "failed", "last": {"step": 3, "val/loss": NaN}}')
    answer = client_of(tmp_path).get("/api/v1/runs/one")
    assert "NaN" not in answer.text and answer.json()["last"] == {"step": 3, "val/loss": None}
