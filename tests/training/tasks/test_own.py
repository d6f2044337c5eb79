"""A task of the user's own that is not one is refused in a sentence, before the first step."""

from pathlib import Path

import pytest

from distrain.errors import ModelError, RecipeError, UserError
from tests.training.test_build import session_of

TASK = """
import torch
import torch.nn.functional as F

class Whole:
    def setup(self, setup): pass
    def loss(self, model, batch):
        return {"loss": F.cross_entropy(model(batch[0]), batch[1])}
    def evaluate(self, model, batch):
        outputs = model(batch[0])
        return {"loss": F.cross_entropy(outputs, batch[1], reduction="sum"), "outputs": outputs}
    def predict(self, model, images): return model(images)

class NoPredict(Whole):
    predict = None

class OneNumber(Whole):
    def loss(self, model, batch): return super().loss(model, batch)["loss"]

class NoGradient(Whole):
    def loss(self, model, batch): return {"loss": super().loss(model, batch)["loss"].detach()}

class NotANumber(Whole):
    def loss(self, model, batch): return {"loss": super().loss(model, batch)["loss"] * torch.nan}

class Vector(Whole):
    def loss(self, model, batch):
        return {"loss": F.cross_entropy(model(batch[0]), batch[1], reduction="none")}

class Reserved(Whole):
    def loss(self, model, batch): return {**super().loss(model, batch), "lr": torch.zeros(())}

class Unnamed(Whole):
    def loss(self, model, batch): return {"total": super().loss(model, batch)["loss"]}

class NoSums(Whole):
    def evaluate(self, model, batch): return None

class NoLoss(Whole):
    def evaluate(self, model, batch): return {"hits": torch.zeros(3)}

class FewRows(Whole):
    def evaluate(self, model, batch):
        found = super().evaluate(model, batch)
        return {**found, "outputs": found["outputs"][:1]}

class Trained(Whole, torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

number = 5
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_tasks.py").write_text(TASK)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "own_tasks", raising=False)
    return tmp_path


def test_whole_task_is_accepted(mine: Path) -> None:
    session = session_of(mine / "run", "task=own_tasks:Whole")
    assert session.task.form.has_outputs
    assert session.metrics.best == "loss"
    session.close()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("NoPredict", "has no predict"),
        ("Nowhere", "has no 'Nowhere'"),
        ("number", "name a class with setup, loss, evaluate and predict"),
        ("OneNumber", "loss returns float32 []"),
        ("NoGradient", "a `loss` without a gradient"),
        ("NotANumber", "the loss of the first samples is nan"),
        ("Vector", "loss returns float32 [4] as 'loss'"),
        ("Reserved", "which training itself records"),
        ("Unnamed", "loss returns total"),
        ("NoSums", "evaluate returns None"),
        ("NoLoss", "evaluate returns hits"),
        ("FewRows", "as `outputs` of 8 samples"),
        ("Trained", "has a trainable weight, layer.weight"),
    ],
)
def test_what_is_not_a_task_is_named(mine: Path, name: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        session_of(mine / "run", f"task=own_tasks:{name}")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task=distilation"], "did you mean distillation?"),
        (["task=distillation"], "needs task.teacher"),
        (["task={name: distillation, teacher: /not/there}"], "there is no such bundle, run or checkpoint"),
        (["task={name: distillation, teacher: timm.resnet0}"], "timm has no model 'resnet0'"),
        (["task={name: distillation, teacher: timm.resnet10t, dimensions: 5}"], "task.dimensions=5 is not used"),
        (["task={name: distillation, teacher: x, teacher_weights: y}"], "is for a teacher from timm"),
        (["task.temperature=2"], "task.temperature=2.0 is not used by classification"),
        (["task=segmentation"], "--set data.target=mask"),
        (["task=self-supervised", "loss={}"], "--set data.repeats=2"),
        (["task=self-supervised", "loss={}", "data.repeats=2", "train.micro_batch_size=3"], "an even number"),
        (["task=self-supervised", "loss={}", "data.repeats=2", "augment.mixup=1"], "mix classes"),
        (["task=self-supervised", "data.repeats=2"], "remove the section loss"),
        (["task=self-supervised", "loss={}", "data.repeats=2", "eval.metrics=[top1]"], "eval.metrics names top1"),
    ],
)
def test_recipe_that_does_not_go_with_its_task_is_refused(tmp_path: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        session_of(tmp_path / "run", *overrides)
    assert words in str(caught.value)


def test_pairs_of_views_that_a_smaller_last_batch_would_split_are_refused(tmp_path: Path) -> None:
    overrides = ["task={name: self-supervised, dimensions: 8}", "loss={}", "data.repeats=2"]
    with pytest.raises((RecipeError, ModelError), match=r"data\.drop_last=true"):
        session_of(tmp_path / "run", *overrides)
    session_of(tmp_path / "run", *overrides, "data.drop_last=true").close()
