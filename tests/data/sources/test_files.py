"""Images of every kind become the RGB that was meant, and errors name each broken one."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms.v2 import functional

from distrain.data.sources.decoders import to_rgb
from distrain.data.sources.files import decode, read_image, to_tensor
from distrain.errors import DataError
from tests.data.writing import gradient, write

RGB = np.array(gradient()).astype(np.int64)  # [24, 32, 3]
GREY = np.array(gradient().convert("L")).astype(np.int64)
ALPHA = np.arange(24 * 32).reshape(24, 32) % 256
WIDE = np.arange(24 * 32).reshape(24, 32) * 85  # 0 to 65195
BITS = np.array(gradient().convert("1")).astype(np.int64) * 255
FEW = gradient().quantize(16)
FEW_RGB = np.array(FEW.convert("RGB")).astype(np.int64)


def over_white(colour: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


def with_alpha(mode: str) -> Image.Image:
    image = gradient().convert(mode)
    image.putalpha(Image.fromarray(ALPHA.astype(np.uint8)))
    return image


def grey(values: NDArray[Any]) -> NDArray[Any]:
    return np.stack([values] * 3, axis=-1)


def hole(image: Image.Image, *, index: int) -> NDArray[Any]:
    """Return a palette image's colours with those of one index white."""
    return np.where((np.array(image) == index)[..., None], 255, FEW_RGB)


def ycck(file: Path) -> None:
    """Write a CMYK JPEG whose marker says that its numbers are YCCK, as Adobe's are."""
    gradient().convert("CMYK").save(file, quality=100)
    content = bytearray(file.read_bytes())
    content[content.index(b"Adobe") + 11] = 2
    file.write_bytes(content)


def rgb_of_ycck() -> NDArray[Any]:
    """Return the numbers of `gradient` in CMYK read as YCCK: the inks by JFIF's formula, all stored inverted."""
    y, cb, cr, k = np.moveaxis(255 - np.array(gradient().convert("CMYK")).astype(np.float64), -1, 0)
    cb, cr = cb - 128, cr - 128
    ink = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1).clip(0, 255)
    rgb: NDArray[Any] = (255 - ink) * k[..., None] / 255
    return rgb


CASES: dict[str, tuple[Callable[[Path], object], NDArray[Any], float]] = {
    # how the file is written, its pixels, and how far off a lossy one may be on average
    "rgb.png": (lambda f: gradient().save(f), RGB, 0),
    "rgb.bmp": (lambda f: gradient().save(f), RGB, 0),
    "rgb.ppm": (lambda f: gradient().save(f), RGB, 0),
    "rgb.tif": (lambda f: gradient().save(f), RGB, 0),
    "rgb.webp": (lambda f: gradient().save(f, lossless=True), RGB, 0),
    "rgb.jpg": (lambda f: gradient().save(f, quality=95), RGB, 4),
    "progressive.jpg": (lambda f: gradient().save(f, quality=95, progressive=True), RGB, 4),
    "lossy.webp": (lambda f: gradient().save(f, quality=95), RGB, 6),
    "grey.png": (lambda f: gradient().convert("L").save(f), grey(GREY), 0),
    "grey.jpg": (lambda f: gradient().convert("L").save(f, quality=95), grey(GREY), 2),
    "grey.tif": (lambda f: gradient().convert("L").save(f), grey(GREY), 0),
    "grey-alpha.png": (lambda f: with_alpha("L").save(f), over_white(grey(GREY), ALPHA), 1),
    "rgb-alpha.png": (lambda f: with_alpha("RGB").save(f), over_white(RGB, ALPHA), 1),
    "rgb-alpha.tif": (lambda f: with_alpha("RGB").save(f), over_white(RGB, ALPHA), 1),
    "rgb-alpha.webp": (
        lambda f: with_alpha("RGB").save(f, lossless=True, exact=True),
        over_white(RGB, ALPHA),
        1,
    ),
    "colour-key.png": (
        lambda f: gradient().save(f, transparency=(8, 16, 3)),
        np.where((RGB == (8, 16, 3)).all(-1)[..., None], 255, RGB),
        0,
    ),
    "grey-key.png": (
        lambda f: gradient().convert("L").save(f, transparency=90),
        grey(np.where(GREY == 90, 255, GREY)),
        0,
    ),
    "palette.png": (lambda f: FEW.save(f), FEW_RGB, 0),
    "palette.bmp": (lambda f: FEW.save(f), FEW_RGB, 0),
    "palette-key.png": (lambda f: FEW.save(f, transparency=3), hole(FEW, index=3), 0),
    "first.gif": (lambda f: FEW.save(f, save_all=True, append_images=[Image.new("P", FEW.size)]), FEW_RGB, 0),
    "key.gif": (lambda f: FEW.save(f, transparency=3), hole(FEW, index=3), 0),
    "first.tif": (lambda f: gradient().save(f, save_all=True, append_images=[Image.new("RGB", (9, 9))]), RGB, 0),
    "one-bit.png": (lambda f: gradient().convert("1").save(f), grey(BITS), 0),
    "one-bit.tif": (lambda f: gradient().convert("1").save(f), grey(BITS), 0),
    "sixteen.png": (lambda f: Image.fromarray(WIDE.astype(np.uint16)).save(f), grey(WIDE >> 8), 0),
    "sixteen.tif": (lambda f: Image.fromarray(WIDE.astype(np.uint16)).save(f), grey(WIDE >> 8), 0),
    "sixteen.pgm": (lambda f: Image.fromarray(WIDE.astype(np.uint16)).save(f), grey(WIDE >> 8), 0),
    "cmyk.jpg": (lambda f: gradient().convert("CMYK").save(f, quality=95), RGB, 6),
    "cmyk.tif": (lambda f: gradient().convert("CMYK").save(f), RGB, 0),
    "ycck.jpg": (ycck, rgb_of_ycck(), 6),
}


@pytest.mark.parametrize("name", CASES)
def test_image_of_every_kind_is_read_as_the_rgb_that_was_meant(tmp_path: Path, name: str) -> None:
    save, expected, tolerance = CASES[name]
    save(tmp_path / name)
    pixels = read_image(str(tmp_path / name))
    assert (tuple(pixels.shape), pixels.dtype, pixels.stride(0)) == ((3, 24, 32), torch.uint8, 1)
    distance = np.abs(pixels.permute(1, 2, 0).numpy() - expected)
    assert distance.mean() <= tolerance
    assert distance.max() <= (tolerance if tolerance <= 1 else 255)


UPRIGHT: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    # where the first row and column of the file belong, by the EXIF standard
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_image_is_upright_whatever_way_the_camera_was_held(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    kinds: dict[str, dict[str, Any]] = {"webp": {"lossless": True}, "jpg": {"quality": 95}}
    options = kinds.get(suffix, {})
    gradient().save(tmp_path / f"a.{suffix}", exif=exif, **options)
    pixels = read_image(str(tmp_path / f"a.{suffix}")).permute(1, 2, 0).numpy()
    expected = UPRIGHT[orientation](RGB)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).mean() <= (4 if suffix == "jpg" else 0)


@pytest.mark.parametrize(
    "name", ["rgb.png", "rgb.jpg", "grey.png", "grey.jpg", "progressive.jpg", "cmyk.jpg", "ycck.jpg"]
)
def test_both_decoders_give_the_same_pixels(tmp_path: Path, name: str) -> None:
    CASES[name][0](tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert torch.equal(decode(np.fromfile(tmp_path / name, dtype=np.uint8)), to_tensor(to_rgb(image)))


@pytest.mark.parametrize(
    ("decode_size", "expected"),
    [(None, (600, 800)), (301, (600, 800)), (300, (300, 400)), (151, (300, 400)), (9, (75, 100))],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_jpeg_is_decoded_at_the_requested_size(
    tmp_path: Path, decode_size: int | None, expected: tuple[int, int], orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    gradient().resize((800, 600)).save(tmp_path / "a.jpg", quality=95, exif=exif)
    whole = read_image(str(tmp_path / "a.jpg"))
    found = read_image(str(tmp_path / "a.jpg"), decode_size=decode_size)
    assert tuple(found.shape[1:]) == (expected if orientation == 1 else expected[::-1])
    assert found.stride(0) == 1
    if expected == (600, 800):
        assert torch.equal(found, whole)
    resized = functional.resize(whole, list(found.shape[1:]), antialias=True)
    assert (found.float() - resized.float()).abs().max() <= 4


def test_photographs_decoded_small_are_the_means_of_blocks(real_images: Path) -> None:
    for path in sorted((real_images / "hymenoptera" / "val").rglob("*.jpg"))[:40]:
        whole, small = read_image(str(path)).float(), read_image(str(path), decode_size=64).float()
        block = round(whole.shape[1] / small.shape[1])
        assert block in {2, 4, 8}
        assert 64 <= min(small.shape[1:]) < 128 or block == 8
        means = F.avg_pool2d(whole[None], block, ceil_mode=True)[0]
        assert (small - means).abs().mean() < 1


def test_other_files_are_decoded_at_full_size(tmp_path: Path) -> None:
    gradient().resize((800, 600)).save(tmp_path / "a.png")
    assert read_image(str(tmp_path / "a.png"), decode_size=9).shape == (3, 600, 800)


def test_file_is_read_by_its_content_not_its_name(tmp_path: Path) -> None:
    with_alpha("RGB").save(tmp_path / "a.jpg", format="PNG")
    assert np.abs(read_image(str(tmp_path / "a.jpg")).permute(1, 2, 0).numpy() - over_white(RGB, ALPHA)).max() <= 1


def test_image_of_a_dataset_keeps_one_channel_only_if_it_is_plain_grey() -> None:
    shapes = {mode: tuple(to_tensor(gradient().convert(mode)).shape) for mode in ("L", "LA", "1", "P", "RGB", "CMYK")}
    assert shapes.pop("L") == (1, 24, 32)
    assert set(shapes.values()) == {(3, 24, 32)}


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_image_of_a_dataset_is_upright(tmp_path: Path, mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    gradient().convert(mode).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        found = to_tensor(image).permute(1, 2, 0).numpy()
    assert np.array_equal(found, np.rot90(np.atleast_3d(np.array(gradient().convert(mode))), -1))


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "folder", "missing"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "gif", "webp"])
def test_damaged_image_is_an_error_of_one_line_with_its_path(tmp_path: Path, suffix: str, damage: str) -> None:
    file = write(tmp_path / f"a.{suffix}")
    content = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage != "missing":
        file.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "garbage": b"no image"}[damage])
    with pytest.raises(DataError) as caught:
        read_image(str(file))
    assert str(caught.value).startswith(f"image {file} cannot be read")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.zeros((4, 4), dtype=np.float32), "floating-point pixels"),
        (np.full((4, 4), 70_000, dtype=np.int32), "more than 16 bits"),
        (np.full((4, 4), -1, dtype=np.int32), "more than 16 bits"),
    ],
)
def test_pixels_of_unknown_range_are_refused(tmp_path: Path, pixels: NDArray[Any], words: str) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=words):
        read_image(str(tmp_path / "a.tif"))


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it mends
def test_randomly_changed_bytes_are_read_or_give_an_error_that_names_the_file(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for suffix in ("png", "tif", "gif", "webp", "jpg"):
        buffer = io.BytesIO()
        with_alpha("RGB").convert("RGB" if suffix == "jpg" else "RGBA").save(
            buffer, format={"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix)
        )
        for _ in range(40):
            content = np.frombuffer(buffer.getvalue(), dtype=np.uint8).copy()
            content[generator.integers(0, min(len(content), 300), 4)] = generator.integers(0, 256, 4)
            file = tmp_path / f"a.{suffix}"
            file.write_bytes(content.tobytes())
            try:
                read_image(str(file))
            except DataError as error:
                assert str(file) in str(error)
