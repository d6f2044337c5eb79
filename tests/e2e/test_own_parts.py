"""The user's own metrics, weights, transforms, loggers and hooks, in real runs that are killed and resumed."""

import json
from pathlib import Path

import pytest

from tests.cli_runner import QUIET, comparable, distrain, fit, metrics, status

MINE = '''
import json
import os
import random
import signal
from pathlib import Path

import numpy as np
import torch

from distrain.training.hooks.hook import Hook


def sure(power):
    return lambda logits, targets: 1 - logits.softmax(dim=1).gather(1, targets[:, None])[:, 0] ** power


def rare(targets, power=1.0):
    return (1 / np.bincount(targets))[targets] ** power


def shift(amount):
    def apply(image):
        return image.roll(random.randint(-amount, amount), dims=2)
    return apply


def noise(scale):
    def apply(images, targets):
        return images + scale * torch.randn_like(images), targets
    return apply


class Lines:
    """Writes the steps that it gets, those of the history first."""

    def __init__(self, context, path):
        self.file = Path(context.run.path, path).open("w")
        for record in context.history:
            self.write(record)

    def write(self, record):
        print(json.dumps(record), file=self.file, flush=True)
        record.clear()  # its own copy

    def close(self):
        self.file.close()


class BadLogger:
    def __init__(self, context):
        self.writes = 0

    def write(self, record):
        raise ConnectionError("nobody listens")

    def close(self):
        pass


class Watch(Hook):
    """Draws random numbers, keeps what it sees, and kills its process once."""

    def __init__(self, kill_at=None):
        self.kill_at = kill_at

    def see(self, name, event):
        random.random(), np.random.rand(), torch.rand(3)
        with Path("seen.txt").open("a") as file:
            print(name, event.step, getattr(event, "state", ""), getattr(event, "path", Path()).name, file=file)

    def on_start(self, event):
        self.see("start", event)

    def on_step_end(self, event):
        torch.rand(3)
        if event.step == self.kill_at and not Path("killed").exists():
            Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def on_record(self, event):
        assert "train/lr" in event.metrics or "val/loss" in event.metrics

    def on_evaluation(self, event):
        self.see("evaluation", event)

    def on_checkpoint(self, event):
        assert (event.path / "MANIFEST.json").exists()
        self.see("checkpoint", event)

    def on_stop(self, event):
        self.see("stop", event)

    def on_end(self, event):
        self.see("end", event)


class Raises(Hook):
    def on_step_end(self, event):
        raise ValueError("not today")


class Unmakeable(Hook):
    def __init__(self):
        raise ValueError("no such project")
'''
TRAINED = [
    "digits",
    "--set=train.epochs=3",
    "--set=train.exact=true",
    "--set=data.batch_size=96",
    "--set=train.micro_batch_size=24",
    "--set=checkpoint.every_steps=10",
    "--set=checkpoint.keep_last=9",
    "--set=eval.metrics=[top1, {torchmetrics.CohenKappa: {task: multiclass, num_classes: 10}}, "
    "{name: mine:sure, arguments: {power: 2}, recorded_as: doubt, higher_is_better: false}]",
    "--set=eval.best=doubt",
    "--set=data.sampling=mine:rare",
    "--set=data.sampling_arguments.power=0.5",
    "--set=augment.train=[{mine:shift: {amount: 1}}]",
    "--set=augment.batch=[{mine:noise: {scale: 0.05}}]",
]
WATCHED = ["--set=log.loggers=[{mine:Lines: {path: lines.jsonl}}, mine:BadLogger]"]


@pytest.fixture(autouse=True)
def own_code(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)


def test_own_parts_give_the_same_training_on_two_processes_killed_and_watched(tmp_path: Path) -> None:
    fit(*TRAINED, "--procs=1", "--run=one", cwd=tmp_path)
    hooks = "--set=hooks=[mine:Raises, {mine:Watch: {kill_at: 33}}]"
    done = fit(*TRAINED, *WATCHED, hooks, "--procs=2", "--run=two", cwd=tmp_path)
    one, two = tmp_path / "one", tmp_path / "two"
    assert (tmp_path / "killed").exists()
    assert [attempt["first_step"] for attempt in status(two)["attempts"]] == [0, 30]
    for digest in ("weights_digest", "state_digest"):
        assert status(one)[digest] == status(two)[digest]
    assert comparable(one) == comparable(two)

    evaluations = [record for record in metrics(two) if "val/loss" in record]
    assert len(evaluations) == 3
    assert all({"val/top1", "val/CohenKappa", "val/doubt"} <= set(record) for record in evaluations)
    best = min(evaluations, key=lambda record: record["val/doubt"])
    found = status(two)
    assert (found["best_by"], found["best"]["step"]) == ("doubt", best["step"])
    assert found["own_metrics"] == {"CohenKappa": True, "doubt": False}

    lines = [json.loads(line) for line in (two / "lines.jsonl").read_text().splitlines()]
    assert lines == metrics(two)
    seen = [line.split() for line in (tmp_path / "seen.txt").read_text().splitlines()]
    assert [(name, step) for name, step, *_ in seen if name in {"start", "end"}] == [
        ("start", "0"),
        ("start", "30"),
        ("end", "45"),
    ]
    assert seen[-1] == ["end", "45", "finished"]
    assert [step for name, step, *_ in seen if name == "evaluation"] == ["15", "30", "45"]
    assert (
        {"10", "15", "20", "30", "40", "45"}
        >= {step for name, step, *_ in seen if name == "checkpoint"}
        >= {"40", "45"}
    )
    log = (two / "logs" / "rank-0.log").read_text()
    assert log.count("hook mine:Raises has raised in on_step_end and is disabled (ValueError: not today, at ") == 2
    assert "warning: hook mine:Raises has raised" in done.out
    assert "writing to mine:BadLogger failed once (ConnectionError: nobody listens)" in log

    shown = distrain("runs", "show", "two", cwd=tmp_path).out
    assert "best        doubt " in shown
    assert f"at step {best['step']}" in shown
    ranked = json.loads(distrain("runs", "best", "--root=.", "--metric=val/doubt", "--json", cwd=tmp_path).out)
    assert {entry["value"] for entry in ranked} == {best["val/doubt"]}
    assert distrain("report", "two", cwd=tmp_path).code == 0
    page = (two / "report.html").read_text()
    assert "Validation doubt" in page and "Validation CohenKappa" in page


@pytest.mark.slow
def test_stop_is_seen_and_a_resume_has_the_same_weights_of_samples_and_may_have_other_hooks(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE + STOPPING)
    options = [*TRAINED, "--procs=1", "--set=train.epochs=2", "--run=run"]
    fit(*options, "--set=hooks=[mine:Stopping, mine:Watch]", cwd=tmp_path, code=75)
    seen = (tmp_path / "seen.txt").read_text().splitlines()
    step = status(tmp_path / "run")["step"]
    assert [line.split() for line in seen[-2:]] == [["stop", f"{step}"], ["end", f"{step}", "stopped"]]
    assert seen[-3].split() == ["checkpoint", f"{step}", f"step-{step:08}"]

    (tmp_path / "mine.py").write_text(MINE.replace("** power\n\n\ndef shift", "** (power + 1)\n\n\ndef shift"))
    refused = fit("--run=run", "--set=hooks=[]", cwd=tmp_path, code=2)
    assert "data.sampling=mine:rare gives other weights than before checkpoint" in refused.err
    (tmp_path / "mine.py").write_text(MINE)
    fit("--run=run", "--set=hooks=[]", cwd=tmp_path)

    done = distrain("eval", "run", "last", "--procs=2", "--json", "--no-pictures", cwd=tmp_path)
    assert done.code == 0, done.err
    last, found = metrics(tmp_path / "run")[-1], json.loads(done.out)["metrics"]
    names = ("val/CohenKappa", "val/doubt", "val/top1", "val/loss")
    assert {name: found[name] for name in names} == {name: last[name] for name in names}


STOPPING = """
class Stopping(Hook):
    def on_step_end(self, event):
        if event.step == 7:
            Path("run", "stop").touch()
"""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set=hooks=[missing:Watch]"], ["hooks=missing:Watch: there is no module 'missing' here"]),
        (["--set=hooks=[mine:Wtach]"], ["hooks=mine:Wtach", "did you mean Watch?"]),
        (
            ["--set=hooks=[{mine:Watch: {kil_at: 3}}]"],
            ["hooks=mine:Watch cannot be called with", "kil_at"],
        ),
        (["--set=hooks=[mine:Unmakeable]"], ["ValueError before the first step", "in __init__: no such project"]),
        (["--set=log.loggers=[mine:Lines]"], ["log.loggers=mine:Lines", "'path'"]),
        (["--set=log.loggers=[mine:Watch]"], ["log.loggers=mine:Watch", "write(record) and close()"]),
        (["--set=eval.metrics=[mine:sure]"], ["eval.metrics=mine:sure", "'power'"]),
        (["--set=eval.metrics=[torchmetrics.Acuracy]"], ["torchmetrics has no metric 'Acuracy'", "Accuracy"]),
        (["--procs=2", "--set=data.sampling=mine:sure"], ["data.sampling=mine:sure returns", "<lambda>"]),
        (
            ["--set=augment.batch=[{mine:shift: {amount: 1}}]"],
            ["augment.batch: mine:shift returns", "in apply", "no function of images and targets"],
        ),
    ],
)
def test_bad_reference_is_one_sentence_before_the_first_step(
    tmp_path: Path, options: list[str], words: list[str]
) -> None:
    done = distrain("fit", "digits", "--set=train.epochs=1", *options, "--run=run", *QUIET, cwd=tmp_path)
    assert done.code == 2, done.out + done.err
    assert done.err.startswith("distrain: ")
    assert done.err.count("\n") == 1
    assert "Traceback" not in done.out + done.err
    assert all(word in done.err for word in words), done.err
    assert not (tmp_path / "run").exists()
