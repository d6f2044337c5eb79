"""Each task gives the same bits on one process, on two, and after it was killed and resumed."""

import json
from pathlib import Path

import pytest
import torch

from distrain.checkpoint.load import read_model
from distrain.export import load
from distrain.runs.directory import RunDirectory
from tests.cli_runner import comparable, distrain, fit, metrics, status
from tests.e2e.test_resume import kill_after_checkpoint, start
from tests.masks import write_masks

EXACT = "--set=train={epochs: 2, exact: true, micro_batch_size: 24, ema_decay: 0.9, max_steps: 12}"
OFTEN = ["--set=log.every_steps=4", "--set=checkpoint={every_steps: 5, keep_last: 9}", "--set=eval.every_steps=6"]
DIGITS = ["digits", EXACT, "--set=data.batch_size=96", *OFTEN]
CROP = "--set=augment.train=[RandomCrop: {size: 8, padding: 1}]"

OWN = """
import torch
import torch.nn.functional as F


class Rotation:
    '''Learns by how many quarter turns an image is rotated, which needs no labels.'''

    def setup(self, setup):
        assert len(setup.classes) >= 4

    def loss(self, model, batch):
        images, _ = batch
        turns = torch.randint(4, (len(images),))
        rotated = torch.stack([image.rot90(int(turn), (1, 2)) for image, turn in zip(images, turns)])
        outputs = model(rotated)
        hits = (outputs.argmax(dim=1) == turns).float()
        return {"loss": F.cross_entropy(outputs, turns), "accuracy": hits.mean()}

    def evaluate(self, model, batch):
        images, _ = batch
        sums = {"loss": 0, "accuracy": 0}
        for turn in range(4):
            outputs = self.predict(model, images.rot90(turn, (2, 3)))
            sums["loss"] -= outputs[:, turn].log().sum() / 4
            sums["accuracy"] += (outputs.argmax(dim=1) == turn).sum() / 4
        return sums

    def predict(self, model, images):
        return model(images).softmax(dim=1)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained teacher, masks, and a task of the user's own."""
    found = tmp_path_factory.mktemp("tasks")
    write_masks(found / "masks")
    (found / "mine.py").write_text(OWN)
    fit("digits", "--set=train.max_steps=40", "--run=teacher", cwd=found)
    return found


RECIPES = {
    "distillation": [
        *DIGITS,
        CROP,
        "--set=task={name: distillation, teacher: teacher, feature_weight: 0.5}",
        "--set=model.arguments={dropout: 0.1}",
    ],
    "segmentation": [
        "digits",
        "--set=task=segmentation",
        "--set=data={source: maskfolder, path: masks, target: mask, batch_size: 16}",
        "--set=train={epochs: 5, exact: true, micro_batch_size: 4, ema_decay: 0.9, max_steps: 12}",
        "--set=model={name: unet, arguments: {width: 4, depth: 1}}",
        "--set=loss={name: cross_entropy}",
        "--set=augment={train: [{RandomCrop: {size: 12}}, RandomHorizontalFlip]}",
        *OFTEN,
    ],
    "self-supervised": [
        *DIGITS,
        "--set=augment.train=[RandomCrop: {size: 8, padding: 2}, ColorJitter: {brightness: 0.4}]",
        "--set=task={name: self-supervised, dimensions: 16}",
        "--set=loss={name: cross_entropy}",
        "--set=data.repeats=2",
        "--set=data.drop_last=true",
    ],
    "own": [*DIGITS, "--set=task=mine:Rotation"],
}
MEASURED = {
    "distillation": {"train/label_loss", "train/logit_loss", "train/feature_loss", "val/top1"},
    "segmentation": {"val/iou", "val/pixel_accuracy"},
    "self-supervised": {"val/knn"},
    "own": {"train/accuracy", "val/accuracy"},
}


OUTPUTS = {"distillation": 10, "self-supervised": 16, "own": 10}


def trained(folder: Path, task: str) -> Path:
    """Return the run of a task on one process."""
    run = folder / f"{task}-alone"
    if not run.exists():
        fit(*RECIPES[task], f"--run={run.name}", cwd=folder)
    return run


@pytest.mark.parametrize(
    "task",
    ["distillation", *(pytest.param(task, marks=pytest.mark.slow) for task in RECIPES if task != "distillation")],
)
def test_task_gives_the_same_bits_on_two_processes_and_after_a_kill(folder: Path, task: str) -> None:
    alone, broken = trained(folder, task), folder / f"{task}-broken"
    process = start([*RECIPES[task], f"--run={broken.name}", "--procs=2"], folder)
    kill_after_checkpoint(process, broken, step=5, delay_s=0.0)
    fit("--run", broken.name, "--procs=2", cwd=folder)
    assert MEASURED[task] <= {name for record in metrics(alone) for name in record}
    assert comparable(broken) == comparable(alone)
    for digest in ("weights_digest", "state_digest"):
        assert status(broken)[digest] == status(alone)[digest]
    losses = [record["train/loss"] for record in metrics(alone) if "train/loss" in record]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "task",
    [
        pytest.param("distillation", marks=pytest.mark.slow),
        "segmentation",
        pytest.param("self-supervised", marks=pytest.mark.slow),
        pytest.param("own", marks=pytest.mark.slow),
    ],
)
def test_run_of_a_task_is_evaluated_exported_and_predicts(folder: Path, task: str) -> None:
    run = trained(folder, task)
    done = distrain("eval", run.name, "--root=.", "--json", "--no-pictures", cwd=folder)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["metrics"]["val/loss"] == status(run)["best"]["val/loss"]
    assert bool(found["classes"]) == (task in {"distillation", "segmentation"})
    done = distrain("export", run.name, "--root=.", f"--out={task}-bundle", cwd=folder)
    assert done.code == 0, done.err
    photograph = str(folder / "masks" / "val" / "images" / "000.png")
    done = distrain("predict", f"{task}-bundle", photograph, "--json", cwd=folder)
    assert "Traceback" not in done.out + done.err
    if task == "segmentation":
        assert done.code == 2
        assert "gives a mask for each image" in done.err
        assert load(folder / f"{task}-bundle").predict(photograph).shape == (1, 3, 16, 16)
        return
    assert done.code == 0, done.err
    values = json.loads(done.out)
    assert len(values["values"] if task == "self-supervised" else values["predictions"]) == OUTPUTS[task]


@pytest.mark.slow
def test_changed_teacher_is_refused_in_a_sentence(folder: Path) -> None:
    options = [*RECIPES["distillation"], "--set=task.teacher=teacher-copy", "--run=student"]
    fit("digits", "--set=train.max_steps=2", "--run=teacher-copy", cwd=folder)
    fit(*options, "--set=train.max_steps=5", cwd=folder)
    (folder / "student" / "status.json").unlink()
    fit("digits", "--set=train.max_steps=3", "--run=other-teacher", cwd=folder)
    done = fit(*options, "--set=train.max_steps=5", "--set=task.teacher=other-teacher", cwd=folder, code=2)
    assert "the teacher of task=distillation has changed since checkpoint" in done.err


@pytest.mark.slow
def test_features_are_distilled_alike_by_every_strategy(folder: Path) -> None:
    """The projection of the features is trained in the network's pass, where weights are gathered and reduced."""
    last = {}
    for strategy in ("auto", "ddp", "fsdp"):
        options = [*RECIPES["distillation"], "--set=train={epochs: 1, max_steps: 6, micro_batch_size: 24}"]
        fit(*options, f"--set=parallel.strategy={strategy}", "--procs=2", f"--run={strategy}", cwd=folder)
        last[strategy] = metrics(folder / strategy)[-1]
    for name in ("val/loss", "train/loss", "train/feature_loss"):
        assert last["ddp"][name] == pytest.approx(last["auto"][name], rel=1e-3)
        assert last["fsdp"][name] == pytest.approx(last["auto"][name], rel=1e-3)


@pytest.mark.slow
def test_linear_probe_starts_from_a_self_supervised_run(folder: Path) -> None:
    run = trained(folder, "self-supervised")
    options = [f"--set=model.weights={run}", "--set=model.freeze=[backbone]", "--set=train.max_steps=20"]
    done = fit("digits", *options, "--run=probe", cwd=folder)
    assert "initialised, not loaded: fc" in done.out + done.err
    before, after = (checkpoint_weights(path) for path in (run, folder / "probe"))
    assert before["features.0.0.weight"].equal(after["features.0.0.weight"])
    assert before["fc.weight"].shape != after["fc.weight"].shape


def checkpoint_weights(run: Path) -> dict[str, torch.Tensor]:
    best = RunDirectory(run).checkpoints / f"step-{status(run)['best']['step']:08}"
    return read_model(best)
