"""torchrun, with ranks forked from a process that has loaded what they need: `python -u -m distrain.fork_server`.

torch takes seconds to load, the more so for many ranks at once from one disk. Here one process loads it, and runs
torchrun in forks of itself, which forks the ranks: the next attempt at a run begins at once. The arguments are those of
torchrun for `-m distrain.worker RUN_DIR`; with `--serve FD` they come over that connection, attempt after attempt.

Not `multiprocessing`'s forkserver: that has the environment, the standard error and the process group of the program
that begins it. torch would be loaded before a plan's OMP_NUM_THREADS is set, which it reads only then, what it prints
would miss the launcher's log, and the terminal's Ctrl-C would be sent to the ranks as well.
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

_SIGNALS = "--signals-to-handle=SIGTERM,SIGINT,SIGQUIT"  # not SIGHUP: where `nohup` has it ignored, ranks ignore it too
_WORKER = ("-m", "distrain.worker")  # and the run directory: the end of every torchrun command of distrain's


def main() -> None:
    """Run torchrun once, or for whoever is at the other end of a connection as often as it asks."""
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
    log.propagate = False  # torch's own handler loads its compiler, for seconds, before it prints a traceback
    if _may_fork():
        _note_ends()
        arguments = _forking(arguments)
    torchrun([_SIGNALS, *arguments])


def _serve(requests: "Connection[tuple[str, int], list[str]]") -> None:
    """Run torchrun in a fork for each request; the other end hears of its beginning and its end."""
    server = os.getpid()
    os.set_inheritable(requests.fileno(), False)  # noqa: FBT003 - it takes no name for it
    with requests, suppress(EOFError):  # the launcher has left
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
    """Run torchrun and end this process at once, without what a program that has loaded torch does at its end."""
    code = 1
    try:
        run_torchrun(arguments)
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, this process ends with it
        traceback.print_exc()
    finally:
        os._exit(code)


def _preload() -> None:
    """Load what torchrun and its ranks need."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # a fork of what has asked CUDA itself cannot use it
    preload()
    import torch.distributed.run  # noqa: F401


def _note_ends() -> None:
    """Write to standard error how ranks end, as they end: torchrun names the one that it finds first, and no other.

    Where one rank is killed, another one may lose the connection and be found first.
    """
    known: set[int] = set()

    def note(*_: object) -> None:
        # What a handler raises would end torchrun wherever it happens to be: a thread of this process has just ended,
        # and its children cannot be listed, or the disk with the log is full.
        with suppress(Exception):
            for pid in children():
                with suppress(ChildProcessError):
                    end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # it is left to torchrun
                    if end is not None and pid not in known:
                        known.add(pid)
                        code = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
                        print(END_LINE.format(code=code, pid=pid), file=sys.stderr, flush=True)

    signal.signal(signal.SIGCHLD, note)
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGCHLD, signal.SIG_DFL))


def _may_fork() -> bool:
    """Whether forks of this process can use the GPUs: not those of one that has asked CUDA itself for its devices.

    torchrun may do so where it chooses the ranks' NUMA nodes: that is tried here.
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
    """Return the arguments for ranks that are forks of torchrun's agent instead of programs of their own."""
    *options, module, name, run = arguments
    assert (module, name) == _WORKER
    return [*options, "--start-method=fork", "--run-path", str(Path(__file__).with_name("worker.py")), run]


if __name__ == "__main__":
    main()
