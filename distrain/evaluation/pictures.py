"""Writes the pictures of an evaluation: its plots, and the image of each of the worst mistakes."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from distrain.evaluation.plots import draw_confusion, draw_mistakes
from distrain.evaluation.results import Predictions
from distrain.evaluation.samples import read_images
from distrain.runs.directory import RunDirectory
from distrain.runs.evaluations import Findings, write_findings

LARGEST = 192  # pixels: larger images are shrunk


def write_pictures(folder: RunDirectory, findings: Findings, predictions: Predictions) -> tuple[Findings, list[Path]]:
    """Write the pictures; returns the findings, whose mistakes now name their images, and the files of the plots."""
    plots = []
    if findings.classes:
        draw_confusion(findings, predictions, folder.confusion_image)
        plots.append(folder.confusion_image)
    if findings.mistakes:
        images = read_images(folder.recipe, findings.split, [mistake.index for mistake in findings.mistakes])
        draw_mistakes(findings, images, folder.mistakes_image)
        plots.append(folder.mistakes_image)
        findings = _write_images(folder, findings, images)
    return findings, plots


def _write_images(folder: RunDirectory, findings: Findings, images: list[NDArray[Any] | None]) -> Findings:
    """Write each image uint8 [height, width, 3] as a PNG, then their names into the findings."""
    folder.mistake_images.mkdir(exist_ok=True)
    mistakes = []
    for number, (mistake, pixels) in enumerate(zip(findings.mistakes, images, strict=True)):
        name = None
        if pixels is not None:
            file = folder.mistake_image(number)
            image = Image.fromarray(pixels)
            image.thumbnail((LARGEST, LARGEST))
            image.save(file)
            name = str(file.relative_to(folder.path))
        mistakes.append(mistake.model_copy(update={"image": name}))
    findings = findings.model_copy(update={"mistakes": mistakes})
    write_findings(folder, findings)
    return findings
