"""A page that is cut off from its server, its run or its session says so; a note keeps its lines."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")

from playwright.sync_api import Browser, expect

from distrain.runs.labels import read_labels
from tests.service.web.browser import Visitor, chromium, find_free_port, find_violations, needs_chromium, served
from tests.service.web.sites import make_run

pytestmark = needs_chromium
expect.set_options(timeout=30_000)
FINISHED = '{"state": "finished", "attempts": []}'


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


def test_a_page_says_that_it_is_cut_off_until_it_is_connected_again(browser: Browser, tmp_path: Path) -> None:
    root, port = tmp_path / "runs", find_free_port()
    run = make_run(root, status=FINISHED)
    with served(root, port=port) as site:
        visit = site.visit(browser)
        visitor = visit.__enter__()
        page = visitor.open("/runs/one")
        notice = page.locator("#connection")
        expect(notice).to_be_hidden()
    expect(notice).to_contain_text("The connection to distrain serve is lost")
    assert find_violations(page) == []
    with served(root, port=port):
        expect(notice).to_be_hidden()
        run.remove()
        expect(notice).to_contain_text("it was deleted or moved")
        expect(page.get_by_role("heading", level=1)).to_have_text("one")  # what is shown stays
        _forgive(visitor)
        visit.__exit__(None, None, None)


@pytest.mark.slow
def test_a_session_that_is_ended_is_reported_by_every_page(browser: Browser, tmp_path: Path) -> None:
    make_run(tmp_path / "runs", status=FINISHED)
    with served(tmp_path / "runs") as site, site.visit(browser) as visitor:
        first, second = visitor.open("/runs/one"), visitor.open("/")
        second.get_by_role("button", name="Log out").click()
        second.wait_for_url("**/login*")
        (tmp_path / "runs" / "one" / "status.json").write_text(FINISHED.replace("finished", "stopped"))
        first.evaluate("live.request()")  # as any event makes it
        expect(first.locator("#connection")).to_contain_text("Your session has ended")
        assert first.context.cookies() == []
        _forgive(visitor)


@pytest.mark.slow
def test_a_note_of_several_lines_stays_when_tags_are_saved(browser: Browser, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", status=FINISHED)
    with served(tmp_path / "runs") as site, site.visit(browser) as visitor:
        page = visitor.open("/runs/one")
        page.get_by_role("textbox", name="Note").fill("first\nsecond")
        page.get_by_role("button", name="Save", exact=True).click()
        expect(page.locator("#announcement")).not_to_be_empty()
        page.reload()
        page.get_by_role("textbox", name="Tags").fill("a b")
        page.get_by_role("button", name="Save", exact=True).click()
        expect(page.locator("#announcement")).not_to_be_empty()
        labels = read_labels(run)
        assert (labels.note.split(os.linesep), sorted(labels.tags)) == (["first", "second"], ["a", "b"])


def _forgive(visitor: Visitor) -> None:
    """Forget that requests failed: it is what these tests are about."""
    visitor.faults[:] = [fault for fault in visitor.faults if "Failed to load resource" not in fault]
