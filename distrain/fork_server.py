"""Runs torchrun with ranks forked from a process that has imported torch: `python -u -m distrain.fork_server`.

Importing torch takes seconds, and longer for many ranks at once from one disk. Here one process imports it, and runs
torchrun in forks of itself, which forks the ranks: the next attempt of a run starts at once. The arguments are those of
torchrun for `-m distrain.worker RUN_DIR`; with `--serve FD` they come over that connection, attempt after attempt.

This is not `multiprocessing`'s forkserver, which has the environment, standard error and process group of the program
that starts it. torch would be imported before the plan's OMP_NUM_THREADS is set, which it reads only then, its output
would miss the launcher's log, and Ctrl-C on the terminal would be sent to the ranks as well.
"""

import logging
import os
import signal
import sys
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from distrain.launchers.exit_reports import END_LINE
from distrain.preload import preload
from distrain.system.process import children, die_with_parent, hold_signals

_SIGNALS = "--signals-to-handle=SIGTERM,SIGINT,SIGQUIT"  # not SIGHUP: under `nohup`, ranks must ignore it too
_WORKER = ("-m", "distrain.worker")  # with the run directory after it, this ends each torchrun command of distrain


def main() -> None:
    """Run torchrun once, or once for each request of a connection."""
    hold_signals()
    die_with_parent()
    if sys.argv[1] == "--serve":
        _serve(Connection(int(sys.argv[2])))
    else:
        _preload()
        run_torchrun(sys.argv[1:])


def run_torchrun(arguments: list[str]) -> None:
    """Run torchrun in this process with the `arguments` of its command, which end in `-m distrain.worker RUN_DIR`.

    Raises `ChildFailedError` where a rank fails.
    """
    from torch.distributed.run import main as torchrun

    log = logging.getLogger("torch.distributed.elastic")
    log.addHandler(logging.StreamHandler())
    log.propagate = False  # torch's handler imports the compiler, which takes seconds, before it prints a traceback
    if _may_fork():
        _print_exits()
        arguments = _forking(arguments)
    torchrun([_SIGNALS, *arguments])


def _serve(requests: "Connection[tuple[str, int], list[str]]") -> None:
    """Run torchrun in a fork for each request; send the pid of the fork and later its exit code."""
    server = os.getpid()
    os.set_inheritable(requests.fileno(), False)  # noqa: FBT003 - the parameter is positional only
    with requests, suppress(EOFError):  # the launcher has ended
        while True:
            arguments = requests.recv()
            _preload()
            pid = os.fork()
            if pid == 0:
                requests.close()
                die_with_parent(server)
                _run_and_exit(arguments)
            requests.send(("pid", pid))
            _, status = os.waitpid(pid, 0)
            requests.send(("code", os.waitstatus_to_exitcode(status)))


def _run_and_exit(arguments: list[str]) -> None:
    """Run torchrun and end this process at once, without the exit handlers of torch."""
    code = 1
    try:
        run_torchrun(arguments)
        code = 0
    except BaseException:  # noqa: BLE001 - the process ends after any exception
        traceback.print_exc()
    finally:
        os._exit(code)


def _preload() -> None:
    """Import what torchrun and its ranks need."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # forks of a process that has initialised CUDA fail
    preload()
    import torch.distributed.run  # noqa: F401


def _print_exits() -> None:
    """Print on standard error how each rank ends, when it ends: torchrun reports only the first one that it finds.

    Where one rank is killed, another may lose its connection and be found first.
    """
    known: set[int] = set()

    def print_exits(*_: object) -> None:
        # An exception in a signal handler would end torchrun at any point. It is raised where a thread of this process
        # has just ended, so that the children cannot be listed, or where the disk with the log is full.
        with suppress(Exception):
            for pid in children():
                with suppress(ChildProcessError):
                    end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # torchrun reaps it
                    if end is not None and pid not in known:
                        known.add(pid)
                        code = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
                        print(END_LINE.format(code=code, pid=pid), file=sys.stderr, flush=True)

    signal.signal(signal.SIGCHLD, print_exits)
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGCHLD, signal.SIG_DFL))


def _may_fork() -> bool:
    """Whether forks of this process can use the GPUs: they cannot once this process has initialised CUDA.

    torchrun may do so when it chooses the NUMA nodes of the ranks; this is tried here.
    """
    import torch
    from torch.distributed.launcher.api import LaunchConfig

    if not torch.cuda.is_available():
        return sys.platform == "linux"
    LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=1)
    pid = os.fork()
    if pid == 0:
        os._exit(torch.cuda._is_in_bad_fork())
    return os.waitpid(pid, 0)[1] == 0


def _forking(arguments: list[str]) -> list[str]:
    """Return the arguments that make torchrun's agent fork the ranks instead of starting new programs."""
    *options, module, name, run = arguments
    assert (module, name) == _WORKER
    return [*options, "--start-method=fork", "--run-path", str(Path(__file__).with_name("worker.py")), run]


if __name__ == "__main__":
    main()
