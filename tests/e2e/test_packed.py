"""The same recipe trains to the same bits from a folder and from the packs of it."""

import json
import shutil
from pathlib import Path

import pytest

from tests.cli_runner import distrain, fit
from tests.e2e.test_exact import facts

RECIPE = [
    "imagefolder-resnet18",
    "--device=cpu",
    "--set=model.name=cifar-simple-v3",
    "--set=augment.train=[RandomResizedCrop: {size: 32, antialias: true}, RandomHorizontalFlip]",
    "--set=augment.eval=[Resize: {size: 40, antialias: true}, CenterCrop: {size: 32}]",
    "--set=train.max_steps=5",
    "--set=log.every_steps=1",
]


@pytest.fixture
def folder(tmp_path: Path, real_images: Path) -> Path:
    for split, count in (("train", 10), ("val", 4)):
        for name in ("ants", "bees"):
            below = tmp_path / "photos" / split / name
            below.mkdir(parents=True)
            for image in sorted((real_images / "hymenoptera" / split / name).iterdir())[:count]:
                shutil.copy(image, below)
    return tmp_path


@pytest.mark.slow
def test_packs_train_to_the_bits_of_the_folder(folder: Path) -> None:
    fit(*RECIPE, "--data=photos", "--run=folder", cwd=folder)
    expected = facts(folder / "folder")
    for form, more in (("jpeg", "--set=data.num_workers=0"), ("pixels", "--procs=1")):
        done = distrain("data", "pack", "photos", form, f"--format={form}", "--verify", "--json", cwd=folder)
        assert done.code == 0, done.err
        assert json.loads(done.out)["images"] == {"train": 20, "val": 8}
        fit(*RECIPE, f"--data={form}", f"--run=run-{form}", more, cwd=folder)
        assert facts(folder / f"run-{form}") == expected


@pytest.mark.slow
def test_damaged_pack_and_broken_image_end_with_a_sentence(folder: Path) -> None:
    broken = next((folder / "photos" / "train" / "bees").iterdir())
    broken.write_bytes(broken.read_bytes()[:300])
    done = distrain("data", "pack", "photos", cwd=folder)
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert broken.name in done.err
    done = distrain("data", "pack", "photos", "--skip-bad", cwd=folder)
    assert done.code == 0, done.err
    assert "19 train and 8 val" in done.out
    assert broken.name in done.out
    with (folder / "photos.packed" / "train.index.npy").open("r+b") as file:
        file.truncate(500)
    done = distrain("fit", *RECIPE, "--data=photos.packed", cwd=folder)
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert "train.index.npy has 500 bytes" in done.err
