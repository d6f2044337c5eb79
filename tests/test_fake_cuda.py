"""A training and an evaluation on a GPU put no tensors of the CPU among those of the GPU, and never wait for it."""

from pathlib import Path

import pytest
from PIL import Image

from distrain.config import load_recipe
from distrain.config.load import builtin_recipes
from tests.data.writing import write
from tests.fake_cuda import fake_gpu, run_evaluation, session_on_gpu, take_steps

QUIET = ["log={tensorboard: false, wandb: disabled}"]
DIGITS = ["data.train_samples=640", "data.val_samples=64"]
EVERY_METRIC = "top1, top5, f1, precision, recall, auroc, average_precision, accuracy_per_class, confusion_matrix"
OPTIONS = {
    "classes that weigh": ["loss.class_weights=balanced"],
    "mixed, classes that weigh": ["augment.mixup=0.2", "loss.class_weights=balanced"],
    "mixed, labels that weigh": ["augment.cutmix=1.0", "loss={name: bce, pos_weight: [2.0]}"],
    "mixed": ["augment.mixup=0.2", "augment.cutmix=1.0"],
    "focal": ["loss={name: focal}"],
    "every metric": [f"eval.metrics=[{EVERY_METRIC}]"],
    "views": ["eval.flips=true", "eval.shift=1"],
    "sizes": ["augment.sizes=[[0, 8], [1, 12]]"],
    "bf16, channels last": ["precision=bf16", "compute.memory_format=channels_last"],
    "fp16, clipped": ["precision=fp16", "train.clip_norm=1.0"],
    "recorded": ["log.every_steps=3"],
    "recorded, clipped": ["log.every_steps=3", "train.clip_norm=1.0"],
    "recorded, fp16": ["log.every_steps=3", "precision=fp16"],
    "recorded, fp16, clipped": ["log.every_steps=3", "precision=fp16", "train.clip_norm=1.0"],
    "adamw, fp16": ["precision=fp16", "optimizer={name: adamw, lr: 0.01}"],
    "rmsprop": ["optimizer={name: rmsprop, lr: 0.01}"],
    "slow weights and averages": ["train.ema_decay=0.99", "train.lookahead={every_steps: 2}"],
    "exact": ["train={epochs: 1, exact: true, micro_batch_size: 16, ema_decay: 0.9}"],
    "exact, fp16": ["train={epochs: 1, exact: true, micro_batch_size: 16}", "precision=fp16"],
    "accumulated": ["train.micro_batch_size=16"],
    "auto micro-batch": ["train.micro_batch_size=auto", "data.batch_size=4"],
    "frozen for an epoch": ["model.freeze=[backbone]", "model.unfreeze_epochs={backbone: 1}"],
    "balanced, repeated": ["data.repeats=2", "data.sampling=balanced"],
    "cutout and crops": [
        "augment.train=[{RandomCrop: {size: 8, padding: 2, fill: [3]}}, RandomVerticalFlip, {Cutout: {size: 3}}]"
    ],
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images for every recipe: ten classes of four, to train, to validate and to test."""
    folder = tmp_path_factory.mktemp("images")
    for split in ("train", "val", "test"):
        for number in range(40):
            write(folder / split / f"class-{number % 10}" / f"{number}.png", Image.new("RGB", (32, 32)))
    return folder


def check(
    name: str, overrides: list[str], folder: Path, *, free_bytes: int = 80 << 30, data: Path | None = None
) -> None:
    """Train three steps and evaluate on a GPU, and see that the host waits for it in neither."""
    recipe = load_recipe(name, overrides=[*QUIET, *overrides], data=None if data is None else str(data))
    with fake_gpu(free_bytes=free_bytes):
        session = session_on_gpu(recipe, folder / "run")
        assert take_steps(session, num_steps=3) == []
        assert run_evaluation(session) == []


@pytest.mark.parametrize("overrides", OPTIONS.values(), ids=OPTIONS)
def test_no_option_mixes_devices_or_waits_for_the_gpu(overrides: list[str], tmp_path: Path) -> None:
    check("digits", [*DIGITS, *overrides], tmp_path)


@pytest.mark.parametrize("name", ["mixed, classes that weigh", "mixed, labels that weigh", "cutout and crops"])
def test_images_that_do_not_fit_on_the_gpu_come_there_without_a_wait(name: str, tmp_path: Path) -> None:
    check("digits", [*DIGITS, *OPTIONS[name]], tmp_path, free_bytes=1000)


QUICK = {"digits", "cifar10", "cifar10-fast", "imagefolder-resnet18"}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in builtin_recipes()]
)
def test_no_recipe_mixes_devices_or_waits_for_the_gpu(name: str, images: Path, tmp_path: Path) -> None:
    small = ["data.batch_size=8", "data.num_workers=0", "train.epochs=2", "model.weights=null"]
    if name == "digits":
        check(name, DIGITS, tmp_path)
    else:
        check(name, small, tmp_path, data=images)
