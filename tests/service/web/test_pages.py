"""What the pages show of runs, without a browser: tables, links, escaping, and errors as pages."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from fastapi.testclient import TestClient

from distrain.runs.directory import RunDirectory
from distrain.runs.evaluations import read_validations
from distrain.runs.overview import read_overviews
from distrain.service.web.pages.queue import list_own_devices
from distrain.service.web.pages.run_table import PAGE, Listing, ListRequest, list_runs
from distrain.service.web.pages.run_view import better, group_keys
from distrain.service.web.security.requests import is_allowed_key
from distrain.service.web.views.evaluations import show_cells
from tests.service.web.sites import client_of, make_run, put, train

_HTML = {"Accept": "text/html"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    train(folder, "slow", "--set=optimizer.lr=0.05")
    train(folder, "fast", "--set=optimizer.lr=0.2")
    return folder / "runs"


@pytest.fixture(scope="module")
def client(root: Path) -> Iterator[TestClient]:
    with client_of(root) as found:
        yield found


def _list(root: Path, **wanted: object) -> Listing:
    return list_runs(read_overviews(root), ListRequest(**wanted))  # type: ignore[arg-type]  # values of the test


def _names(listing: Listing) -> list[str]:
    return [row.overview.name for row in listing.rows]


def test_the_list_has_a_column_for_what_differs(root: Path) -> None:
    listing = _list(root)
    keys = [heading.key for heading in listing.headings]
    assert "optimizer.lr" in keys
    assert "optimizer.momentum" not in keys
    column = keys.index("optimizer.lr")
    assert {row.overview.name: row.cells[column] for row in listing.rows} == {"slow": "0.05", "fast": "0.2"}


def test_the_list_is_filtered_and_sorted_as_by_the_command(root: Path) -> None:
    assert _names(_list(root, filter="state=finished   optimizer.lr<0.1")) == ["slow"]
    assert _names(_list(root, sort="optimizer.lr")) == ["slow", "fast"]
    assert _names(_list(root, sort="-optimizer.lr")) == ["fast", "slow"]
    wrong = _list(root, filter="optimizer.rl=1")
    assert wrong.rows == ()
    assert wrong.fault is not None
    assert wrong.fault.startswith("filter optimizer.rl: no run has this key; did you mean")
    assert str(_list(root, sort="-nonsense").fault).startswith("sort nonsense: ")


def test_the_link_of_a_heading_sorts_and_then_reverses(root: Path) -> None:
    (heading,) = [each for each in _list(root).headings if each.key == "optimizer.lr"]
    assert heading.order is None
    assert parse_qs(urlsplit(heading.link).query) == {"sort": ["optimizer.lr"]}
    sorted_by = _list(root, sort="optimizer.lr", filter="state=finished")
    (heading,) = [each for each in sorted_by.headings if each.key == "optimizer.lr"]
    assert heading.order == "ascending"
    assert parse_qs(urlsplit(heading.link).query) == {"sort": ["-optimizer.lr"], "filter": ["state=finished"]}


def test_chosen_columns_replace_the_others(root: Path) -> None:
    listing = _list(root, columns=("optimizer.momentum", "no-such-key"))
    assert [heading.key for heading in listing.headings] == ["optimizer.momentum", "no-such-key"]
    assert {row.cells for row in listing.rows} == {("0.9", "")}


def test_a_list_of_many_runs_has_pages(tmp_path: Path) -> None:
    for number in range(PAGE + 5):
        make_run(tmp_path, f"run-{number:03}")
    overviews = read_overviews(tmp_path)
    first, second = (list_runs(overviews, ListRequest(page=page, sort="name")) for page in (1, 2))
    assert (len(first.rows), len(second.rows)) == (PAGE, 5)
    assert first.previous is None
    assert second.next is None
    assert first.next == "/?sort=name&page=2"
    assert list_runs(overviews, ListRequest(page=99, sort="name")).request.page == 2


def test_metrics_are_grouped_with_those_of_the_machines_last() -> None:
    groups = group_keys(["train/loss", "node/0/memory", "val/loss", "own/x", "rank/0/step_s", "train/lr"])
    assert [(group.title, group.keys, group.is_folded) for group in groups] == [
        ("val", ("val/loss",), False),
        ("train", ("train/loss", "train/lr"), False),
        ("own", ("own/x",), False),
        ("rank", ("rank/0/step_s",), True),
        ("node", ("node/0/memory",), True),
    ]
    assert (better("val/top1"), better("train/loss"), better("train/lr")) == ("higher", "lower", None)


def test_a_confusion_matrix_is_shaded_by_the_share_of_the_true_class() -> None:
    cells = show_cells(np.array([[99, 1, 0], [0, 0, 0], [5, 5, 90]]))
    assert [[cell.shade for cell in row] for row in cells] == [[6, 1, 0], [0, 0, 0], [1, 1, 6]]
    assert [cell.is_hit for cell in cells[0]] == [True, False, False]


def test_the_training_s_own_evaluation_is_shown_without_distrain_eval(root: Path, client: TestClient) -> None:
    (result, *_) = read_validations(RunDirectory(root / "fast"))
    matrix = result.read_confusion()
    assert matrix is not None
    text = client.get("/runs/fast", headers=_HTML).text
    assert f'id="evaluation-{result.name}" open' in text
    assert f"{result.num_samples} validation samples, the trained weights of step 5" in text
    cells = [int(count) for count in re.findall(r'<td class="shade-\d(?: is-hit)?">([\d,]+)</td>', text)]
    assert cells[: matrix.counts.size] == matrix.counts.flatten().tolist()
    assert "adds the worst mistakes" in text


@pytest.mark.parametrize("path", ["/", "/queue", "/submit", "/runs/fast", "/runs/fast/resubmit"])
def test_pages_have_no_style_or_script_of_their_own(client: TestClient, path: str) -> None:
    text = client.get(path, headers=_HTML).text
    assert "<h1>" in text
    assert "style=" not in text
    assert "<style" not in text
    assert "onclick" not in text
    assert '<script type="application/json"' in text or "<script>" not in text


def test_every_text_is_escaped(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>".replace("/", "_")
    run = make_run(tmp_path, name)
    run.labels.write_text(json.dumps({"note": "</script><b>&'\"", "tags": []}))
    with client_of(tmp_path) as client:
        for path in ("/", f"/runs/{name}", f"/runs/{name}/resubmit", "/queue"):
            text = client.get(path, headers=_HTML).text
            assert "<script>alert" not in text, path
            assert "<b>&" not in text, path


def test_a_browser_gets_a_page_and_a_program_a_problem(client: TestClient) -> None:
    page = client.get("/runs/none", headers={"Accept": "text/html,application/xhtml+xml"})
    assert page.status_code == 404
    assert page.headers["content-type"].startswith("text/html")
    assert "There is no run" in page.text
    problem = client.get("/runs/none", headers={"Accept": "application/json"})
    assert problem.headers["content-type"] == "application/problem+json"
    api = client.get("/api/v1/runs/none", headers={"Accept": "text/html"})
    assert api.headers["content-type"] == "application/problem+json"


def test_a_run_that_cannot_be_read_is_named_and_the_others_are_compared(root: Path, tmp_path: Path) -> None:
    for name in ("slow", "fast", "damaged"):
        shutil.copytree(root / ("fast" if name == "damaged" else name), tmp_path / name)
    (tmp_path / "damaged" / "status.json").write_text("{")
    with client_of(tmp_path) as client:
        page = client.get("/compare?runs=slow&runs=damaged&runs=fast", headers=_HTML)
        assert page.status_code == 200
        assert "Comparison of 2 runs" in page.text
        assert "damaged is not among them, because it cannot be read" in page.text
        alone = client.get("/compare?runs=slow&runs=damaged", headers=_HTML)
        assert alone.status_code == 409
        assert "damaged cannot be read" in alone.text
        for query in ("", "?runs=slow", "?runs=slow&runs=slow"):
            assert client.get(f"/compare{query}", headers=_HTML).status_code == 422


def test_the_form_offers_only_what_a_request_may_set(root: Path, client: TestClient) -> None:
    text = client.get("/submit", headers=_HTML).text
    keys = re.findall("<option>([^<]+)</option>", text.partition('<datalist id="keys">')[2].partition("</datalist>")[0])
    assert {"optimizer.lr", "train.epochs", "data.batch_size"} <= set(keys)
    assert all(is_allowed_key(key) for key in keys)
    assert "log.wandb_project" not in keys
    assert "this one runs without" in text
    with client_of(root, data_roots=(root / "images",)) as other:
        allowed = other.get("/submit", headers=_HTML).text
    assert f"An absolute path below <code>{root}/images</code>" in allowed


def test_a_run_that_cannot_be_read_still_has_a_page(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "fast", tmp_path / "runs" / "damaged")
    run = RunDirectory(tmp_path / "runs" / "damaged")
    run.status.write_text('{"state"')
    run.recipe.write_text("a: [")
    run.environment.write_text("[]")
    with client_of(tmp_path / "runs") as client:
        page = client.get("/runs/damaged", headers=_HTML)
        assert page.status_code == 200
        assert "cannot be read" in page.text
        assert "train/loss" in page.text, "its curves are there"
        assert "rank 0" in page.text, "and its log"
        assert client.get("/", headers=_HTML).status_code == 200


def test_the_queue_shows_why_a_run_waits(tmp_path: Path) -> None:
    run = put(tmp_path, priority=3)
    with client_of(tmp_path) as client:
        text = client.get("/queue", headers=_HTML).text
    assert run.path.name in text
    assert 'value="3"' in text
    assert "no distrain serve runs it" in text
    assert list_own_devices([], tmp_path) == []


def test_only_pictures_of_the_run_are_served(root: Path, client: TestClient, tmp_path: Path) -> None:
    assert client.get("/runs/fast/samples.png").headers["content-type"] == "image/png"
    run = RunDirectory(root / "slow")
    run.sample_sheet.unlink()
    run.sample_sheet.symlink_to("/etc/passwd")
    assert client.get("/runs/slow/samples.png").status_code == 404
    for path in (
        "evaluations/../x/mistakes/000.png",
        "evaluations/x/mistakes/..%2f000.png",
        "evaluations/x/mistakes/a",
    ):
        assert client.get(f"/runs/fast/{path}").status_code in {404, 422}, path


def test_plotly_is_served_from_its_package(client: TestClient) -> None:
    answer = client.get("/plotly.min.js")
    assert answer.status_code == 200
    assert b"plotly.js v" in answer.content[:200]
