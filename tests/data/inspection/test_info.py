"""Statistics and images of an image folder."""

import json
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from distrain.data.inspection.statistics import read_header
from tests.cli_runner import command, distrain, wait_until
from tests.data.inspection.factories import SIDE, make_clean_folder, tiles


@pytest.fixture
def folder(tmp_path: Path, real_images: Path) -> Path:
    return make_clean_folder(tmp_path / "photos", tiles(real_images / "hymenoptera" / "train", 24))


def test_statistics_are_those_of_the_pixels(folder: Path, tmp_path: Path) -> None:
    (folder / "val/ants/0.png").write_bytes(b"broken")
    (folder / "val/ants/._0.png").touch()
    (folder / "val/ants/up").symlink_to("..")
    report = json.loads(distrain("data", "info", str(folder), "--json", cwd=tmp_path).out)
    paths = sorted((folder / "train").rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths]) / 255  # [n, height, width, 3]
    assert report["mean"] == pytest.approx(pixels.mean(axis=(0, 1, 2)), abs=1e-4)
    assert report["std"] == pytest.approx(pixels.std(axis=(0, 1, 2)), abs=1e-4)
    assert (report["skipped"], report["links_not_followed"]) == (["val/ants/._0.png"], ["val/ants/up"])
    assert (report["sampled"], report["images"], report["unreadable"]) == (20, 24, 1)
    assert report["bytes"] == sum(path.stat().st_size for path in folder.rglob("[0-9]*.png"))
    assert report["sizes"]["most_common"] == {f"{SIDE}x{SIDE}": 23}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize(("orientation", "size"), [(1, (60, 40)), (3, (60, 40)), (6, (40, 60)), (8, (40, 60))])
def test_sizes_are_those_of_upright_images(
    tmp_path: Path, suffix: str, orientation: int, size: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (60, 40)).save(tmp_path / f"a.{suffix}", exif=exif)
    found = read_header(str(tmp_path / f"a.{suffix}"))
    assert (found.width, found.height) == size


def test_contact_sheet_shows_each_class_and_is_outside_the_data(folder: Path, tmp_path: Path) -> None:
    (folder / "train/.git").mkdir()
    before = sorted(folder.rglob("*"))
    done = distrain("data", "info", str(folder), "--per-class=3", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "photos-contact-sheet.png" in done.out
    assert "skipped     1 hidden or system files: train/.git/" in done.out
    assert sorted(folder.rglob("*")) == before
    with Image.open(tmp_path / "photos-contact-sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("L"))
    assert pixels.shape[1] > 3 * 96
    assert pixels.shape[0] > 2 * 96
    assert pixels.std() > 20  # photographs, not paper


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("photos/sheet.png", "in the data folder"),
        ("sheet.txt", ".png"),
        ("photo.png/sheet.png", "photo.png is not a folder"),
    ],
)
def test_sheet_that_cannot_be_written_is_refused(folder: Path, tmp_path: Path, out: str, words: str) -> None:
    (tmp_path / "photo.png").touch()
    done = distrain("data", "info", str(folder), f"--out={out}", cwd=tmp_path)
    assert done.code == 2
    assert words in done.err
    assert done.err.count("\n") == 1


def test_interrupt_prints_one_line_and_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "photos/train/cats").mkdir(parents=True)
    first = tmp_path / "photos/train/cats/0.png"
    Image.new("RGB", (12_000, 8_000)).save(first, compress_level=1)  # takes half a second to decode
    for number in range(1, 16):
        first.with_name(f"{number}.png").symlink_to(first)
    process = subprocess.Popen(
        command("data", "check", "photos", "--workers=2"),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # jobs may ignore it
    )
    below: list[int] = []

    def reads() -> bool:
        below[:] = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
        return len(below) == 2

    wait_until(reads, "reading")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "distrain: interrupted\n")
    assert not [pid for pid in below if os.path.exists(f"/proc/{pid}")]  # noqa: PTH110
