"""Draws the first training inputs on a sheet, `samples.png`, and describes it in `samples.json`, beside the steps."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from PIL import Image, ImageDraw, ImageFont

from distrain.data.inspection.captions import fitting
from distrain.messages import type_and_first_line
from distrain.runs.directory import RunDirectory, write_atomically
from distrain.runs.samples import SampleImage, SampleSheet, read_sample_sheet
from distrain.system.encoding import printable_name
from distrain.system.files import to_json, whole_file
from distrain.training.input_samples import InputSamples

NUM_COLUMNS = 4
LARGEST, SMALLEST = 224, 144  # pixels: larger images are shrunk, smaller ones enlarged by a whole factor
GAP, CAPTION = 8, 20  # pixels; a caption is below each image
BACKGROUND, FOREGROUND = (255, 255, 255), (20, 20, 20)
CLOSE_TIMEOUT_S = 10.0

log = logging.getLogger(__name__)
Image.preinit()  # imports the formats: a module that a thread imports is locked in the processes forked meanwhile


@contextmanager
def writing_sample_sheet(run: RunDirectory, samples: InputSamples) -> Iterator[None]:
    """Write the sheet of a run in a thread during the block, unless it exists; what fails costs one warning."""
    if read_sample_sheet(run) is not None:
        yield
        return
    thread = threading.Thread(target=_write_or_warn, args=(run, samples), name="distrain-samples", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(CLOSE_TIMEOUT_S)


def _write_or_warn(run: RunDirectory, samples: InputSamples) -> None:
    try:
        write_sample_sheet(run, samples)
    except Exception as error:
        reason = (isinstance(error, OSError) and error.strerror) or type_and_first_line(error)
        log.warning("the training inputs are not shown in %s: %s", run.sample_sheet, reason)
        log.debug("the sheet failed", exc_info=error)


def write_sample_sheet(run: RunDirectory, samples: InputSamples) -> None:
    """Draw and describe the samples; raises `OSError` where the files cannot be written."""
    image, sheet = draw_sample_sheet(samples)
    with whole_file(run.sample_sheet) as draft:
        image.save(draft, "PNG")
    write_atomically(run.samples, to_json(sheet))


def draw_sample_sheet(samples: InputSamples) -> tuple[Image.Image, SampleSheet]:
    """Return the sheet, each image with its target below it, and its description."""
    images = [_as_image(pixels) for pixels in samples.visible]
    width, height = images[0].size
    cell_width, cell_height = max(width, SMALLEST) + GAP, height + CAPTION + GAP
    num_columns = min(NUM_COLUMNS, len(images))
    num_rows = -(-len(images) // num_columns)
    drawn = Image.new("RGB", (num_columns * cell_width + GAP, num_rows * cell_height + GAP), BACKGROUND)
    draw, font = ImageDraw.Draw(drawn), ImageFont.load_default(size=12)
    boxes = []
    for number, (image, target) in enumerate(zip(images, samples.targets, strict=True)):
        left, top = GAP + number % num_columns * cell_width, GAP + number // num_columns * cell_height
        drawn.paste(image, (left, top))
        text = fitting(printable_name(target), font, cell_width - GAP)
        draw.text((left, top + height + 2), text, FOREGROUND, font)
        boxes.append({"left": left, "top": top, "width": width, "height": height})
    described = zip(samples.names, samples.indices, samples.targets, boxes, strict=True)
    return drawn, SampleSheet(
        images=[SampleImage(sample=name, index=index, target=target, **box) for name, index, target, box in described]
    )


def _as_image(pixels: torch.Tensor) -> Image.Image:
    """Return pixels uint8 [1 or 3, height, width] in the size in which they are on the sheet."""
    image = Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
    side = max(image.size)
    if side > LARGEST:
        image.thumbnail((LARGEST, LARGEST))
        return image
    factor = max(1, SMALLEST // side)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
