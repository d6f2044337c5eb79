"""A training ends in the same bits whichever way its images are read."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli_runner import QUIET, command, distrain, fit, status


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for name in ("ants", "bees"):
            folder = tmp_path / "photographs" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 255, (40 + number, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return tmp_path / "photographs"


@pytest.mark.slow
def test_training_ends_in_the_same_bits_with_threads_processes_and_neither(tmp_path: Path, photographs: Path) -> None:
    arguments = [
        "cifar10",
        f"--data={photographs}",
        "--set=data.source=imagefolder",
        "--set=data.batch_size=6",
        "--set=train.micro_batch_size=3",
        "--set=train.max_steps=10",
        "--set=augment.train=[RandomResizedCrop: {size: 32}, RandomHorizontalFlip, Cutout: {size: 8}]",
        "--set=augment.eval=[Resize: {size: 36}, CenterCrop: {size: 32}]",
    ]
    ways = {
        "here": ["--set=data.num_workers=0"],
        "threads": ["--set=data.loader=threads"],
        "processes": ["--set=data.loader=processes"],
    }
    digests = set()
    for name, way in ways.items():
        fit(*arguments, *way, f"--run={name}", cwd=tmp_path)
        digests.add(status(tmp_path / name)["state_digest"])
    assert len(digests) == 1


@pytest.mark.slow
def test_training_ends_in_the_same_bits_with_held_images_and_with_files(tmp_path: Path, photographs: Path) -> None:
    for number, path in enumerate(sorted(photographs.rglob("*.jpg"))):
        Image.new("RGB", (32, 32), (number, 0, 255 - number)).save(path)
    arguments = ["cifar10", f"--data={photographs}", "--set=data.batch_size=8", "--set=train.epochs=3"]
    (photographs / "val").rename(photographs / "test")
    done = fit(*arguments, "--run=held", cwd=tmp_path)
    assert "24 images of train are cached in memory" in done.out + done.err
    fit(*arguments, "--set=data.cache=never", "--run=files", cwd=tmp_path)
    assert status(tmp_path / "held")["state_digest"] == status(tmp_path / "files")["state_digest"]


DEADLY = """
import os, signal
from pathlib import Path
import torch

class Images:
    classes = ["a", "b"]
    def __init__(self, split):
        self.split = split
    def __len__(self):
        return 64
    def __getitem__(self, index):
        if index == 40 and Path(f"{self.split}-kills").exists():
            os.kill(os.getpid(), signal.SIGSEGV)
        return torch.full((1, 8, 8), index, dtype=torch.uint8), index % 2

def images(split, path):
    return Images(split)
"""


def test_sample_that_kills_its_reader_is_named_by_training_and_evaluation(tmp_path: Path) -> None:
    (tmp_path / "deadly.py").write_text(DEADLY)
    arguments = ["digits", "--set=data.source=deadly:images", "--set=data.num_workers=1", "--set=train.epochs=1"]
    fit(*arguments, "--run=whole", cwd=tmp_path)
    words = r"loader process \d+ was killed by SIGSEGV while it read sample 40 of deadly:images"
    (tmp_path / "val-kills").touch()
    done = distrain("eval", "whole", cwd=tmp_path)
    assert done.code == 1
    assert re.search(words, done.err)
    assert "Traceback" not in done.err
    (tmp_path / "train-kills").touch()
    done = fit(*arguments, "--run=dead", cwd=tmp_path, code=1)
    assert re.search(words, done.out)
    assert re.search(words, (tmp_path / "dead" / "errors" / "rank-0.json").read_text())


@pytest.mark.slow
def test_loader_processes_need_no_shared_memory_of_the_machine(tmp_path: Path, photographs: Path) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs a mount namespace of its own")
    arguments = command(
        "fit",
        "cifar10",
        f"--data={photographs}",
        "--set=data.source=imagefolder",
        "--set=data.num_workers=2",
        "--set=data.batch_size=8",  # 1.5 MiB
        "--set=train.max_steps=2",
        "--set=augment.train=[RandomResizedCrop: {size: 256}]",
        "--set=augment.eval=[Resize: {size: [256, 256]}]",
        *QUIET,
    )
    mounted = 'mount -t tmpfs -o size=1m distrain-test /dev/shm && exec "$@"'
    unshared = ["unshare", "-m", "sh", "-c", mounted, "sh", *arguments]
    done = subprocess.run(unshared, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip("a tmpfs cannot be mounted here")
    assert done.returncode == 0, done.stderr
    assert "finished" in done.stdout
