"""Requests of all kinds, made by schemathesis from the description of the interface, against real folders of runs.

None ends in an error of distrain, every answer is as described, and nothing outside of the folder of the runs is read
or changed.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias
from unittest import SkipTest

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import (
    CheckFunction,
    content_type_conformance,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.schemas import BaseSchema

from distrain.runs.labels import TRASH
from distrain.service.web.app import create_app
from distrain.service.web.site import Site
from tests.service.web.sites import make_run, put

AnyCase: TypeAlias = Case[Any]

CANARY = "canary-7f3a91"
NAMES = ["one", "waits", "damaged"]
STREAM = "/api/v1/events"  # has no end: its parameters are those of other addresses
CHECKS: list[CheckFunction] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
ALL = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large, HealthCheck.large_base_example]

OPERATIONS = [
    (path, method)
    for path, methods in create_app(Site(root=Path("runs"), slots=1)).openapi()["paths"].items()
    for method in methods
    if path != STREAM
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Runs of several kinds, beside a file that no answer may have, to which links lead."""
    folder, before = tmp_path_factory.mktemp("fuzz"), Path.cwd()
    os.chdir(folder)
    (folder / "secret.yaml").write_text(f"name: {CANARY}\n")
    root = folder / "runs"
    one = make_run(root, "one", '{"state": "finished", "last": {"step": 3, "val/loss": NaN}}')
    one.log(0).write_bytes(b"line\n\xff\x00\n" * 100)
    one.metrics.write_text(
        '{"step": 1, "epoch": 0.1, "train/loss": 2.0}\n{"step": 2, "epoch": 0.2, "train/loss": NaN}\n'
    )
    (one.logs / "link.log").symlink_to(folder / "secret.yaml")
    put(root).path.rename(root / "waits")
    make_run(root, "damaged", "{")
    (root / "link").symlink_to(folder)
    (root / TRASH).mkdir()
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def description(folder: Path) -> BaseSchema:
    app = create_app(Site(root=folder / "runs", slots=1))
    return schemathesis.openapi.from_asgi("/api/v1/openapi.json", app)


def outside(folder: Path) -> dict[str, tuple[int, int]]:
    """What a change outside of the runs would change."""
    beside = [path for path in folder.iterdir() if path.name != "runs"]
    found = [folder, *beside, *(path for one in beside for path in one.rglob("*"))]
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in found}


def call(case: AnyCase, folder: Path) -> None:
    before = outside(folder)
    response = case.call()
    case.validate_response(response, checks=CHECKS)
    assert CANARY not in response.text
    assert outside(folder) == before


def with_real_names(case: AnyCase, number: int) -> AnyCase:
    """The same request for a run that exists, and for a recipe that does."""
    if "name" in case.path_parameters:
        case.path_parameters["name"] = NAMES[number % len(NAMES)]
    if case.path.endswith(("/logs", "/metrics")):
        case.query = {name: value for name, value in (case.query or {}).items() if name not in {"log", "rank", "keys"}}
    body: Any = case.body
    if isinstance(body, dict) and "recipe" in body and case.path == "/api/v1/runs":
        case.body = body | {"recipe": "digits", "run": None, "after": [], "time": None}
    return case


def attempt(description: BaseSchema, path: str, method: str, folder: Path, options: settings) -> None:
    """Send requests that are as described, and others that are not."""
    operation = description[path][method]

    def check(case: AnyCase) -> None:
        call(case, folder)
        call(with_real_names(case, len(str(case.query))), folder)

    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        with suppress(Unsatisfiable, SkipTest):  # an operation without parameters has no bad ones
            options(given(case=operation.as_strategy(generation_mode=mode))(check))()


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_requests_of_all_kinds_are_answered_as_described(
    description: BaseSchema, folder: Path, path: str, method: str
) -> None:
    options = settings(max_examples=10, derandomize=True, database=None, deadline=None, suppress_health_check=ALL)
    attempt(description, path, method, folder, options)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_many_more_requests_are_answered_as_described(
    description: BaseSchema, folder: Path, path: str, method: str
) -> None:
    options = settings(max_examples=100, database=None, deadline=None, suppress_health_check=ALL)
    attempt(description, path, method, folder, options)
