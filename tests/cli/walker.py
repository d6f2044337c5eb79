"""Runs many `distrain` commands in forks of one process that has loaded what they need.

`python -m tests.cli.walker`: the commands come as JSON on standard input, what became of each goes to standard output.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

LIMIT_S = 100


@dataclass(frozen=True)
class Walked:
    """A command, its exit code and what it printed."""

    arguments: list[str]
    code: int
    out: str
    err: str


def walk(
    commands: list[list[str]],
    *,
    cwd: Path,
    under: list[str] | None = None,
    closed: list[int] | None = None,
    torch: bool = True,
) -> list[Walked]:
    """Run the commands in the folder `cwd` as children of the program `under`, with the descriptors `closed`.

    Without `torch`, a command that needs it loads it by itself.
    """
    done = subprocess.run(
        [*(under or []), sys.executable, "-m", "tests.cli.walker"],
        input=json.dumps({"commands": commands, "cwd": str(cwd), "closed": closed or [], "torch": torch}),
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [Walked(**found) for found in json.loads(done.stdout)]


def _run(arguments: list[str], cwd: str, closed: list[int], files: list[Path]) -> None:
    os.chdir(cwd)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    for descriptor in closed:
        os.close(descriptor)
    sys.argv = ["distrain", *arguments]
    sys.stdin, sys.stdout, sys.stderr = (
        None if descriptor in closed else os.fdopen(descriptor, mode, closefd=False)
        for descriptor, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    from distrain.cli import main

    main()


def _walk_one(arguments: list[str], cwd: str, closed: list[int]) -> Walked:
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("out", "err")]
        for file in files:
            file.touch()
        if (pid := os.fork()) == 0:
            code = 99
            try:
                _run(arguments, cwd, closed, files)
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 0
            except BaseException:  # noqa: BLE001 - what Python would print of it
                import traceback

                with files[1].open("a") as err:
                    traceback.print_exc(file=err)
            finally:
                for stream in (sys.stdout, sys.stderr):
                    if stream is not None:
                        stream.flush()
                os._exit(code)
        deadline = time.monotonic() + LIMIT_S
        while True:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                break
            if time.monotonic() > deadline:
                os.kill(pid, 9)
            time.sleep(0.01)
        output, errors = (file.read_text(errors="backslashreplace") for file in files)
    return Walked(arguments, os.waitstatus_to_exitcode(status), output, errors)


def main() -> None:
    """Run what standard input asks for."""
    order = json.load(sys.stdin)
    from distrain.cli import app  # noqa: F401 - loaded once for all
    from distrain.preload import preload

    if order["torch"]:
        preload()
    found = [_walk_one(arguments, order["cwd"], order["closed"]) for arguments in order["commands"]]
    json.dump([vars(walked) for walked in found], sys.stdout)


if __name__ == "__main__":
    main()
