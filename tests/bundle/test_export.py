"""A graph computes what the network computes, for batches of any size, or is not handed out."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from distrain.bundle.export import export_graph
from distrain.bundle.graph import compare
from distrain.errors import ExportError
from tests.bundle.making import make_bundle, validation_digits

PICTURES = list(validation_digits().images[:40])


@pytest.mark.parametrize("with_normalize", [False, True])
def test_onnx_file_gives_the_networks_outputs(tmp_path: Path, with_normalize: bool) -> None:
    bundle = make_bundle()
    file = tmp_path / "model.onnx"
    comparison = export_graph(bundle, file, form="onnx", pictures=PICTURES, with_normalize=with_normalize)
    assert comparison.num_images == 40
    assert comparison.top1_agreement == 1
    normal = torch.stack([bundle.preprocess(picture) for picture in PICTURES[:11]])
    given = torch.stack(PICTURES[:11]) if with_normalize else normal
    (outputs,) = onnxruntime.InferenceSession(str(file)).run(None, {"images": given.numpy()})
    with torch.no_grad():
        assert np.allclose(outputs, bundle.model(normal).numpy(), atol=1e-5)
    beside = json.loads((tmp_path / "model.onnx.json").read_text())
    assert beside["graph"]["opset"] == 18
    assert beside["graph"]["normalize_in_graph"] is with_normalize
    assert beside["preprocessing"]["mean"] == [0.3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.json"]


def test_program_is_run_by_a_process_that_knows_nothing_of_distrain(tmp_path: Path) -> None:
    bundle = make_bundle()
    export_graph(bundle, tmp_path / "model.pt2", form="torch", pictures=PICTURES, with_normalize=False)
    inputs = torch.stack([bundle.preprocess(picture) for picture in PICTURES[:3]])
    torch.save(inputs, tmp_path / "inputs.pt")
    script = (
        "import sys, torch; outputs = torch.export.load('model.pt2').module()(torch.load('inputs.pt'));"
        "torch.save(outputs.detach(), 'outputs.pt'); assert 'distrain' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    with torch.no_grad():
        assert torch.allclose(torch.load(tmp_path / "outputs.pt"), bundle.model(inputs), atol=1e-6)


class Counting(nn.Module):
    """A network that is another one after it was traced, as one with a hidden state would be."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scale = 1.0 if torch.compiler.is_compiling() else 1.01
        return images.flatten(1)[:, :3] * scale


class Frozen(nn.Module):
    """A network that takes no other batch than the one that it was made with."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.reshape(2, -1)[:, :3]


@pytest.mark.parametrize(
    ("model", "words"), [(Counting(), "differs from the network by"), (Frozen(), "torch.export cannot write")]
)
def test_graph_that_is_not_the_network_is_not_handed_out(tmp_path: Path, model: nn.Module, words: str) -> None:
    bundle = make_bundle()
    bundle.model = model
    with pytest.raises(ExportError, match=words) as raised:
        export_graph(bundle, tmp_path / "model.pt2", form="torch", pictures=PICTURES, with_normalize=False)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_nan_is_a_difference() -> None:
    images = [torch.ones(2, 3), torch.ones(1, 3)]
    assert compare(lambda x: x, lambda x: x + 1e-6, images).is_good
    assert not compare(lambda x: x, lambda x: x * torch.nan if len(x) == 2 else x, images).is_good
