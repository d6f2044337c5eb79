"""Exports a network: writes a temporary file, reads it back, compares it with the network, and then renames it."""

import dataclasses
import json
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from distrain.errors import ExportError
from distrain.export.bundle import Bundle
from distrain.export.graph import FORMATS, OPSET, Comparison, NormalizedModel, compare
from distrain.export.interface import describe_inputs, describe_outputs, describe_steps
from distrain.export.read_images import ImageInput
from distrain.export.write_bundle import whole_file
from distrain.messages import counted
from distrain.system.files import to_json, write_atomically

BATCH_SIZES = (16, 16, 1, 7)  # of the comparison: a graph with a fixed batch size fails for some of them
NUM_COMPARED = sum(BATCH_SIZES)


def export_graph(
    bundle: Bundle, file: Path, *, form: str, images: Sequence[ImageInput], with_normalize: bool
) -> Comparison:
    """Write the network of a bundle as a graph to `file`, and its preprocessing to `file`.json.

    The graph is read back and compared with the network on `images`, which go through the real preprocessing. Raises
    `ExportError`, and leaves neither file, where the outputs differ by more than the tolerance.
    """
    _, write, read = FORMATS[form]
    as_input = bundle.prepare if with_normalize else bundle.preprocess
    prepared = [as_input(image) for image in images]
    model = NormalizedModel(bundle).eval() if with_normalize else bundle.model
    batches = _make_batches(prepared)
    with whole_file(file) as draft:
        write(model, torch.stack((prepared * 2)[:2]), draft)  # a batch size of one would be fixed in the graph
        num_images = min(len(prepared), NUM_COMPARED)  # where there are few, some are in more than one batch
        comparison = dataclasses.replace(compare(model, read(draft), batches), num_images=num_images)
        if not comparison.is_good:
            raise ExportError(
                f"the {form} graph differs from the network by {comparison.largest_difference:.3g} on "
                f"{counted(comparison.num_images, 'image')}, and {comparison.tolerance:.3g} is tolerated; {file} was "
                "not written"
            )
        write_atomically(
            _json_path(file), json.dumps(_describe(bundle, form, comparison, with_normalize=with_normalize), indent=1)
        )
    return comparison


def _json_path(file: Path) -> Path:
    return file.with_name(f"{file.name}.json")


def _make_batches(prepared: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return batches of the sizes to compare; where there are few images, some are in more than one batch."""
    starts = zip(accumulate(BATCH_SIZES, initial=0), BATCH_SIZES, strict=False)
    batches = [torch.stack(prepared[start : start + size]) for start, size in starts if start < len(prepared)]
    return batches if len(batches) > 1 else [batches[0], batches[0][:1]]


def _describe(bundle: Bundle, form: str, comparison: Comparison, *, with_normalize: bool) -> dict[str, Any]:
    description: dict[str, Any] = json.loads(to_json(bundle.description))
    graph = {
        "format": form,
        "inputs": describe_inputs(bundle.description, with_normalize=with_normalize),
        "outputs": describe_outputs(bundle.description),
        "steps": describe_steps(bundle.description, with_normalize=with_normalize),
        "batch": "any size",
        "normalize_in_graph": with_normalize,
        "comparison": dataclasses.asdict(comparison),
    }
    return {**description, "graph": {**graph, "opset": OPSET} if form == "onnx" else graph}
