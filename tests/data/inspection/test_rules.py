"""Each fault that is planted in a clean image folder is found and named, and nothing else is reported."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from distrain.data.inspection.folders import list_folder
from distrain.data.inspection.image_table import probe_all
from distrain.data.inspection.rules import Finding, run_checks
from distrain.data.inspection.worker_pool import open_decode_pool
from distrain.errors import DataError
from tests.cli_runner import distrain
from tests.data.inspection.factories import make_clean_folder, tiles
from tests.data.tiffs import tiff

Found = tuple[str, str, list[tuple[str, ...]]]  # severity, kind, the paths of each item


@pytest.fixture(scope="module")
def pictures(real_images: Path) -> list[Image.Image]:
    return tiles(real_images / "hymenoptera" / "train", 40)


@pytest.fixture
def folder(tmp_path: Path, pictures: list[Image.Image]) -> Path:
    return make_clean_folder(tmp_path / "photos", pictures)


def check(folder: Path) -> list[Finding]:
    listing = list_folder(folder)
    with open_decode_pool(1) as readers:
        images, others = probe_all(readers, listing, advance=lambda: None)
    return run_checks(listing, images, others)


def told(findings: list[Finding]) -> list[Found]:
    return [(f.severity, f.kind, [item.paths for item in f.items]) for f in findings]


def photograph(folder: Path) -> Image.Image:
    """An image that is not in the folder: one of its images upside down."""
    with Image.open(folder / "train" / "ants" / "0.png") as image:
        return image.transpose(Image.Transpose.ROTATE_180)


def save(folder: Path, name: str, form: str, *, mode: str = "RGB") -> None:
    photograph(folder).convert(mode).save(folder / name, form)


def stretch(folder: Path, name: str, size: tuple[int, int]) -> None:
    photograph(folder).resize(size).save(folder / name)


def truncate(folder: Path) -> None:
    save(folder, "train/ants/cut.jpg", "JPEG")
    path = folder / "train/ants/cut.jpg"
    path.write_bytes(path.read_bytes()[:-100])


def turn(folder: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    photograph(folder).save(folder / "train/ants/turned.jpg", exif=exif)


def animate(folder: Path, name: str) -> None:
    first = photograph(folder)
    first.save(folder / name, "GIF", save_all=True, append_images=[first.transpose(Image.Transpose.TRANSPOSE)])


def save_deep(folder: Path) -> None:
    photograph(folder).convert("I").point(lambda value: value * 200).convert("I;16").save(
        folder / "train/ants/deep.png"
    )


def save_deep_colours(folder: Path) -> None:
    samples = np.random.default_rng(0).integers(0, 2**16, (64, 64, 3)).astype(np.uint16)
    (folder / "train/ants/deep.tif").write_bytes(tiff(samples))


def save_floats(folder: Path) -> None:
    (folder / "train/ants/floats.tif").write_bytes(tiff(np.zeros((64, 64, 1))))


def enlarge(folder: Path) -> None:
    Image.new("L", (10_000, 5_001), 128).save(folder / "train/ants/huge.png")


def copy(folder: Path, source: str, target: str) -> None:
    shutil.copy(folder / source, folder / target)


def save_again(folder: Path, source: str, target: str) -> None:
    with Image.open(folder / source) as image:
        image.save(folder / target)


def nest(folder: Path) -> None:
    (folder / "train/ants/more").mkdir()
    save(folder, "train/ants/more/0.png", "PNG")


def make_folders(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).mkdir()


def empty_split(folder: Path) -> None:
    shutil.rmtree(folder / "val")
    (folder / "val").mkdir()


def unbalance(folder: Path) -> None:
    for number in range(1, 10):
        (folder / f"train/ants/{number}.png").unlink()
    save(folder, "train/bees/x.png", "PNG")


FAULTS: dict[str, tuple[Callable[[Path], object], list[Found]]] = {
    "truncated": (truncate, [("error", "unreadable", [("train/ants/cut.jpg",)])]),
    "empty": (lambda f: (f / "val/bees/9.png").touch(), [("error", "unreadable", [("val/bees/9.png",)])]),
    "dangling link": (
        lambda f: (f / "val/bees/9.png").symlink_to(f / "nowhere.png"),
        [("error", "unreadable", [("val/bees/9.png",)])],
    ),
    "web page": (
        lambda f: (f / "train/ants/page.jpg").write_text("<html>404</html>"),
        [("error", "not-an-image", [("train/ants/page.jpg",)])],
    ),
    "bitmap named jpg": (
        lambda f: save(f, "train/ants/b.jpg", "BMP"),
        [("warning", "wrong-suffix", [("train/ants/b.jpg",)])],
    ),
    "PNG named jpg": (
        lambda f: save(f, "train/ants/b.jpg", "PNG"),
        [("warning", "wrong-suffix", [("train/ants/b.jpg",)])],
    ),
    "animation named png": (
        lambda f: animate(f, "train/ants/b.png"),
        [("warning", "wrong-suffix", [("train/ants/b.png",)]), ("note", "animated", [("train/ants/b.png",)])],
    ),
    "no train": (
        lambda f: shutil.rmtree(f / "train"),
        [("error", "no-train", []), ("warning", "small-class", [("ants",), ("bees",)])],
    ),
    "no validation": (lambda f: shutil.rmtree(f / "val"), [("error", "no-validation", [])]),
    "test validates": (lambda f: (f / "val").rename(f / "test"), [("note", "test-validates", [])]),
    "empty split": (
        empty_split,
        [("error", "empty-split", []), ("warning", "missing-class", [("train/ants/",), ("train/bees/",)])],
    ),
    "class missing": (
        lambda f: shutil.rmtree(f / "val/bees"),
        [("warning", "missing-class", [("train/bees/",)])],
    ),
    "class extra": (
        lambda f: (f / "val/bees").rename(f / "val/wasps"),
        [("error", "extra-class", [("val/wasps/",)]), ("warning", "missing-class", [("train/bees/",)])],
    ),
    "class empty": (
        lambda f: make_folders(f, "train/wasps", "val/wasps"),
        [("warning", "empty-class", [("train/wasps/",), ("val/wasps/",)])],
    ),
    "copy": (
        lambda f: copy(f, "train/ants/3.png", "train/ants/x.png"),
        [("warning", "duplicate", [("train/ants/3.png", "train/ants/x.png")])],
    ),
    "saved again in another format": (
        lambda f: save_again(f, "train/ants/3.png", "train/ants/x.bmp"),
        [("warning", "duplicate", [("train/ants/3.png", "train/ants/x.bmp")])],
    ),
    "leak": (
        lambda f: copy(f, "train/ants/3.png", "val/ants/x.png"),
        [("error", "leak", [("train/ants/3.png", "val/ants/x.png")])],
    ),
    "two classes": (
        lambda f: copy(f, "train/ants/3.png", "train/bees/x.png"),
        [("error", "contradictory-label", [("train/ants/3.png", "train/bees/x.png")])],
    ),
    "two classes in two splits": (
        lambda f: copy(f, "train/ants/3.png", "val/bees/x.png"),
        [
            ("error", "contradictory-label", [("train/ants/3.png", "val/bees/x.png")]),
            ("error", "leak", [("train/ants/3.png", "val/bees/x.png")]),
        ],
    ),
    "stray image": (
        lambda f: save(f, "train/lost.png", "PNG"),
        [("warning", "stray-image", [("train/lost.png",)])],
    ),
    "stray files": (
        lambda f: [(f / name).write_text("notes") for name in ("README", "train/a.txt", "val/ants/b.txt", ".hidden")],
        [
            ("note", "skipped", [(".hidden",)]),
            ("note", "stray-file", [("train/a.txt",), ("README",), ("val/ants/b.txt",)]),
        ],
    ),
    "stray folder": (lambda f: (f / "masks").mkdir(), [("warning", "stray-folder", [("masks/",)])]),
    "hidden folders": (
        lambda f: make_folders(f, ".git", "train/__MACOSX"),
        [("note", "skipped", [(".git/",), ("train/__MACOSX/",)])],
    ),
    "hidden image": (
        lambda f: save(f, "train/ants/._x.png", "PNG"),
        [("note", "skipped", [("train/ants/._x.png",)])],
    ),
    "loop": (lambda f: (f / "train/ants/up").symlink_to(".."), [("note", "link", [("train/ants/up",)])]),
    "nested": (nest, [("warning", "nested-folder", [("train/ants/more/",)])]),
    "image without a suffix": (
        lambda f: save(f, "train/ants/picture", "PNG"),
        [("warning", "unnoticed-image", [("train/ants/picture",)])],
    ),
    "a third split": (
        lambda f: shutil.copytree(f / "val", f / "test"),
        [
            (
                "error",
                "leak",
                [(f"val/{name}/{i}.png", f"test/{name}/{i}.png") for name in ("ants", "bees") for i in (0, 1)],
            ),
            ("note", "unused-split", [("test/",)]),
        ],
    ),
    "tiny": (lambda f: stretch(f, "train/ants/x.png", (40, 31)), [("warning", "tiny", [("train/ants/x.png",)])]),
    "long": (
        lambda f: stretch(f, "train/ants/x.png", (340, 64)),
        [("warning", "extreme-shape", [("train/ants/x.png",)])],
    ),
    "huge": (
        enlarge,
        [("warning", "huge", [("train/ants/huge.png",)]), ("note", "grey", [("train/ants/huge.png",)])],
    ),
    "CMYK": (
        lambda f: save(f, "train/ants/x.jpg", "JPEG", mode="CMYK"),
        [("note", "cmyk", [("train/ants/x.jpg",)])],
    ),
    "alpha": (lambda f: save(f, "train/ants/x.png", "PNG", mode="RGBA"), [("note", "alpha", [("train/ants/x.png",)])]),
    "palette": (lambda f: save(f, "train/ants/x.png", "PNG", mode="P"), [("note", "palette", [("train/ants/x.png",)])]),
    "grey": (lambda f: save(f, "train/ants/x.png", "PNG", mode="L"), [("note", "grey", [("train/ants/x.png",)])]),
    "16 bits": (
        save_deep,
        [("note", "deep", [("train/ants/deep.png",)]), ("note", "grey", [("train/ants/deep.png",)])],
    ),
    "16 bits in colour": (save_deep_colours, [("note", "deep", [("train/ants/deep.tif",)])]),
    "floating-point numbers": (save_floats, [("error", "unreadable", [("train/ants/floats.tif",)])]),
    "turned": (turn, [("note", "rotated", [("train/ants/turned.jpg",)])]),
    "few": (
        lambda f: (f / "train/ants/0.png").unlink(),
        [("warning", "small-class", [("ants",)])],
    ),
    "imbalance": (
        unbalance,
        [("warning", "small-class", [("ants",)]), ("warning", "imbalance", [("bees",), ("ants",)])],
    ),
}


def test_image_that_crashes_its_reader_is_found_and_the_others_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (folder / "train/ants/3.png").stat().st_size
    [*same] = [path for path in folder.rglob("*.png") if path.stat().st_size == size]

    def kill(content: torch.Tensor) -> None:
        if len(content) == size:
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("is left to Pillow")

    monkeypatch.setattr("distrain.data.sources.decoders.png_decoder", lambda: kill)
    [finding] = [finding for finding in check(folder) if finding.severity == "error"]
    items = {item.paths[0]: item.text for item in finding.items}
    assert finding.kind == "unreadable"
    assert set(items) == {str(path.relative_to(folder)) for path in same}
    assert set(items.values()) == {"reading it crashed the process: it was killed by SIGKILL"}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found_and_nothing_else(folder: Path, fault: str) -> None:
    plant, expected = FAULTS[fault]
    assert told(check(folder)) == []
    plant(folder)
    assert told(check(folder)) == expected


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("page.png", b"\n<!DOCTYPE html>", "HTML"),
        ("pointer.png", b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        ("text.png", b"hello", "an unknown format"),
        ("empty.png", b"", "empty"),
    ],
)
def test_reason_says_what_a_broken_file_is(folder: Path, name: str, content: bytes, reason: str) -> None:
    (folder / "train/ants" / name).write_bytes(content)
    (finding,) = check(folder)
    assert [reason in item.text for item in finding.items] == [True]


def test_small_images_are_not_tiny_among_small_images(tmp_path: Path, pictures: list[Image.Image]) -> None:
    folder = make_clean_folder(tmp_path / "small", [picture.resize((28, 28)) for picture in pictures])
    assert told(check(folder)) == []
    photograph(folder).resize((28, 13)).save(folder / "train/ants/x.png")
    assert [kind for _, kind, _ in told(check(folder))] == ["tiny"]


def test_class_folders_alone_are_checked_as_one_split(folder: Path) -> None:
    copy(folder, "train/ants/3.png", "train/bees/x.png")
    found = told(check(folder / "train"))
    assert found == [
        ("error", "contradictory-label", [("ants/3.png", "bees/x.png")]),
        ("note", "single-folder", []),
    ]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.touch(), "is a file"),
        (lambda path: path.mkdir(), "has no folders"),
    ],
)
def test_folder_without_class_folders_is_refused(tmp_path: Path, make: Callable[[Path], None], words: str) -> None:
    make(tmp_path / "photos")
    with pytest.raises(DataError, match=words):
        list_folder(tmp_path / "photos")


def test_command_reports_everything_as_json_and_in_its_exit_code(folder: Path, tmp_path: Path) -> None:
    copy(folder, "train/ants/3.png", "train/ants/x.png")
    assert distrain("data", "check", str(folder), cwd=tmp_path).code == 0
    assert distrain("data", "check", str(folder), "--strict", cwd=tmp_path).code == 1
    for number in range(5):
        copy(folder, f"train/bees/{number}.png", f"val/bees/x{number}.png")
    done = distrain("data", "check", str(folder), "--json", "--workers=2", cwd=tmp_path)
    assert (done.code, done.err) == (1, "")
    report = json.loads(done.out)
    assert (report["images"], report["errors"], report["warnings"]) == (30, 1, 1)
    assert report["splits"]["val"] == {"ants": 2, "bees": 7}
    leak = next(finding for finding in report["findings"] if finding["kind"] == "leak")
    assert [item["paths"] for item in leak["items"]] == [
        [f"train/bees/{n}.png", f"val/bees/x{n}.png"] for n in range(5)
    ]
    shown = distrain("data", "check", str(folder), cwd=tmp_path)
    assert shown.code == 1
    assert "train/bees/2.png = val/bees/x2.png" in shown.out
    assert "val/bees/x3.png" not in shown.out
    assert "and 2 more" in shown.out
    assert "1 error, 1 warning, 0 notes" in shown.out
    (folder / "val/ants" / os.fsdecode(b"caf\xe9.png")).touch()  # a name that is no text
    assert r"val/ants/caf\xe9.png: the file is empty" in distrain("data", "check", str(folder), cwd=tmp_path).out
    missing = distrain("data", "check", "nowhere", cwd=tmp_path)
    assert (missing.code, missing.err) == (2, "distrain: data folder nowhere does not exist\n")
