"""No damaged file crashes the process that reads it, hangs it, or fills its memory."""

import io
import os
import random
import resource
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distrain.data.packing.encode import store_file
from distrain.data.packing.format import Form
from distrain.data.sources import decoders
from distrain.data.sources.decoders import to_rgb
from distrain.data.sources.files import read_image
from distrain.errors import DataError
from tests.data.mutants import PICTURES, mutant
from tests.forks import server

CPU_S = 2  # of a mutant, by the time it computes: a busy machine makes none of them a hang
BLOCKED_S = 120  # without a word from a process that does not compute either
CPU_S_OF_A_PIXEL = 20e-9  # what its head says that it has, of which no more than 179 million are read
MAX_BYTES = 2**31
LARGE = 2**24  # values of an image that is not compared: packing it takes longer than reading it
FORMS = [Form(format="jpeg", size=8, square=True, quality=80), Form(format="jpeg", size=None, square=False, quality=80)]

Finding = tuple[int, str]  # the seed of a mutant, and what became of it


def fuzz(form: str, seeds: Iterable[int], folder: Path, *, has_torchcodec: bool) -> tuple[Counter[str], list[Finding]]:
    """Read mutants in processes of their own, many in each; returns how many ended how, and those that did wrong."""
    counts, wrong, left = Counter[str](), list[Finding](), list(seeds)
    while left:
        ours, theirs = server().Pipe(duplex=False)
        process = server().Process(target=_read_all, args=(form, left, folder, has_torchcodec, theirs))
        process.start()
        theirs.close()
        current = None
        try:
            while ours.poll(BLOCKED_S):
                current, word = ours.recv()
                if word != "begun":
                    counts[word.partition(":")[0]] += 1
                if word.startswith("wrong"):
                    wrong.append((current, word))
            process.kill()
            end = "blocked"
        except EOFError:
            process.join()
            end = "" if process.exitcode == 0 else f"exit code {process.exitcode}"
        process.join()
        if not end:
            break
        assert current is not None, f"the process ended with {end} before the first mutant"
        wrong.append((current, end))
        assert len(wrong) < 20, wrong
        left = [seed for seed in left if seed > current]
    return counts, wrong


def _read_all(form: str, seeds: list[int], folder: Path, has_torchcodec: bool, pipe: Connection) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff and Pillow tell their doubts
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not has_torchcodec:
        decoders.png_decoder = lambda: None  # type: ignore[assignment]
    file = folder / f"{os.getpid()}.{form}"
    for kind in PICTURES:  # loads what decoders need before the limit
        file.write_bytes(PICTURES[kind](random.Random(0)))
        read_image(str(file))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MAX_BYTES, used + MAX_BYTES))
    for seed in seeds:
        content = mutant(form, seed)
        file.write_bytes(content)
        pipe.send((seed, "begun"))
        pipe.send((seed, _read(file, content)))


def _read(file: Path, content: bytes) -> str:
    """Read a file in each way that distrain has; returns `taken`, `refused`, or `wrong` with the reason."""
    try:
        with _in_time(content):
            small = read_image(str(file), decode_size=4)
        with _in_time(content):
            image = read_image(str(file))
        for form in FORMS if image.numel() < LARGE else ():
            with _in_time(content):
                store_file(str(file), form, expected_bytes=len(content))
    except DataError as error:
        words = str(error)
        is_told = words.startswith(f"image {file} ") and "\n" not in words and "memory" not in words
        return "refused" if is_told else f"wrong: {words}"
    except BaseException as error:  # noqa: BLE001 - that nothing else is raised is what is tested
        return f"wrong: {type(error).__name__} {error}"
    if small.dtype != torch.uint8 or len(small) != 3 or small.numel() > image.numel():
        return f"wrong: {small.dtype} {list(small.shape)} from {list(image.shape)}"
    if image.numel() >= LARGE:
        return "taken"
    try:
        with Image.open(io.BytesIO(content)) as opened:
            expected = np.array(to_rgb(opened))
    except Exception as error:  # noqa: BLE001 - whatever Pillow raises
        return f"taken alone: {error}"
    pixels = image.permute(1, 2, 0).numpy()
    is_near = pixels.shape == expected.shape and int(np.abs(pixels.astype(int) - expected).max()) <= 1
    return "taken" if is_near else "wrong: other pixels than Pillow's"


@contextmanager
def _in_time(content: bytes) -> Iterator[None]:
    """End the process by SIGPROF where the block computes for too long; a large image may take longer."""
    try:
        with Image.open(io.BytesIO(content[:4096])) as image:
            claimed = image.width * image.height
    except Exception:  # noqa: BLE001 - whatever Pillow raises
        claimed = 0
    signal.setitimer(signal.ITIMER_PROF, CPU_S + CPU_S_OF_A_PIXEL * claimed)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)


TORCHCODEC = pytest.mark.skipif(decoders.png_decoder() is None, reason="torchcodec 0.17 or newer is not installed")
WAYS = [*((form, False) for form in PICTURES), pytest.param("png", True, marks=TORCHCODEC)]


@pytest.mark.parametrize(("form", "has_torchcodec"), WAYS)
def test_damaged_file_is_read_or_refused_and_nothing_else(form: str, has_torchcodec: bool, tmp_path: Path) -> None:
    counts, wrong = fuzz(form, range(500), tmp_path, has_torchcodec=has_torchcodec)
    assert not wrong
    assert counts["taken"] > 15
    assert counts["refused"] > 50


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize(("form", "has_torchcodec"), WAYS)
def test_20000_damaged_files_are_read_or_refused(form: str, has_torchcodec: bool, tmp_path: Path) -> None:
    counts, wrong = fuzz(form, range(1_000, 21_000), tmp_path, has_torchcodec=has_torchcodec)
    print(form, dict(counts))
    assert not wrong
    assert sum(counts.values()) == 20_000
