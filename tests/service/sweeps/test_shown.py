"""What page, REST interface, report and Optuna's journal show of a sweep."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from fastapi.testclient import TestClient
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from distrain.service.sweeps.folder import SweepFolder
from distrain.service.sweeps.journal import Journal
from distrain.service.sweeps.parameters import read_parameters
from distrain.service.sweeps.results import read_result
from distrain.service.sweeps.trial import Trial
from tests.cli_runner import distrain
from tests.service.sweeps.folders import PARAMS, make_sweep, make_trials
from tests.service.web.sites import client_of


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return make_sweep(tmp_path / "runs")


@pytest.fixture
def client(folder: SweepFolder) -> Iterator[TestClient]:
    with client_of(folder.path.parent) as found:
        yield found


def test_page_shows_table_coordinates_importance_contour_and_seeds(client: TestClient) -> None:
    page = client.get("/sweeps/s", headers={"Accept": "text/html"}).text
    assert page.count('class="trial') == 6, "a line for each trial that has a value"
    assert 'class="trial is-best"' in page
    assert page.count('class="cell"') == 24 * 2, "a column for each place of a range, a row for each choice"
    for text in ("75%", "90.00%", "80.00%", "82.00%", "refused: &lt;b&gt;", "&lt;script&gt;"):
        assert text in page, text
    assert "<b>" not in page and 'style="' not in page


def test_list_of_sweeps_names_those_that_cannot_be_read(client: TestClient, folder: SweepFolder) -> None:
    broken = folder.path.parent / "broken"
    broken.mkdir()
    (broken / "sweep.yaml").write_text("recipe: [")
    page = client.get("/sweeps", headers={"Accept": "text/html"}).text
    assert 'href="/sweeps/s"' in page
    assert "cannot be read as YAML" in page
    listed = client.get("/api/v1/sweeps").json()
    assert [one["state"] for one in listed] == ["unreadable", "finished"]
    assert client.get("/sweeps/broken").status_code == 409


def test_rest_gives_what_the_command_prints(client: TestClient, folder: SweepFolder) -> None:
    shown = client.get("/api/v1/sweeps/s").json()
    assert shown == json.loads(json.dumps(read_result(folder).as_json()))
    assert shown["best"]["number"] == 0
    (repeated,) = shown["repeats"]
    assert repeated["values"] == pytest.approx([0.81, 0.82, 0.83])
    assert (repeated["mean"], repeated["std"]) == (pytest.approx(0.82), pytest.approx(0.01))
    for name in ("none", "..", "s%00"):
        assert client.get(f"/api/v1/sweeps/{name}").status_code == 404
    assert client.get("/api/v1/runs").json()["runs"] == [], "the folder of a sweep is no run"


def test_report_of_a_sweep_needs_no_network(folder: SweepFolder) -> None:
    done = distrain("report", "s", cwd=folder.path.parent.parent)
    assert done.code == 0, done.err
    text = folder.report.read_text()
    assert "Parallel coordinates" in text and "fANOVA" in text
    assert re.search(r"(src|href)=\"https?:", text) is None


def open_study(folder: SweepFolder) -> optuna.Study:
    return optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(folder.journal))))


def test_optuna_reads_the_journal_as_it_grows_and_one_that_was_damaged_is_written_again(folder: SweepFolder) -> None:
    parameters, trials = read_parameters(PARAMS), make_trials()
    begun = [Trial(number=trial.number, params=trial.params, run=trial.run) for trial in trials[:3]]
    journal = Journal(folder, parameters, [], sign=1, rungs=(1,))
    journal.update(begun)
    assert [trial.state.name for trial in open_study(folder).trials] == ["RUNNING"] * 3
    journal.update(trials)
    again = Journal(folder, parameters, trials, sign=1, rungs=(1,))  # of the next controller
    again.update(trials)
    study = open_study(folder)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 5 + ["PRUNED", "FAIL"]
    assert study.trials[5].intermediate_values == {1: 0.2}
    assert study.best_trial.number == 0 and study.best_trial.params["model.name"] == "lenet"
    assert sum(again.read_importance().values()) == pytest.approx(1)
    for damage in (b"{", b'{"op_code": 99}\n'):
        with folder.journal.open("ab") as file:
            file.write(damage)
        Journal(folder, parameters, trials, sign=1, rungs=(1,)).update(trials)
        assert len(open_study(folder).trials) == 7
    Journal(folder, parameters, trials[:2], sign=1, rungs=(1,)).update(trials[:2])
    assert len(open_study(folder).trials) == 2, "a journal of other trials is replaced"
