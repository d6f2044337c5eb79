"""Fixtures that tests of several rooms share."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli_runner import Launch, begin_fit

# Tests run side by side: a thread of OpenMP that spins while it waits for the others keeps the processor from them.
# The bits stay the same. Read when torch is first imported, here or in the processes that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Tests run more processes at a time than this machine has cores; those of leases name a folder of their own.
os.environ.setdefault("DISTRAIN_LOCK_DIR", "")

# Under nohup, or as a job of a shell script, these are ignored, which programs that tests start would inherit.
for number, handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the folders whose tests take longest, so that no worker is left alone with them at the end."""
    items.sort(key=lambda item: not {"slurm", "e2e"} & set(item.path.parts))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where torch sees none."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder with cifar10/ (train, test) and hymenoptera/ (train, val), both image folders of real photographs."""
    folder = os.environ.get("DISTRAIN_TEST_DATA")
    if folder is None:
        pytest.skip("needs real images: DISTRAIN_TEST_DATA names the folder with cifar10/ and hymenoptera/")
    return Path(folder)


@pytest.fixture
def launch() -> Iterator[Launch]:
    """Begins trainings that are killed when the test is over, if they are still there."""
    begun: list[subprocess.Popen[str]] = []

    def begin(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        begun.append(begin_fit(*arguments, cwd=cwd, env=env))
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.wait()
