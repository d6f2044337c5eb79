"""Fixtures that tests of several rooms share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder with cifar10/ (train, test) and hymenoptera/ (train, val), both image folders of real photographs."""
    folder = os.environ.get("DISTRAIN_TEST_DATA")
    if folder is None:
        pytest.skip("needs real images: DISTRAIN_TEST_DATA names the folder with cifar10/ and hymenoptera/")
    return Path(folder)
