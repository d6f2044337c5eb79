"""The examples in the docstrings of the interface run, as a user would type them, and so do those of its page."""

import doctest
import inspect
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

import distrain

QUIET = {"log.wandb": "disabled", "log.tensorboard": False}


def examples_of(value: Any) -> doctest.DocTest | None:
    """Return the examples in a docstring, to be run with the names that a user has."""
    found = doctest.DocTestFinder(recurse=False).find(value, value.__qualname__, globs={})
    return found[0] if found and found[0].examples else None


def test_examples_in_docstrings_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = distrain.fit("digits", set={"train.max_steps": 20, **QUIET}, device="cpu", progress=False)
    globs = {"distrain": distrain, "run": first, "Path": Path}
    methods = [value for value in vars(distrain.Run).values() if isinstance(value, FunctionType)]
    values: list[Any] = [
        distrain.fit,
        distrain.Run,
        *methods,
        distrain.open_run,
        distrain.list_runs,
        distrain.compare_runs,
    ]
    tested = []
    for value in [*values, distrain.load_recipe, distrain.run_command, distrain.submit_run]:
        examples = examples_of(value)
        if examples is None:
            continue
        examples.globs = globs  # `run` of one example is that of the next
        report: list[str] = []
        done = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(
            examples, out=report.append, clear_globs=False
        )
        assert done.failed == 0, "".join(report)
        tested.append(value.__name__)
    assert {"fit", "submit_run", "open_run", "list_runs", "compare_runs", "metrics", "evaluate", "predict"} <= set(
        tested
    )


def test_every_public_name_is_documented() -> None:
    for name in distrain.__all__:
        value = getattr(distrain, name)
        assert inspect.getdoc(value), name
        if inspect.isclass(value):
            public = [each for key, each in vars(value).items() if not key.startswith("_") and callable(each)]
            assert all(inspect.getdoc(each) for each in public), name
