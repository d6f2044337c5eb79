"""Writes a network as a graph for other programs, and checks that the graph computes the same outputs."""

import importlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from distrain.data.transforms.pipeline import Normalize
from distrain.errors import BundleError, ExportError
from distrain.export.bundle import Bundle
from distrain.messages import first_line
from distrain.tensors.module_state import split

OPSET = 18  # the native one of torch's exporter
TOLERANCE = 1e-4  # relative to the largest output, or to 1 if that is larger
ONNX_BYTES = 2**31  # the limit of one ONNX file
INPUT, OUTPUT = "images", "outputs"

Runner = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Comparison:
    """How a graph's outputs compare with the network's, on real images."""

    num_images: int
    largest_difference: float
    tolerance: float
    top1_agreement: float  # fraction of the images

    @property
    def is_good(self) -> bool:
        """Whether no output differs by more than the tolerance; NaN is a difference."""
        return self.largest_difference <= self.tolerance


class NormalizedModel(nn.Module):
    """The network preceded by normalisation: its input is the result of the transforms."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        preprocessing = bundle.description.preprocessing
        num_channels = preprocessing.input_shape[0]
        self.model = bundle.model
        self._normalize = Normalize(preprocessing.augment, num_channels=num_channels, device=bundle.device)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the network's outputs for images uint8 or float32 [n, channels, height, width]."""
        outputs: torch.Tensor = self.model(self._normalize(images))
        return outputs


def check_onnx() -> None:
    """Raise `BundleError` where a package that ONNX needs is not installed."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise BundleError(
                f"--format onnx needs the package {name}, which is not installed here: pip install 'distrain[onnx]'"
            ) from None


def write_program(model: nn.Module, example: torch.Tensor, file: Path) -> None:
    """Write a torch.export program with a variable batch size. Raises `ExportError` where that is not possible."""
    with _export_errors("torch.export"):
        torch.export.save(_trace(model, example), file)


def read_program(file: Path) -> Runner:
    """Read a torch.export program back."""
    module = torch.export.load(file).module()
    return lambda images: torch.as_tensor(module(images))


def write_onnx(model: nn.Module, example: torch.Tensor, file: Path) -> None:
    """Write an ONNX file with opset `OPSET` and a variable batch size. Raises `ExportError` if that is not possible."""
    if sum(tensor.nbytes for tensor in split(model)[0].values()) >= ONNX_BYTES:
        raise BundleError("the weights are larger than the 2 GiB that one ONNX file can hold; use --format torch")
    with _export_errors("torch.onnx"):
        torch.onnx.export(
            _trace(model, example),
            (example,),
            file,
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            external_data=False,
            verbose=False,
        )


def read_onnx(file: Path) -> Runner:
    """Read an ONNX file back, to run on the CPU with onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


@torch.no_grad()
def compare(reference: Runner, candidate: Runner, batches: Iterable[torch.Tensor]) -> Comparison:
    """Run both on batches [n, channels, height, width] of several sizes, and compare their outputs."""
    difference, largest, agreeing, count = 0.0, 1.0, 0.0, 0
    for images in batches:
        outputs, expected = candidate(images), reference(images)
        gap = (outputs - expected).abs().max().item()
        difference = math.nan if math.isnan(gap) or math.isnan(difference) else max(difference, gap)
        largest = max(largest, expected.abs().max().item())
        is_equal = (outputs.argmax(dim=1) == expected.argmax(dim=1)).reshape(len(images), -1)  # [n, 1 or pixels]
        agreeing += is_equal.double().mean(dim=1).sum().item()
        count += len(images)
    return Comparison(count, difference, TOLERANCE * largest, agreeing / count)


def _trace(model: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))


@contextmanager
def _export_errors(exporter: str) -> Iterator[None]:
    """Turn an exporter's exceptions, whose messages fill pages, into one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except OSError:
        raise
    except Exception as error:
        reason = first_line(error)
        raise ExportError(f"{exporter} cannot write this network: {reason}") from error


FORMATS: dict[str, tuple[str, Callable[[nn.Module, torch.Tensor, Path], None], Callable[[Path], Runner]]] = {
    "torch": (".pt2", write_program, read_program),
    "onnx": (".onnx", write_onnx, read_onnx),
}
