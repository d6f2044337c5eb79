"""Every decoder gives Pillow's pixels, whichever is installed, and Pillow decides about files that it refuses."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from distrain.data.sources import decoders
from distrain.data.sources.decoders import MAX_PIXELS, DecodeError, Pixels, decode
from distrain.data.sources.files import read_image
from tests.data.pngs import CHANNELS, KINDS, SIGNATURE, chunk, png
from tests.data.sources.test_files import UPRIGHT
from tests.data.tiffs import tiff
from tests.data.writing import gradient


@pytest.fixture(params=["torchcodec", "without torchcodec"])
def _installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without torchcodec":
        monkeypatch.setattr(decoders, "png_decoder", lambda: None)
    elif decoders.png_decoder() is None:
        pytest.skip("torchcodec 0.17 or newer is not installed")


def bytes_of(content: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(content, np.uint8)


def by_pillow(content: bytes) -> Pixels:
    """Return Pillow's pixels of an image of up to 8 bits, upright and blended with white."""
    with Image.open(io.BytesIO(content)) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            white = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(white, upright.convert("RGBA"))
        return np.array(upright.convert("RGB"))


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def noise(mode: str, *, height: int = 37, width: int = 53) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    coarse = Image.fromarray(pixels // 4 + np.array(gradient().resize((width, height))) // 2)
    return coarse.convert(mode)


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def xmp(orientation: int) -> bytes:
    return f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


def raw_profile(orientation: int) -> str:
    """Return EXIF as ImageMagick writes it into a text chunk of a PNG."""
    content = b"Exif\0\0" + exif(orientation).tobytes()[6:]
    digits = content.hex()
    lines = [digits[start : start + 72] for start in range(0, len(digits), 72)]
    return "\n".join(["", "exif", f"{len(content):8}", *lines, ""])


def is_near(found: Pixels, expected: NDArray[Any]) -> bool:
    return found.shape == expected.shape and int(np.abs(found.astype(np.int64) - expected).max()) <= 1


@pytest.mark.parametrize("orientation", [None, *UPRIGHT])
@pytest.mark.parametrize("is_progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_has_the_pixels_of_pillow(mode: str, is_progressive: bool, orientation: int | None) -> None:
    for subsampling in ("4:4:4", "4:2:2", "4:2:0") if mode == "RGB" else (None,):
        options = {} if subsampling is None else {"subsampling": subsampling}
        if orientation is not None:
            options["exif"] = exif(orientation)  # type: ignore[assignment]
        content = saved(noise(mode), "JPEG", progressive=is_progressive, quality=90, **options)
        assert np.array_equal(decode(bytes_of(content)), by_pillow(content))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1)])
def test_rotated_jpeg_of_a_single_row_or_column_is_read(tmp_path: Path, height: int, width: int) -> None:
    for orientation in UPRIGHT:
        content = saved(noise("RGB", height=height, width=width), "JPEG", exif=exif(orientation))
        (tmp_path / "a.jpg").write_bytes(content)
        found = read_image(str(tmp_path / "a.jpg")).permute(1, 2, 0).numpy()
        assert np.array_equal(found, by_pillow(content))


@pytest.mark.parametrize("is_progressive", [False, True])
def test_jpeg_of_adobe_has_the_pixels_of_pillow(is_progressive: bool) -> None:
    content = bytearray(saved(noise("CMYK"), "JPEG", progressive=is_progressive))
    content[content.index(b"Adobe") + 11] = 2  # its numbers are YCCK
    assert np.array_equal(decode(bytes_of(bytes(content))), by_pillow(bytes(content)))
    rgb = saved(noise("RGB"), "JPEG", keep_rgb=True, progressive=is_progressive)
    assert np.array_equal(decode(bytes_of(rgb)), by_pillow(rgb))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_in_xmp_rotates_as_that_in_exif(orientation: int) -> None:
    for form, options in (("JPEG", {"quality": 95}), ("WEBP", {"lossless": True})):
        content = saved(noise("RGB"), form, xmp=xmp(orientation), **options)
        assert np.array_equal(decode(bytes_of(content)), by_pillow(content))
        assert decode(bytes_of(content)).shape == ((37, 53, 3) if orientation <= 4 else (53, 37, 3))


def test_photographs_have_the_pixels_of_pillow(real_images: Path) -> None:
    paths = sorted((real_images / "hymenoptera" / "train").rglob("*.jpg"))[:25]
    for path in [*paths, *sorted((real_images / "cifar10" / "test").rglob("*.*"))[:200]]:
        assert np.array_equal(read_image(str(path)).permute(1, 2, 0).numpy(), by_pillow(path.read_bytes()))


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("is_interlaced", [False, True])
@pytest.mark.parametrize(("colour_type", "depth"), KINDS)
def test_png_of_every_kind_is_read_as_it_is_defined(colour_type: int, depth: int, is_interlaced: bool) -> None:
    most, numbers = 2**depth - 1, np.random.default_rng(0)
    may_have_key = colour_type == 3 or (colour_type, depth) in {(0, 8), (2, 8)}
    for has_key in (False, True) if may_have_key else (False,):  # Pillow does not scale the key of 2 and 4 bits
        palette = numbers.integers(0, 256, (min(most, 255) + 1, 3))
        samples = numbers.integers(0, most + 1, (19, 13, CHANNELS[colour_type]))
        key, chunks = samples[3, 5], dict[bytes, bytes]()
        if colour_type == 3:
            chunks[b"PLTE"] = palette.astype(np.uint8).tobytes()
        if has_key:
            alphas = np.where(np.arange(len(palette)) == key[0], 0, 255).astype(np.uint8)
            chunks[b"tRNS"] = alphas.tobytes() if colour_type == 3 else key.astype(">u2").tobytes()
        content = png(samples, colour_type=colour_type, depth=depth, is_interlaced=is_interlaced, chunks=chunks)

        scaled = samples >> 8 if depth == 16 else samples * 255 // most
        alpha = scaled[..., -1:] if colour_type in (4, 6) else np.full((19, 13, 1), 255)
        colour = palette[samples[..., 0]] if colour_type == 3 else scaled[..., : CHANNELS[colour_type & 3]]
        if has_key:
            alpha = np.where((samples == key).all(-1, keepdims=True), 0, 255)
        expected = colour * (alpha / 255) + 255 * (1 - alpha / 255)
        assert is_near(decode(bytes_of(content)), np.broadcast_to(expected, (19, 13, 3)))


def test_transparent_value_of_16_bits_is_white() -> None:
    values = np.arange(0, 65_000, 100).reshape(25, 26, 1)
    key = values[2, 3].astype(">u2").tobytes()
    content = png(values, colour_type=0, depth=16, is_interlaced=False, chunks={b"tRNS": key})
    expected = np.where(values == values[2, 3], 255, values >> 8)
    assert np.array_equal(decode(bytes_of(content)), np.broadcast_to(expected, (25, 26, 3)))


@pytest.mark.parametrize("white_at_0", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("height", [5, 1200])  # the latter in strips
def test_tiff_of_16_bits_keeps_the_upper_ones(channels: int, height: int, white_at_0: bool) -> None:
    samples = np.random.default_rng(0).integers(0, 2**16, (height, 900, channels)).astype(np.uint16)
    upper = np.broadcast_to(samples >> 8, (height, 900, 3))
    found = decode(bytes_of(tiff(samples, white_at_0=white_at_0)))
    assert np.array_equal(found, 255 - upper if white_at_0 and channels == 1 else upper)


@pytest.mark.parametrize("kind", ["f2", "f8", "f4"])
def test_tiff_with_an_unknown_range_is_refused_for_that_reason(kind: str) -> None:
    for channels in (1, 3):
        with pytest.raises(DecodeError, match=r"a TIFF of an unsupported kind|floating-point pixels"):
            decode(bytes_of(tiff(np.zeros((4, 5, channels), kind))))


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_png_is_rotated_by_every_kind_of_metadata(mode: str, orientation: int) -> None:
    upright = UPRIGHT[orientation](by_pillow(saved(noise(mode), "PNG")))
    text, compressed, international, packet = PngInfo(), PngInfo(), PngInfo(), PngInfo()
    text.add_text("Raw profile type exif", raw_profile(orientation))
    compressed.add_text("Raw profile type exif", raw_profile(orientation), zip=True)
    international.add_itxt("XML:com.adobe.xmp", xmp(orientation).decode())
    packet.add_text("XML:com.adobe.xmp", xmp(orientation).decode())
    plain = saved(noise(mode), "PNG")
    end = plain.index(b"IEND") - 4
    late = plain[:end] + chunk(b"tEXt", b"Raw profile type exif\0" + raw_profile(orientation).encode()) + plain[end:]
    written = [saved(noise(mode), "PNG", pnginfo=info) for info in (text, compressed, international, packet)]
    for content in [saved(noise(mode), "PNG", exif=exif(orientation)), *written, late]:
        assert np.array_equal(decode(bytes_of(content)), upright)


def test_png_with_plain_text_is_read_by_the_fast_decoder() -> None:
    info = PngInfo()
    for keyword in ("Software", "Comment", "date:create"):
        info.add_text(keyword, "6")
    assert decoders._is_plain_png(bytes_of(saved(noise("RGB"), "PNG", pnginfo=info)))
    info.add_text("XML:com.adobe.xmp", "")
    assert not decoders._is_plain_png(bytes_of(saved(noise("RGB"), "PNG", pnginfo=info)))


@pytest.mark.usefixtures("_installed")
def test_png_with_an_unknown_filter_is_refused() -> None:
    rows = b"".join(bytes([9]) + bytes(39) for _ in range(17))  # filters are 0 to 4; others ended torchvision's process
    head = struct.pack(">IIBBBBB", 13, 17, 8, 2, 0, 0, 0)
    chunks = {b"IHDR": head, b"IDAT": zlib.compress(rows), b"IEND": b""}
    with pytest.raises(DecodeError):
        decode(bytes_of(SIGNATURE + b"".join(chunk(kind, content) for kind, content in chunks.items())))


@pytest.mark.usefixtures("_installed")
def test_descriptive_chunks_of_a_png_do_not_change_its_pixels() -> None:
    described = PngInfo()
    for kind, content in ((b"gAMA", b"\0\0\xb1\x8f"), (b"pHYs", b"\0\0\x0b\x13\0\0\x0b\x13\1"), (b"sRGB", b"\0")):
        described.add(kind, content)
    described.add_text("Software", "distrain")
    for mode in ("RGB", "L"):
        for content in (saved(noise(mode), "PNG", pnginfo=described), saved(noise(mode), "PNG", icc_profile=b"none")):
            assert np.array_equal(decode(bytes_of(content)), np.array(noise(mode).convert("RGB")))


def test_other_formats_have_the_pixels_of_pillow() -> None:
    second = [noise("RGB").rotate(180), noise("RGB").rotate(90)]
    written: dict[str, list[dict[str, Any]]] = {
        "WEBP": [{}, {"lossless": True}, {"save_all": True, "append_images": second}],
        "GIF": [{}, {"save_all": True, "append_images": second}, {"interlace": 1}],
        "PNG": [{"save_all": True, "append_images": second}],
        "BMP": [{}],
        "TIFF": [{}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}, {"save_all": True, "append_images": second}],
    }
    for form, every in written.items():
        for options in every:
            for mode in ("RGB", "L") if form in ("GIF", "BMP", "TIFF") else ("RGB", "RGBA"):
                content = saved(noise(mode), form, **options)
                assert np.array_equal(decode(bytes_of(content)), by_pillow(content)), (form, options, mode)


def test_pillow_decides_about_a_jpeg_that_simplejpeg_refuses(tmp_path: Path) -> None:
    content = saved(noise("RGB"), "JPEG")
    strange = content[:-2] + b"\0\0\0" + content[-2:]  # libjpeg warns of what stands before the end
    assert np.array_equal(decode(bytes_of(strange)), by_pillow(strange))
    with pytest.raises(DecodeError, match="truncated"):
        decode(bytes_of(content[: len(content) // 2]))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "GIF"])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_size_that_would_fill_the_memory_is_refused(form: str) -> None:
    content = bytearray(saved(noise("L"), form))
    place = {"JPEG": content.find(b"\xff\xc0") + 5, "PNG": 16, "BMP": 18, "GIF": 6}[form]
    length = {"JPEG": 4, "PNG": 8, "BMP": 8, "GIF": 4}[form]
    content[place : place + length] = (b"\x70" * 4 if length == 4 else b"\0\0\x40\0" * 2)[:length]
    if form == "PNG":
        content[8:33] = chunk(b"IHDR", bytes(content[16:29]))
    with pytest.raises(DecodeError) as caught:
        decode(bytes_of(bytes(content)))
    assert "178956970" in str(caught.value).replace(",", "")
    assert MAX_PIXELS == 178_956_970


def test_canvas_of_a_webp_is_refused_before_it_is_made() -> None:
    content = bytearray(saved(noise("RGBA"), "WEBP", exif=exif(1)))
    assert content[12:16] == b"VP8X"
    for width, height in ((13_000, 13_800), (5_832_708, 29)):
        content[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        with pytest.raises(DecodeError, match=f"{width}x{height} pixels, more than the limit of 178,956,970"):
            decode(bytes_of(bytes(content)))


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA", "I;16", "CMYK"])
def test_large_image_is_converted_in_strips_to_the_same_pixels(mode: str) -> None:
    image = noise("RGB", height=1_400, width=1_500)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 200)
    content = saved(image if mode == "I;16" else image.convert(mode), "TIFF" if mode == "CMYK" else "PNG")
    with Image.open(io.BytesIO(content)) as opened:
        assert np.array_equal(decode(bytes_of(content)), np.array(decoders.to_rgb(opened)))


def test_postscript_is_not_run() -> None:
    with pytest.raises(DecodeError, match="PostScript"):
        decode(bytes_of(saved(noise("RGB"), "EPS")))


@pytest.mark.parametrize(("version", "is_used"), [("0.16.2+cpu", False), ("0.17.0+cpu", True), ("1.0", True)])
def test_torchcodec_is_used_only_in_safe_versions(tmp_path: Path, version: str, is_used: bool) -> None:
    package, facts = tmp_path / "torchcodec" / "decoders", tmp_path / f"torchcodec-{version}.dist-info"
    package.mkdir(parents=True)
    (tmp_path / "torchcodec" / "__init__.py").touch()
    (package / "__init__.py").write_text("decode_png = print\n")
    facts.mkdir()
    (facts / "METADATA").write_text(f"Name: torchcodec\nVersion: {version}\n")
    found = subprocess.run(
        [sys.executable, "-c", "from distrain.data.sources.decoders import png_decoder; print(png_decoder() is print)"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.pathsep.join(sys.path)}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == str(is_used)
