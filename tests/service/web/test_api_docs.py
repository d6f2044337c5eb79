"""The description of the interface is complete, and its page shows all of it without anything from outside."""

import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.service.web.pages import shown
from tests.service.web.sites import client_of

VOID = {"meta", "link", "input", "br", "img", "hr"}


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    return client_of(tmp_path)


def operations(document: Any) -> list[tuple[str, str, Any]]:
    return [(method, path, found) for path, methods in document["paths"].items() for method, found in methods.items()]


def test_every_operation_is_described_with_its_errors(client: TestClient) -> None:
    document = client.get("/api/v1/openapi.json").json()
    found = operations(document)
    ids = [operation["operationId"] for _, _, operation in found]
    assert len(set(ids)) == len(ids) > 12
    for method, path, operation in found:
        assert operation["summary"] and operation["description"] and operation["tags"], path
        answers = operation["responses"]
        assert {"400", "401", "403", "422", "429"} <= answers.keys(), path
        assert ("404" in answers) or "{name}" not in path
        for status, answer in answers.items():
            assert answer["description"], (path, status)
            if status >= "400":
                schema = answer["content"]["application/problem+json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Problem"}
        for parameter in operation.get("parameters", []):
            assert parameter["name"] == "name" or parameter.get("description"), (method, path, parameter)
    assert "HTTPValidationError" not in str(document)


class Structure(HTMLParser):
    """Collects what a page links to, and fails where elements are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        found = dict(attrs)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.links += [value for name, value in attrs if name in {"href", "src"} and value]
        self.inline += [name for name in found if name == "style" or name.startswith("on")]
        if tag == "script" and not found.get("src"):
            self.inline.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_shows_every_operation_and_needs_nothing_from_outside(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    structure = Structure()
    structure.feed(page.text)
    assert structure.open == [] and structure.inline == []
    assert len(set(structure.ids)) == len(structure.ids)
    assert all(link.startswith(("/", "#")) for link in structure.links)
    assert {link[1:] for link in structure.links if link.startswith("#")} <= set(structure.ids)
    for method, path, operation in operations(client.get("/api/v1/openapi.json").json()):
        assert operation["operationId"] in structure.ids
        assert f"{method.upper()} {path}" in page.text
    examples = re.findall(r"<pre[^>]*><code>(curl .*?)</code></pre>", page.text, re.DOTALL)
    assert len(examples) >= 14
    assert all(shlex.split(example.replace("&#34;", '"').replace("&#39;", "'"))[0] == "curl" for example in examples)


def test_served_interface_describes_its_login_too(tmp_path: Path) -> None:
    with shown(tmp_path / "runs") as page, page.with_token() as client:
        document = client.get("/api/v1/openapi.json").json()
        assert {"/api/v1/login", "/api/v1/logout"} <= document["paths"].keys()
        docs = client.get("/docs")
        assert docs.status_code == 200 and "POST /api/v1/login" in docs.text
        assert client.get("/metrics").status_code == 200
