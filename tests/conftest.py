"""Fixtures that tests of several rooms share."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import Launch, begin_fit


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

    def begin(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
        begun.append(begin_fit(*arguments, cwd=cwd))
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.wait()
