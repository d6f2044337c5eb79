"""Draws one prediction: the image with its classes below it, as a PNG and as blocks in a terminal."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from rich.color import Color
from rich.style import Style
from rich.text import Text

from distrain.data.sources.files import read_image
from distrain.export.write_bundle import whole_file
from distrain.system.encoding import printable_name

WIDTH = 480  # of the annotated image in pixels
ROW_HEIGHT = 26  # of a line of text below it in pixels
NUM_COLUMNS = 40  # of the preview; a character is two pixels high
MAX_LINES = 24


def annotate(image: Path, lines: list[tuple[str, float]], file: Path) -> None:
    """Write the image to a PNG `file` with a line below it for each (name, number); a number in [0, 1] has a bar."""
    shown = _fit(_open(image), WIDTH, WIDTH)
    page = Image.new("RGB", (WIDTH, shown.height + ROW_HEIGHT * len(lines) + ROW_HEIGHT // 2), "white")
    page.paste(shown, ((WIDTH - shown.width) // 2, 0))
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=16)
    for row, (name, number) in enumerate(lines):
        top = shown.height + ROW_HEIGHT // 4 + row * ROW_HEIGHT
        draw.text((8, top + 3), _shorten(name, draw, font), fill="black", font=font)
        if 0 <= number <= 1:
            draw.rectangle((200, top + 4, 200 + round(200 * number), top + ROW_HEIGHT - 4), fill=(52, 101, 164))
        draw.text((410, top + 3), f"{number:.3f}", fill="black", font=font)
    with whole_file(file) as draft:
        page.save(draft, format="PNG")


def preview(image: Path) -> Text:
    """Return the image in coloured half blocks, two pixels per character."""
    small = _fit(_open(image), NUM_COLUMNS, 2 * MAX_LINES)
    pixels = small.load()
    assert pixels is not None
    text = Text()
    for top in range(0, small.height - 1, 2):
        for column in range(small.width):
            upper, lower = (Color.from_rgb(*pixels[column, row]) for row in (top, top + 1))  # type: ignore[misc]
            text.append("▀", Style(color=upper, bgcolor=lower))
        text.append("\n")
    return text


def _open(image: Path) -> Image.Image:
    return Image.fromarray(read_image(str(image)).permute(1, 2, 0).numpy())


def _fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scale an image to fit; the pixels of a tiny one become squares."""
    ratio = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * ratio)), max(2, round(image.height * ratio)))
    return image.resize(size, Image.Resampling.NEAREST if ratio > 2 else Image.Resampling.LANCZOS)


def _shorten(name: str, draw: ImageDraw.ImageDraw, font: "ImageFont.FreeTypeFont | ImageFont.ImageFont") -> str:
    name = printable_name(name)
    while draw.textlength(name, font=font) > 185:
        name = f"{name.removesuffix('…')[:-1]}…"
    return name
