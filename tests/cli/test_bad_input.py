"""Bad input ends in one clear sentence and exit code 2, and leaves nothing half-made behind."""

import fcntl
from pathlib import Path

import pytest
from PIL import Image

from distrain.runs.directory import RunDirectory
from tests.cli_runner import Done, distrain, fit


def assert_one_sentence(done: Done, *words: str) -> None:
    assert done.code == 2, done.out + done.err
    assert "Traceback" not in done.out + done.err
    assert done.err.startswith("distrain: ")
    assert done.err.count("\n") == 1
    for word in words:
        assert word in done.err


def make_images(folder: Path, *classes: str, count: int = 2) -> None:
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (40, 40), (number * 60, 20, 90)).save(folder / name / f"{number}.jpg")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digit"], ["'digit'", "did you mean digits?"]),
        (["missing.yaml"], ["missing.yaml does not exist"]),
        (["--set=train.epoch=3"], ["train.epoch", "did you mean train.epochs?"]),
        (["--set=data.batch_size=abc"], ["data.batch_size=abc", "whole number"]),
        (["--set=optimizer.lr=-1"], ["optimizer.lr=-1", "greater than 0"]),
        (["--set=precision=fp8"], ["precision=fp8", "bf16"]),
        (["--set=epochs"], ["section.key=value"]),
        (["--set=optimizer.name=adam"], ["optimizer.momentum", "--set optimizer.momentum=null"]),
        (["--set=data.batch_size=63", "--procs=2"], ["data.batch_size=63", "2 processes", "data.batch_size=64"]),
        (["--set=train.micro_batch_size=24"], ["micro-batches of 24", "data.batch_size=72"]),
        (["--device=gpu"], ["--device gpu: must be cpu or cuda; did you mean cuda?"]),
        (["--gpus=4"], ["no GPU", "distrain fit digits --device cpu --procs 4"]),
        (["--procs=0"], ["--procs must be 1 or more, not 0"]),
        (["--gpus=1", "--procs=1"], ["remove one"]),
        (["imagefolder-resnet18"], ["--data DIR"]),
        (["imagefolder-resnet18", "--data=nowhere"], ["nowhere does not exist"]),
    ],
)
def test_bad_request_is_one_sentence(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    assert_one_sentence(distrain("fit", *arguments, cwd=tmp_path, env={"CUDA_VISIBLE_DEVICES": ""}), *words)
    assert not list(tmp_path.iterdir())


def test_folder_without_splits_or_classes_is_named(tmp_path: Path) -> None:
    (tmp_path / "data" / "val").mkdir(parents=True)
    arguments = ["fit", "imagefolder-resnet18", "--data=data"]
    assert_one_sentence(distrain(*arguments, cwd=tmp_path), "must contain train/ and val/")
    (tmp_path / "data" / "train").mkdir()
    assert_one_sentence(distrain(*arguments, cwd=tmp_path), "no class folders")
    (tmp_path / "data" / "train" / "ants").mkdir()
    assert_one_sentence(distrain(*arguments, cwd=tmp_path), "no images in them")


def test_data_without_a_validation_part_is_told_how_to_get_one(tmp_path: Path) -> None:
    make_images(tmp_path / "data" / "train", "ants", "bees")
    done = distrain("fit", "imagefolder-resnet18", "--data=data", cwd=tmp_path)
    assert_one_sentence(done, "has no validation samples", "--set data.val_fraction=0.2")


def test_bad_row_of_a_manifest_is_named_before_the_start(tmp_path: Path) -> None:
    (tmp_path / "photos.csv").write_text("path,label\nnone.jpg,cat\n")
    done = distrain("fit", "--set=data.source=manifest", "--data=photos.csv", cwd=tmp_path)
    assert_one_sentence(done, "photos.csv, line 2 names image", "does not exist")
    assert not (tmp_path / "runs").exists()


def test_validation_class_that_train_lacks_is_named(tmp_path: Path) -> None:
    make_images(tmp_path / "data" / "train", "ants")
    make_images(tmp_path / "data" / "val", "ants", "bees")
    done = distrain("fit", "imagefolder-resnet18", "--data=data", cwd=tmp_path)
    assert_one_sentence(done, "class 'bees', which train does not have")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "more", [pytest.param(["--procs=1", "--set=data.num_workers=0"], marks=pytest.mark.slow), ["--procs=2"]]
)
def test_unreadable_image_is_named_and_the_new_run_is_removed(tmp_path: Path, more: list[str]) -> None:
    make_images(tmp_path / "data" / "train", "ants", "bees", count=4)
    make_images(tmp_path / "data" / "val", "ants", "bees")
    bad = tmp_path / "data" / "train" / "bees" / "1.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    done = distrain("fit", "imagefolder-resnet18", "--data=data", "--set=model.name=cifar-cnn", *more, cwd=tmp_path)
    assert_one_sentence(done, str(bad), "cannot be read")
    assert not (tmp_path / "runs").exists()


def test_label_out_of_range_names_the_sample(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Images:\n"
        "    classes = ['a', 'b']\n"
        "    def __len__(self):\n"
        "        return 64\n"
        "    def __getitem__(self, index):\n"
        "        return torch.zeros(1, 8, 8, dtype=torch.uint8), 7 if index == 50 else 0\n"
        "def images(split, path):\n"
        "    return Images()\n"
    )
    done = distrain("fit", "--set=data.source=mine:images", cwd=tmp_path)
    assert_one_sentence(done, "sample 50 of mine:images has label 7", "0 to 1")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.name=resnet19", ["did you mean resnet18?"]),
        ("model.name=nowhere:net", ["no module 'nowhere'"]),
        ("augment.train=[Flop]", ["unknown transform 'Flop'"]),
        ("data.source=digit", ["did you mean digits?"]),
        ("model.weights=none.pth", ["no such file"]),
        ("model.name=alexnet", ["alexnet does not accept images of 1x8x8"]),
        ("augment.eval=[Resize: {size: 9}, Grayscale: {num_output_channels: 3}]", ["3x9x9", "3 channels"]),
    ],
)
def test_name_that_only_the_training_knows_is_one_sentence(tmp_path: Path, override: str, words: list[str]) -> None:
    assert_one_sentence(distrain("fit", f"--set={override}", cwd=tmp_path), *words)
    assert not (tmp_path / "runs").exists()


def test_run_directory_keeps_its_recipe_its_place_and_its_holder(tmp_path: Path) -> None:
    fit("--set=train.max_steps=3", "--run=run", cwd=tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}
    done = distrain("fit", "digits", "--run=run", cwd=tmp_path)
    assert_one_sentence(done, "has a recipe with another train.max_steps (3, not None)")

    run = RunDirectory(tmp_path / "run")
    run.write_status(run.read_status().model_copy(update={"state": "running"}))
    with run.launcher_lock.open("a+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        assert_one_sentence(distrain("fit", "--run=run", cwd=tmp_path), "is in use by process")
    for path, content in before.items():
        assert path.name == "status.json" or path.read_bytes() == content

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").touch()
    assert_one_sentence(distrain("fit", "--run=photos", cwd=tmp_path), "contains other files but no run")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["mine.jpg"]
