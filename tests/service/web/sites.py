"""Folders of runs to show, and clients of the application without a server."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from distrain.config.profile import LaunchOptions
from distrain.runs.directory import RunDirectory
from distrain.service.queue import QueueOptions, resolve, submit
from distrain.service.web.app import create_app
from distrain.service.web.site import Site
from tests.cli_runner import fit, wait_until

ON_ONE_CPU = LaunchOptions(device="cpu", processes=1)


def client_of(root: Path, **more: Any) -> TestClient:
    """A client of the runs in a folder; an error inside is an answer, as it is on a server."""
    return TestClient(create_app(Site(root=root, slots=2, **more)), raise_server_exceptions=False)


def train(folder: Path, name: str, *changes: str) -> RunDirectory:
    """Train a few steps in `folder/runs/name`."""
    fit(f"--run=runs/{name}", "--set=train.max_steps=5", "--device=cpu", *changes, cwd=folder)
    return RunDirectory(folder / "runs" / name)


def put(root: Path, **more: Any) -> RunDirectory:
    """Queue a run."""
    wanted = QueueOptions(options=ON_ONE_CPU, root=root, **more)
    found = resolve(references=["digits"], tasks=[], overrides=[], data=None, run=None, options=wanted)
    submit(found, is_snapshot=False, extras=[])
    return found[0].run


def make_run(root: Path, name: str = "one", status: str = "{}") -> RunDirectory:
    """Write the least that is a run."""
    run = RunDirectory(root / name)
    run.logs.mkdir(parents=True)
    run.recipe.write_text("name: x\n")
    run.status.write_text(status)
    return run


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Serve an application on a port of this machine; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_until(lambda: server.started, "the start of the server")
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
