"""Runs of somebody who wishes the page ill, in a folder that several users share."""

import json
import os
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from distrain.runs.directory import RunDirectory
from distrain.runs.recipe_values import read_recipe_values
from distrain.service import queue
from tests.service.web.sites import client_of, make_run

SECRET = "dragonfly"
FILES = [
    "recipe.yaml",
    "status.json",
    "job.json",
    "labels.json",
    "env.json",
    "metrics.jsonl",
    "samples.json",
    "plan.json",
]
FILES += ["logs/rank-0.log", "errors/rank-0.json", "heartbeats/rank-0.json", "checkpoints/step-00000005/state.json"]
FILES += ["evaluations/x/findings.json", "lock", "launcher-lock", "stop", "profile.yaml"]
HTML = {"Accept": "text/html"}
BOMB = (
    "[&a [x, x, x, x, x, x, x, x], "
    + ", ".join(f"&{c} [{', '.join([f'*{b}'] * 8)}]" for b, c in pairwise("abcdefghijk"))
    + "]"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile") / "runs"
    secret = root.parent / "secret"
    make_run(root, "good", '{"state": "finished", "step": 5, "total_steps": 5}')
    secret.write_text(f'{{"state": "finished", "note": "{SECRET}", "{SECRET}": {{"key": "{SECRET}"}}}}')
    for number, name in enumerate(FILES):
        for kind in ("pipe", "link", "deep", "loop"):
            path = make_run(root, f"{number}-{kind}", '{"state": "stopped"}').path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            if kind == "pipe":
                os.mkfifo(path)
            elif kind == "deep":
                path.write_text("[" * 100_000)
            else:
                path.symlink_to(secret if kind == "link" else path)
    for number, text in enumerate([f"name: x\nb: {BOMB}\n", "name: x\nb: &b {c: *b}\n", f"name: x\nb: {'[' * 5000}\n"]):
        make_run(root, f"recipe-{number}").recipe.write_text(text)
    (root / os.fsdecode(b"not-utf-8-\xff")).mkdir()
    (root / os.fsdecode(b"not-utf-8-\xff") / "recipe.yaml").write_text("name: x\n")
    odd = make_run(root, "odd", '{"state": "failed", "step": 1, "diagnosis": ["\\ud800 \\u202e"]}')
    odd.labels.write_text('{"note": "\\ud800 a\\u202eb", "tags": ["\\ud800"]}')
    make_run(root, "numbers", f'{{"step": {"9" * 400}, "epoch": 1e999, "best": {{"step": 1e999}}}}')
    times = {"started": 1e300, "ended": 1e301, "host": "x", "pid": 1, "world_size": 1, "first_step": 0, "last_step": 1}
    make_run(root, "times", json.dumps({"state": "failed", "attempts": [{**times, "state": "failed"}]}))
    return root


@pytest.fixture(scope="module")
def client(root: Path) -> Iterator[TestClient]:
    with client_of(root) as client:
        yield client


def get(client: TestClient, path: str, **more: Any) -> Any:
    """Get a page in a thread that may hang; it ends with the process."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(client.get(path, **more)), daemon=True)
    thread.start()
    thread.join(20)
    assert found, f"{path} does not end"
    assert found[0].status_code < 500, f"{path}: {found[0].text}"
    assert SECRET not in found[0].text, path
    return found[0]


@pytest.mark.parametrize("path", ["/", "/?columns=note,tag", "/queue", "/metrics", "/api/v1/queue"])
def test_no_run_keeps_others_from_being_listed(client: TestClient, path: str) -> None:
    assert get(client, path, headers=HTML).status_code == 200


def test_good_run_is_listed_among_damaged_ones(client: TestClient, root: Path) -> None:
    rows = {Path(row["run"]).name: row for row in get(client, "/api/v1/runs?limit=1000").json()["runs"]}
    assert rows["good"]["state"] == "finished"
    assert rows["numbers"]["state"] == rows[f"{FILES.index('status.json')}-pipe"]["state"] == "unreadable"
    assert len(rows) == len([path for path in root.iterdir() if RunDirectory(path).exists])


def test_no_run_makes_its_page_hang_or_show_another_file(client: TestClient, root: Path) -> None:
    for name in sorted(path.name for path in root.iterdir()):
        address = quote(name, errors="replace")
        for path in ("", "/metrics", "/logs"):
            get(client, f"/api/v1/runs/{address}{path}")
        get(client, f"/runs/{address}", headers=HTML)


def test_marks_that_turn_text_around_are_visible(client: TestClient) -> None:
    text = get(client, "/runs/odd", headers=HTML).text
    assert "\\u202e" in text and "\u202e" not in text


@pytest.mark.parametrize(
    "text", ["2020-99-99", "!!int x", "!!float ''", "!!timestamp x", "!!bool x", "[" * 900, "{" * 900, BOMB, "&a [*a]"]
)
def test_no_filter_is_an_error_of_the_page(client: TestClient, text: str) -> None:
    for sign in ("=", "<"):
        begun = time.monotonic()
        assert get(client, "/api/v1/runs", params={"filter": f"step{sign}{text}"}).status_code in {200, 422}
        assert time.monotonic() - begun < 10


def test_recipe_that_repeats_billions_of_values_is_not_read(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.recipe.write_text(f"name: x\nb: {BOMB}\n")
    assert read_recipe_values(run) == {}


def test_bell_is_not_rung_through_a_link(tmp_path: Path) -> None:
    (tmp_path / ".queue").symlink_to(tmp_path / "created")
    queue.ring(tmp_path)
    assert not (tmp_path / "created").exists()
    (tmp_path / ".queue").unlink()
    queue.ring(tmp_path)
    before = queue.bell(tmp_path)
    time.sleep(0.02)
    queue.ring(tmp_path)
    assert queue.bell(tmp_path) > before
