"""distrain trains image models from one recipe, anywhere, and loses no work.

    import distrain

    run = distrain.fit("cifar10", data="photos", set={"train.epochs": 5}, gpus=2)
    run.metrics().to_pandas()

Its names are loaded when they are first used, so that importing it takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distrain.api.commands import run_command
    from distrain.api.events import RunEvent
    from distrain.api.lists import RunComparison, compare_runs, list_runs, open_run
    from distrain.api.metrics import Metrics
    from distrain.api.predictions import Predictions
    from distrain.api.run import Run
    from distrain.api.start import fit, load_recipe, submit_run
    from distrain.service.sweeps.results import SweepResult
    from distrain.service.sweeps.run import run_sweep
    from distrain.training.hooks.hook import Hook

__all__ = [
    "Hook",
    "Metrics",
    "Predictions",
    "Run",
    "RunComparison",
    "RunEvent",
    "SweepResult",
    "compare_runs",
    "fit",
    "list_runs",
    "load_recipe",
    "open_run",
    "run_command",
    "run_sweep",
    "submit_run",
]
_MODULES = {
    "Hook": "training.hooks.hook",
    "Metrics": "api.metrics",
    "Predictions": "api.predictions",
    "Run": "api.run",
    "RunComparison": "api.lists",
    "RunEvent": "api.events",
    "SweepResult": "service.sweeps.results",
    "compare_runs": "api.lists",
    "fit": "api.start",
    "list_runs": "api.lists",
    "load_recipe": "api.start",
    "open_run": "api.lists",
    "run_command": "api.commands",
    "run_sweep": "service.sweeps.run",
    "submit_run": "api.start",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        if name == "errors":  # to catch its exceptions without another import
            return import_module("distrain.errors")
        raise AttributeError(f"module 'distrain' has no attribute {name!r}")
    found = getattr(import_module(f"distrain.{_MODULES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
