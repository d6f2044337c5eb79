"""Forks of a server that has loaded torch: real processes, without the seconds that it takes to load.

Each process that runs tests has one server. Whatever is to be stopped, killed or watched is a program of its own.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from multiprocessing.context import ForkServerContext
from pathlib import Path

LOADED = [
    "torch._dynamo",
    "torchvision.transforms.v2",
    "distrain.checkpoint.shards",
    "distrain.training.trainer",
    "distrain.cli.app",
]


def server() -> ForkServerContext:
    """Return the context whose processes are forks of the server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*LOADED, __name__])
    return context


def run_module(module: str, arguments: tuple[str, ...], *, cwd: Path, timeout_s: float) -> tuple[int, str, str]:
    """Do what `python -m module arguments` does in the folder `cwd`; returns exit code, standard output and error.

    Raises `subprocess.TimeoutExpired` after `timeout_s` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "out"), Path(folder, "err")
        process = server().Process(target=_run, args=(module, arguments, cwd, dict(os.environ), files))
        process.start()
        process.join(timeout_s)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired([module, *arguments], timeout_s)
        out, err = (file.read_text() for file in files)
    assert process.exitcode is not None
    return process.exitcode, out, err


def _run(
    module: str, arguments: tuple[str, ...], cwd: Path, environment: dict[str, str], files: tuple[Path, ...]
) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115 - the process's own
    sys.path.insert(0, str(cwd))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
