"""Formats the values of runs, for tables of the command line and of the web page."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from distrain.config.metrics import format_value, is_number
from distrain.system.display import duration


def format_key(key: str, value: Any) -> str:
    """Return the value of a key of `Overview.find` for display, `-` for None."""
    metric = key.rpartition(".")[2].removeprefix("val/").partition("/")[0]
    if value is None or value == []:
        return "-"
    if key == "start":
        return time.strftime("%F %T", time.localtime(value))
    if key in {"time", "train_seconds", "eta_s"}:
        return duration(value)
    if key == "loss" or (is_number(metric) and "val/" in key):
        return format_value(metric, {f"val/{metric}": value})
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(map(str, value)) if isinstance(value, list) and key in {"tag", "tags"} else show_value(value)


def format_rows(rows: Mapping[str, Sequence[Any]]) -> dict[str, list[str]]:
    """Return rows of values by key, one for each run, for display."""
    return {key: [format_key(key, value) for value in row] for key, row in rows.items()}


def show_value(value: Any) -> str:
    """Return a value of a recipe as text that reads back as the same value."""
    if isinstance(value, str):
        return value
    return repr(value) if type(value) in {int, float} else json.dumps(value, ensure_ascii=False, default=str)
