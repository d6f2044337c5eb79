"""A process is gone when all its threads have ended and its GPU memory is free again."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from distrain.launchers import supervisor
from distrain.runs.directory import RunDirectory
from distrain.system import nvml
from distrain.system.nvml import wait_for_release
from distrain.system.process import is_gone, kill_below, state_of
from tests.cli_runner import wait_until
from tests.fakes import gpu, use_nvml

# The main thread ends by itself, as it does when a process is killed whose other threads a driver still holds.
HEADLESS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(300,)).start()
ctypes.CDLL(None).syscall({exit}, 0)
"""
EXIT = {"x86_64": 60, "aarch64": 93}


@pytest.mark.skipif(platform.machine() not in EXIT, reason="the number of the system call is not known here")
def test_process_whose_main_thread_is_dead_is_not_gone_before_its_other_threads() -> None:
    code = HEADLESS.format(exit=EXIT[platform.machine()])
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"]
    )
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    wait_until(lambda: bool(children.read_text()), "a child")
    child = int(children.read_text().split()[0])
    wait_until(lambda: state_of(child) == psutil.STATUS_ZOMBIE, "the end of its main thread")
    assert not is_gone(child)
    assert kill_below(parent.pid) == {child}
    assert is_gone(child)
    assert parent.wait(10) == 0


def test_next_attempt_waits_until_the_driver_has_freed_the_memory_of_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_nvml(monkeypatch, gpu(0))
    processes = tmp_path / "processes"
    processes.write_text("7 11 12\n7 11\n7\n7")
    monkeypatch.setenv("FAKE_NVML_PROCESSES", str(processes))
    assert wait_for_release({11, 12}) == set()
    assert processes.read_text() == "7"  # it was asked three times


def test_memory_that_is_not_freed_is_reported_after_a_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_nvml(monkeypatch, gpu(0))
    processes = tmp_path / "processes"
    processes.write_text("11\n" * 100)
    monkeypatch.setenv("FAKE_NVML_PROCESSES", str(processes))
    monkeypatch.setattr(nvml, "_RELEASE_TIMEOUT_S", 0.3)
    told: list[str] = []
    supervisor._await_gpus({11, 12}, RunDirectory(tmp_path), told.append)
    assert told == ["the driver has not freed the GPU memory of process 11, which has ended; see nvidia-smi"]


def test_machine_without_nvml_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    use_nvml(monkeypatch, fault="Driver Not Loaded")
    began = time.monotonic()
    assert wait_for_release({os.getpid()}) == set()
    assert time.monotonic() - began < 10
