"""A request that does not fit the interface is refused with a sentence that names what is wrong in it."""

from pathlib import Path

import pytest

from tests.service.web.sites import client_of

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("body", "headers", "sentence"),
    [
        ("", {}, "the request has no body; send a JSON object"),
        ('{"recipe":', JSON, "the body is not valid JSON: Expecting value at character 10"),
        ('{"recipe": "', JSON, "the body is not valid JSON: Unterminated string starting at character 11"),
        ("recipe=digits", {}, "the body is not a JSON object; send one, with `Content-Type: application/json`"),
        ("[1]", JSON, "the body is not a JSON object; send one, with `Content-Type: application/json`"),
        ("{}", JSON, "give either recipe or run"),
        ('{"sett": {}}', JSON, "a request like this has no key sett; /docs lists its keys"),
        ('{"recipe": "digits", "priority": "x"}', JSON, "priority=x: must be a whole number"),
        ('{"recipe": "digits", "devices": {"kind": "tpu"}}', JSON, "devices.kind=tpu: must be gpu or cpu"),
        ('{"recipe": "digits", "devices": {"kind": "cpu", "count": 0}}', JSON, "devices.count=0: must be at least 1"),
        ('{"recipe": "digits", "after": [""]}', JSON, 'after.0="": must be text no shorter than 1'),
        ('{"recipe": "digits", "set": 3}', JSON, "set=3: must be a mapping, such as {key: value}"),
    ],
)
def test_body_that_is_not_valid_is_explained(tmp_path: Path, body: str, headers: dict[str, str], sentence: str) -> None:
    answer = client_of(tmp_path / "runs").post("/api/v1/runs", content=body, headers=headers)
    assert (answer.status_code, answer.json()["detail"]) == (422, sentence)


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("runs?limit=5000", "limit=5000: must be at most 1000"),
        ("runs?limit=0&offset=x", "limit=0: must be at least 1; offset=x: must be a whole number"),
        ("compare", "runs is missing"),
    ],
)
def test_query_that_is_not_valid_is_explained(tmp_path: Path, query: str, sentence: str) -> None:
    answer = client_of(tmp_path / "runs").get(f"/api/v1/{query}")
    assert (answer.status_code, answer.json()["detail"]) == (422, sentence)
