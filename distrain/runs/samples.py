"""Defines `samples.json`: what is on the sheet of the first training inputs, `samples.png`, and where."""

import json

from pydantic import BaseModel

from distrain.runs.directory import RunDirectory
from distrain.system.files import read_readable, texts_of


class SampleImage(BaseModel):
    """One image on the sheet; the box has pixels of the sheet."""

    sample: str  # the image's path, or its name in the source
    index: int  # of the sample in the training split
    target: str  # the class, the labels or the values as text; of a mixed image the shares of its classes
    left: int
    top: int
    width: int
    height: int


class SampleSheet(BaseModel):
    """The images on the sheet, row by row."""

    images: list[SampleImage]


def read_sample_sheet(run: RunDirectory) -> SampleSheet | None:
    """Return what the sheet of a run shows; None where the run has no sheet, or its description is damaged."""
    if not run.sample_sheet.is_file():
        return None
    sheets = read_readable(texts_of([run.samples]), lambda text: SampleSheet.model_validate(json.loads(text)))
    return sheets[0] if sheets else None
