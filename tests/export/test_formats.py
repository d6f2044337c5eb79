"""A graph computes the same outputs as the network, for batches of any size, or is not written."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision.transforms.v2
from PIL import Image, ImageOps
from torch import nn
from torchvision.transforms import v2

from distrain.config import Model, Transform
from distrain.errors import ExportError
from distrain.export.formats import export_graph
from distrain.export.graph import compare
from distrain.export.metadata import Preprocessing, normalization_formula
from tests.export.factories import make_bundle, validation_digits

PICTURES = list(validation_digits().images[:40])


@pytest.mark.parametrize("with_normalize", [False, True])
def test_onnx_file_gives_the_networks_outputs(tmp_path: Path, with_normalize: bool) -> None:
    bundle = make_bundle()
    file = tmp_path / "model.onnx"
    comparison = export_graph(bundle, file, form="onnx", images=PICTURES, with_normalize=with_normalize)
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


@pytest.mark.parametrize("count", [1, 16, 23])
def test_comparison_counts_each_image_once(tmp_path: Path, count: int) -> None:
    found = export_graph(
        make_bundle(), tmp_path / "model.pt2", form="torch", images=PICTURES[:count], with_normalize=True
    )
    assert found.num_images == count


@pytest.mark.parametrize(("target", "with_normalize"), [("class", False), ("labels", True)])
def test_json_beside_a_graph_is_sufficient_for_other_programs(
    tmp_path: Path, target: str, with_normalize: bool
) -> None:
    """A rotated photograph with transparency: the steps in the JSON are done here with torchvision alone."""
    transforms = tuple(
        Transform.model_validate(t)
        for t in ({"name": "Resize", "arguments": {"size": 40}}, {"name": "CenterCrop", "arguments": {"size": 32}})
    )
    made = Preprocessing(
        image_channels=3,
        transforms=transforms,
        input_dtype="uint8",
        input_shape=(3, 32, 32),
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.4),
        normalization=normalization_formula("uint8", has_mean=True),
    )
    bundle = make_bundle(model=Model(name="cifar-cnn"), preprocessing=made, target=target)
    pixels = np.random.default_rng(0).integers(0, 256, (70, 50, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    pixels[:20, :, 3] = 0
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "photograph.png", exif=exif)
    pictures = [tmp_path / "photograph.png"] * 2
    export_graph(bundle, tmp_path / "model.onnx", form="onnx", images=pictures, with_normalize=with_normalize)

    told = json.loads((tmp_path / "model.onnx.json").read_text())
    (taken,), (given,) = told["graph"]["inputs"], told["graph"]["outputs"]
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for facts, real in ((taken, session.get_inputs()), (given, session.get_outputs())):
        assert facts["name"] == real[0].name
        assert facts["shape"] == ["batch", *real[0].shape[1:]]
        assert f"tensor({facts['dtype']})".replace("float32", "float") == real[0].type
    opened = ImageOps.exif_transpose(Image.open(tmp_path / "photograph.png"))
    white = Image.new("RGBA", opened.size, "white")
    image = v2.functional.pil_to_tensor(Image.alpha_composite(white, opened).convert("RGB"))
    names = {"torchvision": torchvision, "bilinear": v2.InterpolationMode.BILINEAR}
    for step in told["graph"]["steps"]:
        if step.startswith("torchvision."):
            image = eval(step, names)(image)
    if not with_normalize:
        assert taken["values"] == "(image / 255 - mean) / std"
        mean, std = (torch.tensor(told["preprocessing"][key]).view(3, 1, 1) for key in ("mean", "std"))
        image = (image / 255 - mean) / std
    (outputs,) = session.run([given["name"]], {taken["name"]: image[None].numpy()})
    found = torch.from_numpy(outputs)
    if "softmax" in given["activation"]:
        found = found.softmax(dim=1)
    elif "sigmoid" in given["activation"]:
        found = found.sigmoid()
    assert torch.allclose(found, bundle.predict(pictures[:1]), atol=1e-5)


def test_program_is_run_by_a_process_that_knows_nothing_of_distrain(tmp_path: Path) -> None:
    bundle = make_bundle()
    export_graph(bundle, tmp_path / "model.pt2", form="torch", images=PICTURES, with_normalize=False)
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
    """A network that changes after it was traced, like one with a hidden state."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scale = 1.0 if torch.compiler.is_compiling() else 1.01
        return images.flatten(1)[:, :3] * scale


class Frozen(nn.Module):
    """A network that accepts only one batch size."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.reshape(2, -1)[:, :3]


@pytest.mark.parametrize(
    ("model", "words"), [(Counting(), "differs from the network by"), (Frozen(), "torch.export cannot write")]
)
def test_graph_that_differs_from_the_network_is_not_written(tmp_path: Path, model: nn.Module, words: str) -> None:
    bundle = make_bundle()
    bundle.model = model
    with pytest.raises(ExportError, match=words) as raised:
        export_graph(bundle, tmp_path / "model.pt2", form="torch", images=PICTURES, with_normalize=False)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_nan_is_a_difference() -> None:
    images = [torch.ones(2, 3), torch.ones(1, 3)]
    assert compare(lambda x: x, lambda x: x + 1e-6, images).is_good
    assert not compare(lambda x: x, lambda x: x * torch.nan if len(x) == 2 else x, images).is_good
