"""The built-in recipes train on real images, in one process and in two, and say how it went."""

from pathlib import Path

import pytest

from tests.cli_runner import distrain, fit, metrics, status


def test_digits_reaches_98_percent(tmp_path: Path) -> None:
    done = fit("--run=run", cwd=tmp_path)
    found = status(tmp_path / "run")
    assert found["state"] == "finished"
    assert found["last"]["val/top1"] >= 0.98
    assert "finished" in done.out
    assert "distrain runs show" in done.out


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_cifar10_trains_on_real_images(tmp_path: Path, real_images: Path, processes: int) -> None:
    fit(
        "cifar10",
        f"--data={real_images / 'cifar10'}",
        "--set=data.val_samples=1000",
        f"--procs={processes}",
        "--set=train.max_steps=30",
        "--set=log.every_steps=10",
        "--set=optimizer.lr=0.05",
        "--run=run",
        cwd=tmp_path,
    )
    records = metrics(tmp_path / "run")
    losses = [record["train/loss"] for record in records]
    assert [record["step"] for record in records] == [10, 20, 30]
    assert losses[-1] < losses[0]
    assert 0.10 < records[-1]["val/top1"] < 1


@pytest.mark.parametrize(
    ("recipe", "images", "more"),
    [
        ("ants-bees-resnet18", "hymenoptera", ["model.freeze=[backbone]"]),
        ("cifar10-lenet", "cifar10", []),
        pytest.param("cifar10-plain", "cifar10", [], marks=pytest.mark.slow),
        pytest.param("cifar10-simple-v3", "cifar10", [], marks=pytest.mark.slow),
        pytest.param("cifar10-vgg16", "cifar10", ["data.batch_size=8"], marks=pytest.mark.slow),
        pytest.param(
            "cifar10-vgg16",
            "cifar10",
            ["data.batch_size=8", "model.head=replace", "model.head_name=classifier.6"],
            marks=pytest.mark.slow,
        ),
        pytest.param("flowers-alexnet", "hymenoptera", [], marks=pytest.mark.slow),
        pytest.param("mobilenet-v2", "hymenoptera", ["data.batch_size=8"], marks=pytest.mark.slow),
        pytest.param("se-resnet50", "hymenoptera", ["data.batch_size=8", "model.weights=null"], marks=pytest.mark.slow),
        pytest.param("imagenet-resnet50", "hymenoptera", ["data.batch_size=8"], marks=pytest.mark.slow),
    ],
)
def test_lesson_trains_on_real_images(
    tmp_path: Path, real_images: Path, recipe: str, images: str, more: list[str]
) -> None:
    few = ["train.max_steps=3", "log.every_steps=1", "data.num_workers=1", "data.val_samples=40", *more]
    fit(recipe, f"--data={real_images / images}", *(f"--set={change}" for change in few), "--run=run", cwd=tmp_path)
    records = metrics(tmp_path / "run")
    assert [record["step"] for record in records] == [1, 2, 3]
    assert all(0 < record["train/loss"] < 20 for record in records)
    assert 0 <= records[-1]["val/top1"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_imagefolder_resnet18_trains_on_real_images(tmp_path: Path, real_images: Path, processes: int) -> None:
    fit(
        "imagefolder-resnet18",
        f"--data={real_images / 'hymenoptera'}",
        f"--procs={processes}",
        "--set=train.max_steps=4",
        "--set=log.every_steps=2",
        "--run=run",
        cwd=tmp_path,
    )
    records = metrics(tmp_path / "run")
    assert [record["step"] for record in records] == [2, 4]
    assert 0 < records[-1]["val/top1"] < 1
    assert all(0 < record["train/loss"] < 5 for record in records)


@pytest.mark.slow
def test_accumulation_gives_the_losses_of_the_whole_batch_at_once(tmp_path: Path) -> None:
    """A network without BatchNorm or dropout: the cut into micro-batches only changes rounding.

    An epoch's last window has 30 samples (1,438 = 11 x 128 + 30): in micro-batches of 32 it leaves rank 1 idle.
    """
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "def mlp(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, num_classes))\n"
    )
    arguments = ["--set=model.name=nets:mlp", "--set=data.batch_size=128", "--set=train.epochs=2"]
    for run, more in {
        "whole": ["--procs=1"],
        "cut": ["--procs=1", "--set=train.micro_batch_size=16"],
        "dealt": ["--procs=2", "--set=train.micro_batch_size=16"],
        "idle": ["--procs=2", "--set=train.micro_batch_size=32"],
    }.items():
        fit(*arguments, *more, f"--run={run}", cwd=tmp_path)
    whole = train_losses(tmp_path / "whole")
    assert len(whole) == 3
    for run in ("cut", "dealt", "idle"):
        assert train_losses(tmp_path / run) == pytest.approx(whole, rel=1e-3)
        assert status(tmp_path / run)["last"]["val/loss"] == pytest.approx(
            status(tmp_path / "whole")["last"]["val/loss"], rel=1e-3
        )


def train_losses(run: Path) -> list[float]:
    return [record["train/loss"] for record in metrics(run) if "train/loss" in record]


def test_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    fit("--set=train.max_steps=5", "--run=run", cwd=tmp_path)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    done = distrain("fit", "--run=run", cwd=tmp_path)
    assert done.code == 0
    assert "has already finished" in done.out
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
