"""The pages in a real browser, over a real `distrain serve` with real runs."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")

from playwright.sync_api import Browser, Locator, Page, expect

from distrain.runs.directory import RunDirectory
from distrain.runs.labels import Labels, write_labels
from tests.cli_runner import distrain
from tests.service.web.browser import PHONE, WIDE, Served, Visitor, chromium, find_violations, needs_chromium, served
from tests.service.web.sites import train

pytestmark = needs_chromium
expect.set_options(timeout=30_000)

HOSTILE = "<img src=x onerror=document.title='taken'>"
EVERY_PAGE = [
    "/",
    "/?filter=nonsense",
    "/queue",
    "/submit",
    "/runs/one",
    "/runs/one/resubmit",
    f"/runs/{quote(HOSTILE)}",
    "/runs/damaged",
    "/runs/without-recipe",
    "/compare?runs=one&runs=two&runs=damaged",
    "/docs",
    "/runs/none",
]
NUM_LONG = 200_000  # records of a long run
SPIKES = {1: 90.0, NUM_LONG: -80.0}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two runs that were trained, one with hostile texts everywhere, and two that cannot be read."""
    folder = tmp_path_factory.mktemp("pages")
    root = folder / "runs"
    one = train(folder, "one", "--set=log.every_steps=1")
    done = distrain("eval", str(one.path), "--device=cpu", cwd=folder)
    assert done.code == 0, done.err
    two, hostile = (RunDirectory(shutil.copytree(one.path, root / name)) for name in ("two", HOSTILE))
    two.recipe.write_text(two.recipe.read_text().replace("lr: 0.1", "lr: 0.2"))
    write_labels(two, Labels(tags=["baseline"], note="the second one"))
    _make_hostile(hostile)
    shutil.copytree(one.path, root / "damaged")
    (root / "damaged" / "status.json").write_text('{"state": ')
    shutil.copytree(one.path, root / "without-recipe")
    (root / "without-recipe" / "recipe.yaml").write_text("model: {name: [")
    with served(root) as found:
        yield found


def _make_hostile(run: RunDirectory) -> None:
    write_labels(run, Labels(tags=[], note=HOSTILE))
    run.log(0).write_text(f"{HOSTILE}</pre></script>{HOSTILE}\n")
    status = json.loads(run.status.read_text())
    status["state"] = status["attempts"][-1]["state"] = "failed"
    status["diagnosis"] = [HOSTILE]
    run.status.write_text(json.dumps(status))
    error = {"rank": 0, "host": HOSTILE, "step": 1, "time": status["attempts"][-1]["started"] + 1, "type": HOSTILE}
    error |= {"message": f"</script>{HOSTILE}", "traceback": HOSTILE, "is_secondary": False, "clock": HOSTILE}
    run.error(0).write_text(json.dumps(error))
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    run.metrics.write_text("".join(json.dumps({**line, f"train/{HOSTILE}": 1.0}) + "\n" for line in lines))
    for findings in run.evaluations.glob("*/findings.json"):
        found = json.loads(findings.read_text())
        found["classes"] = [{**each, "name": f"{HOSTILE}{each['name']}"} for each in found["classes"]]
        found["mistakes"] = [{**each, "sample": HOSTILE, "target": HOSTILE} for each in found["mistakes"]]
        findings.write_text(json.dumps(found))


def test_no_page_has_a_barrier_or_an_error(site: Served, browser: Browser) -> None:
    """Some pages in one look each; the slow test has all of them in every look."""
    _check_pages(site, browser, ["/", f"/runs/{quote(HOSTILE)}", "/submit"], "light", WIDE)
    _check_pages(site, browser, ["/?filter=nonsense", "/queue", "/compare?runs=one&runs=two"], "dark", PHONE)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
def test_no_page_has_a_barrier_in_any_look(
    site: Served, browser: Browser, scheme: str, viewport: dict[str, int]
) -> None:
    _check_pages(site, browser, EVERY_PAGE, scheme, viewport)


def _check_pages(site: Served, browser: Browser, paths: list[str], scheme: str, viewport: dict[str, int]) -> None:
    with site.visit(browser, color_scheme=scheme, viewport=viewport) as visitor:
        for path in paths:
            page = visitor.open(path)
            page.get_by_role("heading", level=1).wait_for()
            if page.locator("figure.chart").count():
                page.locator("#charts").scroll_into_view_if_needed()
                page.locator("#curves .main-svg").first.wait_for()
            assert find_violations(page) == [], (path, scheme)
            assert page.title() != "taken"
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= viewport["width"], f"{path} is wider than the window"
            page.close()
        # Chromium reports the status of a page that shows what is wrong with a request.
        visitor.faults[:] = [fault for fault in visitor.faults if "status of 4" not in fault]


@pytest.mark.slow
def test_a_run_is_submitted_watched_stopped_resumed_and_compared(browser: Browser, tmp_path: Path) -> None:
    with served(tmp_path / "runs") as site, site.visit(browser) as visitor:
        page = _submit(visitor, {"train.epochs": "60"})
        name = page.url.rpartition("/")[2]
        page.evaluate("window.wasNotReloaded = true")
        state = page.locator("[data-live=state]")
        expect(state).to_have_text("running")
        chart = page.locator('figure[data-key="train/loss"]')
        chart.locator(".main-svg").first.wait_for()
        _wait_for_more(page, chart.locator(".reading"))
        _wait_for_more(page, page.locator("[data-live=progress]"))
        expect(page.locator("#log-text")).to_contain_text("epoch")

        page.get_by_role("button", name="Stop", exact=True).click()
        expect(page.locator("#announcement")).to_contain_text("stop")
        expect(state).to_have_text("stopped")
        page.get_by_role("button", name="Resume", exact=True).click()
        expect(state).to_have_text("running")
        expect(page.locator("[data-live=attempts] tbody tr")).to_have_count(2)
        page.get_by_role("button", name="Cancel", exact=True).click()
        page.get_by_role("dialog").get_by_role("button", name="Yes").click()
        expect(state).to_have_text("cancelled")
        assert page.evaluate("window.wasNotReloaded")

        page.get_by_role("link", name="Submit with changes").click()
        page.get_by_label("Key of change 1").fill("train.epochs")
        page.get_by_label("Value of change 1").fill("1")
        page.get_by_role("button", name="Submit", exact=True).click()
        expect(page.locator("[data-live=state]")).to_have_text("finished")
        page.goto(f"{site.address}/")
        for each in (name, page.get_by_role("rowheader").get_by_role("link").first.inner_text()):
            page.get_by_label(f"Select {each}").check()
        page.get_by_role("button", name="Compare").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Comparison of 2 runs")
        expect(page.get_by_role("row", name="train.epochs 1 60")).to_be_visible()
        expect(page.locator(".chart-legend button")).to_have_count(2)


def test_a_refusal_is_shown_at_its_field(site: Served, browser: Browser) -> None:
    with site.visit(browser) as visitor:
        page = visitor.open("/submit")
        page.get_by_label("Key of change 1").fill("optimizer.rl")
        page.get_by_label("Value of change 1").fill("1")
        page.get_by_role("button", name="Submit", exact=True).click()
        expect(page.locator("#set-fault")).to_contain_text("optimizer.rl")
        expect(page.get_by_label("Key of change 1")).to_be_focused()
        assert find_violations(page) == []
        visitor.faults[:] = [fault for fault in visitor.faults if "status of 422" not in fault]


def test_runs_are_compared_by_keyboard_alone(site: Served, browser: Browser) -> None:
    with site.visit(browser) as visitor:
        page = visitor.open("/")
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        for name in ("one", "two"):
            _tab_to(page, page.get_by_label(f"Select {name}", exact=True))
            page.keyboard.press("Space")
        _tab_to(page, page.get_by_role("button", name="Compare"))
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("Comparison of 2 runs")
        _tab_to(page, page.locator(".chart-legend").get_by_role("button", name="two"))
        page.keyboard.press("Space")
        expect(page.locator(".chart-legend").get_by_role("button", name="two")).to_have_attribute(
            "aria-pressed", "false"
        )
        chart = page.locator('figure[data-key="train/loss"]')
        _tab_to(page, chart.locator(".plot"))
        page.keyboard.press("Home")
        expect(chart.locator(".chart-tip")).to_be_visible()
        expect(chart.locator("[aria-live]")).to_contain_text("step 1")
        page.keyboard.press("ArrowRight")
        expect(chart.locator("[aria-live]")).to_contain_text("step 2")


def test_the_figures_of_a_chart_are_those_of_the_records(site: Served, browser: Browser) -> None:
    records = [json.loads(line) for line in RunDirectory(site.root / "one").metrics.read_text().splitlines()]
    losses = {record["step"]: record["train/loss"] for record in records if "train/loss" in record}
    with site.visit(browser) as visitor:
        page = visitor.open("/runs/one")
        chart = page.locator('figure[data-key="train/loss"]')
        chart.locator("summary").click()
        cells = chart.locator("tbody td").all_inner_texts()
        lowest = min(losses, key=lambda step: losses[step])
        assert cells == [
            repr(losses[max(losses)]),
            f"step {max(losses)}",
            repr(losses[lowest]),
            f"step {lowest}",
            str(len(losses)),
        ]
        page.get_by_label("Smoothing").fill("0.6")
        smoothed = page.evaluate("points.smooth([1, 2, null, 4], 0.5)")
        assert smoothed == [1.0, pytest.approx(5 / 3), None, pytest.approx((0.125 * 1 + 0.25 * 2 + 0.5 * 4) / 0.875)]


def test_a_long_run_shows_its_spikes_and_zooms_to_its_records(site: Served, browser: Browser) -> None:
    run = RunDirectory(shutil.copytree(site.root / "two", site.root / "long"))
    _write_long(run, 1, NUM_LONG)
    with site.visit(browser) as visitor:
        page = visitor.open("/runs/long")
        chart = page.locator('figure[data-key="train/loss"]')
        chart.locator(".main-svg").first.wait_for()
        coarse = _drawn(chart)
        assert len(coarse["x"]) <= 1000
        assert (coarse["highest"][0], coarse["lowest"][-1]) == (SPIKES[1], SPIKES[NUM_LONG])
        low, high = coarse["view"]
        assert low < SPIKES[NUM_LONG] < SPIKES[1] < high, "both ends are in the first view"

        _zoom(page, chart, 100_000, 100_400)
        fine = _drawn(chart)
        assert fine["x"] == list(range(100_000, 100_401))
        assert fine["y"] == [_loss(step) for step in fine["x"]], "exact"
        with page.expect_response(lambda answer: "/metrics?" in answer.url):
            _write_long(run, NUM_LONG + 1, NUM_LONG + 50)
        page.wait_for_timeout(500)
        assert _drawn(chart)["x"] == fine["x"], "it stays where it was zoomed to"
        chart.get_by_role("button", name="Show all").click()
        expect(chart.locator(".reading")).to_contain_text(f"to {NUM_LONG + 50}; lowest {SPIKES[NUM_LONG]:g} at")


def _loss(step: int) -> float:
    return SPIKES.get(step, round(2 + (step * 7919 % 1000) / 1000, 3))


def _write_long(run: RunDirectory, first: int, last: int) -> None:
    with run.metrics.open("w" if first == 1 else "a") as file:
        for step in range(first, last + 1):
            file.write(
                f'{{"step": {step}, "epoch": {step / 1000}, "time": {1.7e9 + step}, "train/loss": {_loss(step)}}}\n'
            )


def _drawn(chart: Locator) -> dict[str, Any]:
    """The points that plotly has drawn of a chart with one curve, and the part of the y axis that it shows."""
    found: dict[str, Any] = chart.locator(".plot").evaluate(
        """plot => ({x: [...plot.data.at(-1).x], y: [...plot.data.at(-1).y], view: plot._fullLayout.yaxis.range,
                     lowest: [...plot.data[0].y], highest: [...plot.data.at(-2)?.y ?? []]})"""
    )
    return found


def _zoom(page: Page, chart: Locator, first: int, last: int) -> None:
    with page.expect_response(lambda answer: f"first_step={first}&last_step={last}" in answer.url):
        chart.locator(".plot").evaluate(
            "(plot, [first, last]) => Plotly.relayout(plot, {'xaxis.range[0]': first, 'xaxis.range[1]': last})",
            [first, last],
        )
    page.wait_for_timeout(300)


def _submit(visitor: Visitor, changes: dict[str, str]) -> Page:
    page = visitor.open("/submit")
    for number, (key, value) in enumerate(changes.items(), start=1):
        page.get_by_label(f"Key of change {number}").fill(key)
        page.get_by_label(f"Value of change {number}").fill(value)
    page.get_by_role("button", name="Submit", exact=True).click()
    page.wait_for_url("**/runs/*")
    return page


def _wait_for_more(page: Page, place: Locator) -> None:
    """Wait until a text changes by itself."""
    before = place.inner_text()
    expect(place).not_to_have_text(before)
    assert page.evaluate("window.wasNotReloaded")


def _tab_to(page: Page, target: Locator) -> None:
    """Press Tab until an element has the focus."""
    for _ in range(150):
        page.keyboard.press("Tab")
        if target.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError(f"{target} cannot be reached by keyboard")
