"""Logs by REST: their ends, what was written since, bytes of all kinds, and nothing outside of the run."""

import os
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from distrain.service.web.api.logs import MAX_BYTES
from tests.service.web.sites import client_of, make_run

ALPHA = "\N{GREEK SMALL LETTER ALPHA}"
REPLACED = "\N{REPLACEMENT CHARACTER}"


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return make_run(tmp_path / "runs").logs


@pytest.fixture
def client(logs: Path) -> TestClient:
    return client_of(logs.parents[1])


def read(client: TestClient, **query: Any) -> dict[str, Any]:
    answer = client.get("/api/v1/runs/one/logs", params=query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_last_lines_and_then_what_was_written_since(logs: Path, client: TestClient) -> None:
    (logs / "rank-0.log").write_text("".join(f"line {number}\n" for number in range(100_000)))
    part = read(client, tail=3)
    assert part["text"] == "line 99997\nline 99998\nline 99999\n"
    assert part["after"] == part["size"] == (logs / "rank-0.log").stat().st_size
    assert part["first"] + len(part["text"]) == part["after"]
    assert read(client, tail=0)["text"] == ""
    with (logs / "rank-0.log").open("a") as file:
        file.write("more\nhalf a l")
    more = read(client, after=part["after"])
    assert more["text"] == "more\nhalf a l"
    assert read(client, after=more["after"])["text"] == ""


def test_log_that_has_begun_again_is_read_from_its_start(logs: Path, client: TestClient) -> None:
    (logs / "rank-0.log").write_text("new\n")
    part = read(client, after=1000)
    assert (part["first"], part["text"]) == (0, "new\n")


def test_parts_are_bounded_and_lead_to_the_end(logs: Path, client: TestClient) -> None:
    content = bytes(range(33, 127)) * 40_000
    (logs / "rank-0.log").write_bytes(content)
    assert len(read(client, tail=10)["text"]) == MAX_BYTES
    found, after = "", 0
    while after < len(content):
        part = read(client, after=after)
        assert part["first"] == after and part["after"] > after
        found, after = found + part["text"], part["after"]
    assert found.encode() == content


def test_character_that_is_half_written_comes_whole_with_the_next_part(logs: Path, client: TestClient) -> None:
    (logs / "rank-0.log").write_bytes(f"loss {ALPHA}".encode()[:-1])
    part = read(client)
    assert part["text"] == "loss " and part["after"] == 5
    (logs / "rank-0.log").write_bytes(f"loss {ALPHA}\n".encode())
    assert read(client, after=5)["text"] == f"{ALPHA}\n"


def test_bytes_that_are_not_text_are_replaced(logs: Path, client: TestClient) -> None:
    (logs / "rank-0.log").write_bytes(b"a\xff\x00b\r\x1b[31mc\xc3(\n")
    assert read(client)["text"] == f"a{REPLACED}\0b\r\x1b[31mc{REPLACED}(\n"


def test_logs_of_ranks_and_launchers_are_listed(logs: Path, client: TestClient) -> None:
    for name in ("rank-0.log", "rank-1.log", "launcher.log"):
        (logs / name).write_text(name)
    assert read(client, rank=1)["text"] == "rank-1.log"
    part = read(client, log="launcher.log")
    assert part["text"] == "launcher.log"
    ranks = {file["name"]: file["rank"] for file in part["files"]}
    assert ranks == {"rank-0.log": 0, "rank-1.log": 1, "launcher.log": None}


def test_log_that_is_not_there_is_a_problem_that_names_the_others(logs: Path, client: TestClient) -> None:
    assert "has written no log yet" in client.get("/api/v1/runs/one/logs").json()["detail"]
    (logs / "rank-0.log").write_text("x")
    answer = client.get("/api/v1/runs/one/logs", params={"rank": 3})
    assert answer.status_code == 404
    assert answer.json()["detail"] == "run one has no log rank-3.log; its logs: rank-0.log"


@pytest.mark.parametrize("log", ["../recipe.yaml", "..", "", "link.log", "pipe.log", "../logs/rank-0.log", "a\0.log"])
def test_nothing_but_regular_files_in_the_folder_of_logs_is_read(logs: Path, client: TestClient, log: str) -> None:
    secret = logs.parents[2] / "secret.log"
    secret.write_text("secret-canary\n")
    (logs / "link.log").symlink_to(secret)
    os.mkfifo(logs / "pipe.log")
    answer = client.get("/api/v1/runs/one/logs", params={"log": log})
    assert answer.status_code == 404 and "canary" not in answer.text


def test_folder_of_logs_that_is_a_link_is_not_followed(logs: Path, client: TestClient) -> None:
    logs.rmdir()
    elsewhere = logs.parents[2] / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "rank-0.log").write_text("secret-canary\n")
    logs.symlink_to(elsewhere)
    answer = client.get("/api/v1/runs/one/logs")
    assert answer.status_code == 404 and "canary" not in answer.text
