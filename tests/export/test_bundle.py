"""A bundle is read back as it was written, accepts any image, and reports errors in one sentence."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from distrain.errors import BundleError, DataError, RecipeError
from distrain.export import load
from distrain.export.write_bundle import write_bundle
from tests.export.factories import make_bundle, validation_digits, write_digits
from tests.test_architecture import PACKAGE


def written(folder: Path) -> Path:
    write_bundle(make_bundle(), folder)
    return folder


def test_bundle_read_back_gives_the_same_outputs(tmp_path: Path) -> None:
    images = validation_digits().images[:5]
    pictures = list(images)
    again = load(written(tmp_path / "bundle"))
    expected = make_bundle().predict(pictures)
    assert torch.equal(again.predict(pictures), expected)
    assert torch.allclose(expected.sum(dim=1), torch.ones(5))
    assert again.classes == ("a", "b", "c")
    assert not again.model.training
    assert json.loads((tmp_path / "bundle" / "class_indices.json").read_text()) == {"0": "a", "1": "b", "2": "c"}
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_path_of_a_single_image_is_predicted_without_a_list(tmp_path: Path) -> None:
    file = tmp_path / "one.png"
    Image.new("L", (8, 8), 99).save(file)
    bundle = make_bundle()
    assert torch.equal(bundle.predict(str(file)), bundle.predict([file]))
    assert torch.equal(bundle.predict(file), bundle.predict([file]))


def test_image_is_the_same_as_path_pillow_image_and_tensor(tmp_path: Path) -> None:
    (file,) = write_digits(tmp_path, 1)
    bundle = make_bundle()
    tensor = validation_digits().images[0]
    with Image.open(file) as image:
        inputs = [bundle.preprocess(picture) for picture in (file, str(file), image, image.convert("RGB"), tensor)]
    assert all(torch.equal(found, (tensor / 255 - 0.3).div(0.4)) or found.allclose((tensor / 255 - 0.3) / 0.4)
               for found in inputs)  # fmt: skip
    assert all(torch.equal(found, inputs[0]) for found in inputs)


def test_image_is_decoded_as_in_training(tmp_path: Path) -> None:
    noise = Image.effect_noise((64, 64), 80)
    noise.save(tmp_path / "a.jpg", quality=95)
    bundle = make_bundle()
    preprocessing = bundle.description.preprocessing.model_copy(update={"decode_size": 8})
    small = make_bundle(preprocessing=preprocessing).preprocess(tmp_path / "a.jpg")
    assert small.shape == (1, 8, 8)
    assert not torch.equal(small, bundle.preprocess(tmp_path / "a.jpg"))


def test_image_of_another_size_is_resized(tmp_path: Path) -> None:
    file = tmp_path / "large.jpg"
    Image.new("RGB", (300, 200), "white").save(file)
    found = make_bundle().preprocess(file)
    assert found.shape == (1, 8, 8)
    assert found.allclose(torch.full((1, 8, 8), (1 - 0.3) / 0.4), atol=0.02)


@pytest.mark.parametrize("target", ["labels", "values"])
def test_outputs_mean_what_the_target_says(target: str) -> None:
    bundle = make_bundle(target=target)
    picture = validation_digits().images[0]
    with torch.no_grad():
        outputs = bundle.model(bundle.preprocess(picture).unsqueeze(0))
    assert torch.equal(bundle.predict([picture]), outputs.sigmoid() if target == "labels" else outputs)


def test_loading_does_not_change_the_random_state_of_the_program(tmp_path: Path) -> None:
    folder = written(tmp_path / "bundle")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load(folder)
    assert torch.equal(torch.rand(3), expected)


def test_load_imports_no_training_code(tmp_path: Path) -> None:
    script = (
        "import sys; from distrain import export; export.load(sys.argv[1]).predict([sys.argv[2]]);"
        "print(*(name for name in sys.modules if name.startswith('distrain.')))"
    )
    (file,) = write_digits(tmp_path, 1)
    arguments = [sys.executable, "-c", script, str(written(tmp_path / "bundle")), str(file)]
    loaded = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split()
    assert "distrain.export.bundle" in loaded
    others = {"training", "distributed", "launchers", "evaluation", "benchmark", "cli", "worker"}
    assert all((PACKAGE / room).exists() or (PACKAGE / f"{room}.py").exists() for room in others)
    assert [name for name in loaded if name.split(".")[1] in others] == []


def test_flipped_byte_of_the_weights_is_found(tmp_path: Path) -> None:
    folder = written(tmp_path / "bundle")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-100] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(BundleError, match="does not match the digest"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 2}, "format_version 2, but this distrain reads 1"),
        ({"classes": ["a"]}, "do not fit digits-cnn"),
        ({"target": "box"}, "target"),
        ({"sieve": 1}, "sieve"),
    ],
)
def test_invalid_description_is_one_sentence(tmp_path: Path, change: dict[str, object], words: str) -> None:
    file = written(tmp_path / "bundle") / "bundle.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(BundleError, match=words) as raised:
        load(tmp_path / "bundle")
    assert "\n" not in str(raised.value)


def test_folder_that_is_not_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        load(tmp_path)


def test_error_names_the_missing_module_of_a_user_model(tmp_path: Path) -> None:
    file = written(tmp_path / "bundle") / "bundle.json"
    description = json.loads(file.read_text())
    description["model"]["name"] = "nowhere.nets:build"
    file.write_text(json.dumps(description))
    with pytest.raises(RecipeError, match="no module 'nowhere"):
        load(tmp_path / "bundle")


def test_error_names_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no picture")
    for picture, words in ((tmp_path / "bad.png", "bad.png cannot be read"), (tmp_path / "no.png", "no such file")):
        with pytest.raises(DataError, match=words):
            make_bundle().predict([picture])
    with pytest.raises(DataError, match=r"1 channel, \[c, h, w\]"):
        make_bundle().predict([torch.zeros(3, 8, 8)])
