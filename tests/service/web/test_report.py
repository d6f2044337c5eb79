"""A report shows what is in the files of its runs, opens without a network in a real browser, and runs nothing else."""

import base64
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from distrain.config import load_recipe
from distrain.config.profile import Profile
from distrain.evaluation.results import Predictions, write_results
from distrain.runs.confusion import results_of_classes
from distrain.runs.directory import RunDirectory
from distrain.runs.evaluations import Findings, Mistake, read_evaluations
from distrain.runs.labels import Labels, write_labels
from distrain.runs.status import Attempt, SkippedBatch, Status
from distrain.service.web.report.build import build_report
from tests.cli_runner import distrain, fit, metrics

ATTACK = "<img src=x onerror=alert(1)><script>alert(2)</script>"
HOSTILE = f"</script><script>alert(3)</script>\"'`{{{{7*7}}}}&lt; {ATTACK} javascript:alert(4) \u202e]]>-->"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A short run of the digits that was evaluated."""
    folder = tmp_path_factory.mktemp("report")
    steps = ["--set=train.max_steps=60", "--set=eval.every_steps=20", "--device=cpu", "--procs=1"]
    fit("--run=runs/digits", *steps, cwd=folder)
    assert distrain("eval", "digits", "last", "--device=cpu", cwd=folder).code == 0
    return RunDirectory(folder / "runs" / "digits")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium")
        if chromium is None:
            pytest.skip("needs chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, report: Path, **options: Any) -> Iterator[Page]:
    """Open a report from its file; it must load nothing else, run nothing else, and complain about nothing."""
    page = browser.new_page(**options)
    seen: list[str] = []
    page.on("dialog", lambda dialog: seen.append(f"dialog {dialog.message}"))
    page.on("console", lambda message: seen.append(f"console {message.text}"))
    page.on("pageerror", lambda error: seen.append(f"error {error}"))
    page.on("request", lambda request: seen.append(f"request {request.url[:200]}"))
    page.goto(report.as_uri())
    yield page
    others = [each for each in seen if each != f"request {report.as_uri()}" and not each.startswith("request data:")]
    assert others == []
    page.close()


def write(path: Path, *runs: RunDirectory) -> Path:
    path.write_bytes(build_report(runs))
    return path


def rows_of(page: Page, caption: str) -> list[list[str]]:
    """Return the texts of the cells of a table, without its headings."""
    table = page.locator("table", has=page.locator("caption", has_text=caption)).first
    found: list[list[str]] = table.evaluate("t => [...t.tBodies[0].rows].map(r => [...r.cells].map(c => c.innerText))")
    return found


def sample_run(root: Path, name: str = "run", **status: Any) -> RunDirectory:
    """Make a run that its launcher has prepared, with this status."""
    run = RunDirectory(root / name)
    run.create()
    run.recipe.write_text(load_recipe("digits", overrides=[]).to_yaml())
    run.profile.write_text(Profile(launcher="torchrun", device="cpu", processes=2, threads=1).to_yaml())
    run.environment.write_text(json.dumps({"host": "node-7", "versions": {"torch": "2.11"}, "git": None}))
    run.write_status(Status(**status))
    return run


def attempt(number: int, state: Any, **more: Any) -> Attempt:
    begin = {"host": "h", "pid": 1, "world_size": 2, "first_step": 0, "last_step": 5, "started": 100.0 * number}
    return Attempt(**{**begin, "ended": 100.0 * number + 50, "state": state, **more})


def error(rank: int, time: float, message: str, **more: Any) -> dict[str, Any]:
    where = {"rank": rank, "time": time, "host": "h", "step": 5, "is_secondary": False}
    return {**where, "type": "RuntimeError", "message": message, "traceback": f"Traceback\n{message}", **more}


def test_report_shows_the_figures_of_the_runs_own_files(
    trained: RunDirectory, browser: Browser, tmp_path: Path
) -> None:
    status = trained.read_status()
    (results,) = read_evaluations(trained)
    confusion = results.read_confusion()
    assert status.last is not None
    assert confusion is not None
    with opened(browser, write(tmp_path / "report.html", trained)) as page:
        text = page.locator("main").inner_text()
        assert f"{status.last['val/top1']:.2%} at the newest evaluation" in text
        assert str(status.weights_digest) in text
        evaluated = [record for record in metrics(trained.path) if "val/top1" in record]
        assert len(evaluated) >= 3
        assert [row[0].split()[0] for row in rows_of(page, "Evaluations during")] == [
            f"{record['step']}" for record in evaluated
        ]
        assert [row[2:4] for row in rows_of(page, "Evaluations during")] == [
            [f"{record['val/loss']:.4f}", f"{record['val/top1']:.2%}"] for record in evaluated
        ]
        cells = [[int(cell) for cell in row[1:]] for row in rows_of(page, "Confusion matrix")]
        assert np.array_equal(cells, confusion.counts)
        assert [row[:3] for row in rows_of(page, "Figures of each class")] == [
            [row.name, str(row.samples), f"{row.accuracy:.2%}"] for row in results.classes
        ]
        captions = page.locator(".pictures li").all_inner_texts()
        assert len(captions) == len(results.mistakes) > 0
        assert all(
            caption.startswith(f"{mistake.target}, predicted {mistake.prediction} ({mistake.badness:.1%})")
            for caption, mistake in zip(captions, results.mistakes, strict=True)
        )
        assert page.locator(".pictures img").count() == len(results.mistakes)
        assert page.locator("img.sheet").evaluate("image => image.naturalWidth > 0")


def test_readings_of_a_chart_are_the_records_and_follow_the_pointer(
    trained: RunDirectory, browser: Browser, tmp_path: Path
) -> None:
    losses = {record["step"]: record["train/loss"] for record in metrics(trained.path) if "train/loss" in record}
    with opened(browser, write(tmp_path / "report.html", trained)) as page:
        chart = page.locator("figure.chart").first
        (training, _) = json.loads(chart.locator(".readings").inner_text())["lines"]
        assert training["x"] == [f"{step}" for step in losses]
        assert training["y"] == [f"{loss:.5g}" for loss in losses.values()]
        newest = chart.locator(".value").first.inner_text()
        chart.locator(".area").hover(position={"x": 2, "y": 40})
        assert chart.locator(".value").first.inner_text() == f"{losses[10]:.5g}"
        assert "at step 10" in chart.inner_text()
        page.mouse.move(0, 0)
        assert chart.locator(".value").first.inner_text() == newest == training["y"][-1]


@pytest.mark.parametrize(
    ("count", "width", "scheme"),
    [
        (2, 1400, "light"),
        (1, 390, "dark"),
        *(
            pytest.param(*rest, marks=pytest.mark.slow)
            for rest in product((1, 2), (1400, 390), ("light", "dark"))
            if rest not in {(2, 1400, "light"), (1, 390, "dark")}
        ),
    ],
)
def test_accessible_in_light_and_dark_wide_and_on_a_phone(
    trained: RunDirectory, browser: Browser, tmp_path: Path, count: int, width: int, scheme: Any
) -> None:
    other = sample_run(tmp_path, "other", state="failed", attempts=[attempt(1, "failed")])
    report = write(tmp_path / "report.html", *[trained, other][:count])
    with opened(browser, report, viewport={"width": width, "height": 900}, color_scheme=scheme) as page:
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_recipe_in_the_report_is_that_of_the_run_and_trains_it_again(
    trained: RunDirectory, browser: Browser, tmp_path: Path
) -> None:
    with opened(browser, write(tmp_path / "report.html", trained)) as page:
        link = page.locator("a[download]")
        content = base64.b64decode(str(link.get_attribute("href")).partition("base64,")[2])
        name = str(link.get_attribute("download"))
        command = page.locator(".commands pre").first.inner_text()
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.locator("pre.recipe").inner_text() == trained.recipe.read_text()
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert not page.locator("pre.recipe").is_visible()
    assert content == trained.recipe.read_bytes()
    (tmp_path / name).write_bytes(content)
    assert command == f"distrain fit {name} --device cpu --procs 1"
    done = distrain(*command.split()[1:], "--run=again", cwd=tmp_path)
    assert done.code == 0, done.err
    again = RunDirectory(tmp_path / "again").read_status()
    assert again.weights_digest == trained.read_status().weights_digest


def test_hostile_names_notes_logs_and_errors_are_shown_as_text_and_run_nothing(
    browser: Browser, tmp_path: Path
) -> None:
    last = {"step": 5, "val/loss": 0.5, "val/top1": 0.5, f"val/top1/{HOSTILE}": 0.5, "val/" + ATTACK: 1.0}
    run = sample_run(
        tmp_path,
        ATTACK.replace("/", "\\"),
        state="failed",
        last=last,
        best=last,
        diagnosis=[HOSTILE],
        attempts=[attempt(1, "failed", host=HOSTILE)],
        skipped_batches=[SkippedBatch(step=3, cause=HOSTILE)],
    )
    write_labels(run, Labels(tags=[HOSTILE], note=HOSTILE))
    run.environment.write_text(json.dumps({"host": HOSTILE, "versions": {HOSTILE: HOSTILE}, "git": {"sha": HOSTILE}}))
    run.recipe.write_text(f"name: digits\nbroken: {json.dumps(HOSTILE)}\n")
    run.write_error(error(0, 120, HOSTILE))
    run.log(0).write_text(HOSTILE)
    run.metrics.write_text(json.dumps({"epoch": 1.0, HOSTILE: 1.0, **last}) + "\n")
    Image.new("RGB", (8, 8)).save(run.sample_sheet)
    box = {"left": 0, "top": 0, "width": 8, "height": 8}
    run.samples.write_text(json.dumps({"images": [{"sample": HOSTILE, "index": 0, "target": HOSTILE, **box}]}))
    evaluate(run, [HOSTILE, "\udcff"], np.array([[1, 2], [3, 4]]))
    other = sample_run(tmp_path, "b", state="queued")
    for report in (write(tmp_path / "one.html", run), write(tmp_path / "two.html", run, other)):
        with opened(browser, report) as page:
            text = page.locator("body").inner_text()
            assert text.count("alert(3)") > 8
            assert "{{7*7}}" in text
            assert page.locator("script").count() == 1 + page.locator("script[type='application/json']").count()
            assert page.evaluate("[...document.images].every(image => image.src.startsWith('data:'))")


def evaluate(run: RunDirectory, classes: list[str], confusion: np.ndarray[Any, Any]) -> None:
    """Write the results of an evaluation with a mistake."""
    folder = RunDirectory(run.evaluations / "step-00000005-val")
    folder.path.mkdir(parents=True)
    targets = np.arange(len(classes))
    findings = Findings(
        run=str(run.path),
        checkpoint=str(run.checkpoints / "step-00000005"),
        step=5,
        weights="trained",
        split="val",
        data=classes[0],
        target="class",
        num_samples=int(confusion.sum()),
        metrics={"val/loss": 0.5, "val/top1": 0.5},
        classes=results_of_classes(classes, confusion),
        mistakes=[Mistake(sample=classes[0], index=0, target=classes[0], prediction=classes[1], badness=0.75)],
    )
    write_results(folder, findings, Predictions(targets, targets, np.ones(len(classes)), confusion))


def test_many_classes_have_a_picture_of_the_matrix_and_a_table_of_the_worst(browser: Browser, tmp_path: Path) -> None:
    run = sample_run(tmp_path, state="stopped")
    confusion = np.diag(np.full(120, 9))
    confusion[7, 3], confusion[8, 8] = 5, 0
    evaluate(run, [f"class {number}" for number in range(120)], confusion)
    with opened(browser, write(tmp_path / "report.html", run)) as page:
        matrix = page.locator(".matrix img")
        assert matrix.evaluate("image => image.naturalWidth") == 600
        assert "most confused pairs" in str(matrix.get_attribute("alt"))
        assert rows_of(page, "confused most often") == [["class 7", "class 3", "5"]]
        rows = rows_of(page, "the 50 least accurate of 120")
        assert len(rows) == 50
        assert rows[0][:3] == ["class 7", "14", "64.29%"]


def test_several_runs_begin_with_what_differs_and_mark_the_best(
    trained: RunDirectory, browser: Browser, tmp_path: Path
) -> None:
    last = {"step": 60, "val/loss": 9.5, "val/top1": 0.125}
    other = sample_run(tmp_path, "other", state="finished", step=60, total_steps=60, last=last, best=last)
    other.recipe.write_text(load_recipe("digits", overrides=["optimizer.lr=0.7"]).to_yaml())
    other.metrics.write_text(
        "".join(json.dumps({"step": n, "epoch": n / 2, "train/loss": 1 / n}) + "\n" for n in (1, 2))
    )
    with opened(browser, write(tmp_path / "report.html", trained, other)) as page:
        assert page.locator("h1").inner_text() == "Comparison of 2 runs"
        assert ["optimizer.lr", "0.1", "0.7"] in rows_of(page, "recipes differ")
        (top1,) = (row for row in rows_of(page, "Metrics of the newest") if row[0] == "val/top1")
        assert top1[1].startswith(f"{(trained.read_status().last or {})['val/top1']:.2%}")
        assert "best" in top1[1]
        assert top1[2] == "12.50%"
        assert page.locator("#curves figure.chart").first.locator("path.line").count() == 2
        assert page.locator("h2", has_text="other").count() == 1
        assert "0.5" in page.locator("#run-2 .charts").inner_text()


def test_failed_attempt_has_its_error_and_preemption_what_it_means(tmp_path: Path) -> None:
    run = sample_run(tmp_path, state="failed", attempts=[attempt(1, "preempted"), attempt(2, "failed")])
    run.write_error(error(0, 231, "disk full"))
    report = build_report([run]).decode()
    assert report.count("RuntimeError: disk full (rank 0 on h, step 5)") == 2  # at the top, and among the attempts
    assert "Preempted once; the result is the same as without." in report


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"state": "queued"}, ["Never started: no step was trained yet.", "has none yet", "No metrics are recorded"]),
        (
            {"state": "stopped", "step": 5, "attempts": [attempt(1, "stopped")]},
            ["stopped on request", "distrain resume"],
        ),
        ({"state": "failed", "attempts": [attempt(1, "failed")]}, ["ended without an error report", "not evaluated"]),
    ],
)
def test_run_that_is_not_complete_says_so(tmp_path: Path, status: dict[str, Any], words: list[str]) -> None:
    report = build_report([sample_run(tmp_path, **status)]).decode()
    for each in words:
        assert each in report


def test_damaged_files_are_named_and_the_rest_is_shown(trained: RunDirectory, tmp_path: Path) -> None:
    for file in ("recipe.yaml", "profile.yaml", "env.json", "metrics.jsonl", "samples.json", "labels.json"):
        for content in (b"", b"{", b"\xff\xfe\0", b"[]", b'{"step": "x"}\n{"a": {}}\n'):
            run = RunDirectory(tmp_path / file / str(len(content)))
            shutil.copytree(trained.path, run.path)
            (run.path / file).write_bytes(content)
            report = build_report([run]).decode()
            assert str(trained.read_status().weights_digest) in report
    damaged = RunDirectory(tmp_path / "evaluation")
    shutil.copytree(trained.path, damaged.path)
    for path in (*damaged.evaluations.iterdir(), *damaged.validation.iterdir()):
        RunDirectory(path).findings.write_bytes(b"{")
    assert f"distrain eval {damaged.path}" in build_report([damaged]).decode()


def test_command_writes_beside_the_run_or_where_it_is_told_and_never_over_another_file(
    trained: RunDirectory, tmp_path: Path
) -> None:
    root = tmp_path / "runs"
    shutil.copytree(trained.path, root / "digits")
    sample_run(root, "other")
    mine = tmp_path / "mine.html"
    mine.write_text("<p>mine</p>")
    for _ in range(2):  # a report is replaced by a later one
        done = distrain("report", "digits", cwd=tmp_path)
        assert (done.code, done.out) == (0, "runs/digits/report.html\n")
    done = distrain("report", "digits", "other", "--out", "new/place/two.html", cwd=tmp_path)
    assert (done.code, done.out) == (0, "new/place/two.html\n")
    assert b"Comparison of 2 runs" in (tmp_path / "new" / "place" / "two.html").read_bytes()
    refused = distrain("report", "digits", "--out", "mine.html", cwd=tmp_path)
    assert (refused.code, refused.err) == (
        2,
        "distrain: mine.html exists and is no report; name another file with --out\n",
    )
    assert mine.read_text() == "<p>mine</p>"
    (root / "other" / "status.json").write_text("{")
    refused = distrain("report", "digits", "other", cwd=tmp_path)
    assert refused.code == 2
    assert refused.err.startswith("distrain: run other cannot be read: ")
    assert not (tmp_path / "report.html").exists()
