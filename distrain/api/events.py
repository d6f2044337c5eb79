"""Calls a function with what happens to a run, as read from its directory: in the process that started or opened it."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from distrain.errors import RunError
from distrain.messages import print_note, type_and_first_line
from distrain.runs import checkpoints
from distrain.runs.checkpoints.paths import step_of
from distrain.runs.directory import RunDirectory
from distrain.system.files import NotRegularError, open_regular, read_readable

EventKind = Literal["state", "record", "evaluation", "checkpoint"]
_EVERY_S = 0.5


@dataclass(frozen=True)
class RunEvent:
    """What happened: a new state of the run, a record of its metrics, one with an evaluation, or a new checkpoint."""

    kind: EventKind
    step: int
    state: str  # of status.json
    metrics: Mapping[str, float] = field(default_factory=dict)  # of the record
    checkpoint: Path | None = None


class RunWatch:
    """Reads what is new in a run directory at each `poll`, and calls `on_event` with it, in the order of the steps.

    What was there before is not reported. A function that raises is reported once, and not called again.
    """

    def __init__(self, run: RunDirectory, on_event: Callable[[RunEvent], object]) -> None:
        self._run = run
        self._on_event: Callable[[RunEvent], object] | None = on_event
        self._state: str | None = None
        self._position = 0  # in metrics.jsonl
        self._step = 0  # of the newest record
        self._checkpoints: set[Path] = set()
        for _ in self._read():
            pass
        self._turn = threading.Lock()

    def poll(self) -> None:
        """Report what is new."""
        with self._turn, suppress(RunError, OSError):
            for event in self._read():
                self._send(event)

    def start(self, is_over: Callable[[], bool]) -> None:
        """Poll in a thread until the run `is_over`."""

        def watch() -> None:
            while not is_over():
                self.poll()
                threading.Event().wait(_EVERY_S)
            self.poll()

        threading.Thread(target=watch, name="distrain-on-event", daemon=True).start()

    def _send(self, event: RunEvent) -> None:
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception as error:  # noqa: BLE001 - it is the user's function, and must not end the wait for the run
            self._on_event = None
            print_note(f"on_event is not called again: it has raised {type_and_first_line(error)}")

    def _read(self) -> Iterator[RunEvent]:
        state = self._run.read_status().state
        step = self._step
        for record in self._read_records():
            step = int(record["step"])
            metrics = {name: value for name, value in record.items() if "/" in name}
            yield RunEvent("record", step, state, metrics)
            if any(name.startswith("val/") for name in metrics):
                yield RunEvent("evaluation", step, state, metrics)
        for path in checkpoints.committed(self._run.checkpoints):
            if path not in self._checkpoints:
                self._checkpoints.add(path)
                yield RunEvent("checkpoint", step_of(path), state, checkpoint=path)
        if state != self._state:
            self._state = state
            yield RunEvent("state", self._run.read_status().step, state)

    def _read_records(self) -> list[dict[str, Any]]:
        """Return the records that are new: a resumed run repeats steps, which are not."""
        try:
            with open_regular(self._run.metrics) as file:
                if file.seek(0, 2) < self._position:
                    self._position = 0
                file.seek(self._position)
                text = file.read()
        except (OSError, NotRegularError):
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._position += len(whole)
        records = read_readable(whole.decode(errors="replace").splitlines(), json.loads)
        found = [record for record in records if isinstance(record, dict) and record.get("step", 0) > self._step]
        self._step = max([self._step, *(int(record["step"]) for record in found)])
        return found
