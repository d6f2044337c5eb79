"""The sheet of the first training inputs shows their pixels; where it cannot be written, training continues."""

import logging
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from distrain.runs.directory import RunDirectory
from distrain.runs.samples import read_sample_sheet
from distrain.training.loggers.sample_sheet import (
    LARGEST,
    SMALLEST,
    draw_sample_sheet,
    write_sample_sheet,
    writing_sample_sheet,
)
from tests.disk import fill, small_disk
from tests.training.loggers.factories import input_samples


def noise(count: int, channels: int, height: int, width: int) -> torch.Tensor:
    draws = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, channels, height, width), generator=draws, dtype=torch.uint8)


def crops(image: Image.Image, run: RunDirectory) -> list[torch.Tensor]:
    sheet = read_sample_sheet(run)
    assert sheet is not None
    boxes = [(box.left, box.top, box.left + box.width, box.top + box.height) for box in sheet.images]
    return [pil_to_tensor(image.crop(box)) for box in boxes]


@pytest.mark.parametrize(("channels", "height", "width", "factor"), [(1, 8, 8, 18), (3, 32, 20, 4), (3, 200, 224, 1)])
def test_boxes_of_the_sheet_hold_the_pixels_of_the_images(
    tmp_path: Path, channels: int, height: int, width: int, factor: int
) -> None:
    run, pixels = RunDirectory(tmp_path), noise(7, channels, height, width)
    write_sample_sheet(run, input_samples(pixels))
    with Image.open(run.sample_sheet) as image:
        shown = crops(image, run)
    expected = pixels.repeat_interleave(factor, 2).repeat_interleave(factor, 3).expand(-1, 3, -1, -1)
    assert all(torch.equal(crop, of) for crop, of in zip(shown, expected, strict=True))


@pytest.mark.parametrize(("height", "width"), [(512, 512), (4, 900), (900, 4), (1, 1)])
def test_images_of_any_size_fit_into_their_cells(height: int, width: int) -> None:
    drawn, sheet = draw_sample_sheet(input_samples(noise(2, 3, height, width)))
    assert max(sheet.images[0].width, sheet.images[0].height) <= LARGEST
    assert sheet.images[0].left + sheet.images[0].width < sheet.images[1].left
    assert drawn.width <= 2 * LARGEST + 100
    assert min(drawn.size) >= min(SMALLEST, height)


def test_names_of_any_script_and_length_are_drawn_and_described(tmp_path: Path) -> None:
    run, target = RunDirectory(tmp_path), "<b>日本\n\udcff" + "x" * 500
    write_sample_sheet(run, input_samples(noise(3, 3, 64, 64), target=target))
    sheet = read_sample_sheet(run)
    assert sheet is not None
    assert [(image.sample, image.target) for image in sheet.images] == [(f"photos/{i}.jpg", target) for i in range(3)]


def test_existing_sheet_stays_and_a_damaged_one_is_replaced(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    first, second = (input_samples(noise(1, 3, 64, 64), target=target) for target in ("first", "second"))
    for samples, damage, kept in ((first, "", "first"), (second, "", "first"), (second, "{", "second")):
        if damage:
            run.samples.write_text(damage)
        with writing_sample_sheet(run, samples):
            pass
        sheet = read_sample_sheet(run)
        assert sheet is not None
        assert sheet.images[0].target == kept


def test_full_disk_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with small_disk(tmp_path / "disk", mebibytes=1) as disk:
        run, filler = RunDirectory(disk), fill(disk)
        with caplog.at_level(logging.WARNING), writing_sample_sheet(run, input_samples(noise(4, 3, 64, 64))):
            pass
        (record,) = caplog.records
        expected = f"the training inputs are not shown in {run.sample_sheet}: No space left on device"
        assert record.message == expected
        assert list(disk.iterdir()) == [filler]
