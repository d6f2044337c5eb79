"""The names of the package: quick to import, not hidden by a module, and each of them can be called."""

import subprocess
import sys
from pathlib import Path

import pytest

import distrain
from distrain.errors import DistrainError, RecipeError, RunError

# Run in a process of its own: what is imported stays.
_EVERYTHING = """
import importlib, pkgutil
import distrain
for module in pkgutil.walk_packages(distrain.__path__, "distrain."):
    if not module.name.endswith(".__main__"):
        importlib.import_module(module.name)
assert {name for name in distrain.__all__ if not callable(getattr(distrain, name))} == set()
assert distrain.list_runs() == []
calls = {
    "fit": lambda: distrain.fit("digits", set={"optimizer.rl": 1}),
    "submit_run": lambda: distrain.submit_run("digitz"),
    "load_recipe": lambda: distrain.load_recipe("digitz"),
    "run_command": lambda: distrain.run_command("bench", "digitz"),
    "open_run": lambda: distrain.open_run("last"),
    "compare_runs": lambda: distrain.compare_runs("last", "first"),
    "run_sweep": lambda: distrain.run_sweep("digits", params={"optimizer.lr": "log(1e-3"}),
}
for name, call in calls.items():
    try:
        call()
    except distrain.errors.UserError as error:
        print(name, error)
"""


def test_import_loads_nothing_heavy() -> None:
    code = (
        "import sys, time; begin = time.perf_counter(); import distrain; took = time.perf_counter() - begin\n"
        "print(took, [name for name in ('torch', 'numpy', 'pydantic', 'yaml') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    took, loaded = done.stdout.split(maxsplit=1)
    assert float(took) < 0.1
    assert loaded == "[]\n"


def test_interface_needs_no_torch() -> None:
    code = "import sys, distrain; distrain.fit, distrain.Run, distrain.list_runs; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_each_name_can_be_called_after_every_module_was_imported(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _EVERYTHING], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    sentences = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert "optimizer.rl" in sentences["fit"]
    assert "unknown recipe 'digitz'; did you mean digits?" in sentences["submit_run"]
    assert sentences["load_recipe"] == sentences["run_command"] == sentences["submit_run"]
    assert sentences["open_run"].startswith("there is no run 'last'")
    assert sentences["compare_runs"].startswith("there is no run 'last'")
    assert list(tmp_path.iterdir()) == []  # nothing was written


def test_names_are_listed_and_others_refused() -> None:
    assert set(distrain.__all__) <= set(dir(distrain))
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        _ = distrain.train
    assert distrain.errors.RunError is RunError
    assert issubclass(RecipeError, DistrainError)
