"""`distrain eval` on a real run: the numbers of training's own evaluation, whatever the number of processes."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix

from distrain.config import Data
from distrain.data.sources.registry import open_sources
from distrain.evaluation.results import read_predictions
from distrain.export import load
from distrain.runs.directory import RunDirectory
from distrain.runs.evaluations import read_evaluations
from tests.cli_runner import Done, command, distrain, end_of, fit, status, wait_for_phase, wait_until


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examined")
    fit(
        "--set=train.epochs=2",
        "--set=train.ema_decay=0.9",
        "--set=loss.class_weights=balanced",
        "--run=run",
        cwd=folder,
    )
    return folder / "run"


def examine(run: Path, *arguments: str) -> Done:
    done = distrain("eval", str(run), *arguments, cwd=run.parent)
    assert done.code == 0, done.err
    return done


def test_any_number_of_processes_finds_what_training_found(run: Path) -> None:
    found = [json.loads(examine(run, "--json", "--no-pictures", *more).out) for more in ([], ["--procs=3"])]
    assert found[0] == found[1]
    last = status(run)["best"]
    assert {name: last[name] for name in found[0]["metrics"]} == found[0]["metrics"]
    assert found[0]["weights"] == "moving average"


def test_loss_is_that_of_the_split_that_was_evaluated(run: Path) -> None:
    out = examine(run, "--split=train", "--no-pictures").out
    assert re.search(r"^train       1,438 samples: train loss [\d.]+, top-1 ", out, re.MULTILINE)
    assert "val loss" not in out


def test_every_sample_has_a_prediction_and_the_worst_are_shown(run: Path) -> None:
    out = examine(run, "--metrics=top1,f1", "--set=eval.batch_size=50").out
    folder = next(Path(line.split()[1]) for line in out.splitlines() if line.startswith("folder"))
    answers = read_predictions(RunDirectory(folder))
    wrong = answers.targets != answers.predictions
    assert answers.confusion.sum() == len(wrong) == 359
    assert np.array_equal(answers.confusion, confusion_matrix(answers.targets, answers.predictions))
    mistakes = json.loads((folder / "findings.json").read_text())["mistakes"]
    worst = np.argmax(np.where(wrong, answers.scores, 0))
    assert (mistakes[0]["index"], mistakes[0]["badness"]) == (worst, answers.scores[worst])
    assert mistakes[0]["prediction"] == str(answers.predictions[worst])
    assert "F1" in out
    assert f"mistake     sample {worst}: is {answers.targets[worst]}, predicted {answers.predictions[worst]}" in out
    for name in ("confusion.png", "mistakes.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 100
    assert [mistake["image"] for mistake in mistakes] == [f"mistakes/{i:03}.png" for i in range(len(mistakes))]
    pixels = open_sources(Data(source="digits", batch_size=1))["val"].images[:, 0].numpy()  # type: ignore[attr-defined]
    for mistake in mistakes:
        with Image.open(folder / mistake["image"]) as picture:
            assert np.array_equal(np.asarray(picture.convert("L")), pixels[mistake["index"]])
    (result,) = (result for result in read_evaluations(RunDirectory(run)) if result.path == folder)
    matrix = result.read_confusion()
    assert matrix is not None
    assert np.array_equal(matrix.counts, answers.confusion)
    assert [mistake.image for mistake in result.mistakes] == [mistake["image"] for mistake in mistakes]


def test_pictures_of_an_earlier_evaluation_do_not_stay(run: Path) -> None:
    for more, count in (([], 3), (["--no-pictures"], 0)):
        examine(run, "--set=eval.batch_size=70", *more)
        newest = read_evaluations(RunDirectory(run))[0]
        pictures = [newest.confusion_image, newest.mistakes_image, newest.mistakes[0].image]
        assert sum(picture is not None for picture in pictures) == count
        assert len(list(newest.path.rglob("*.png"))) == (len(newest.mistakes) + 2 if count else 0)


def test_mistakes_have_the_probability_that_the_exported_network_gives(run: Path) -> None:
    mistakes = json.loads(examine(run, "--json", "--no-pictures").out)["mistakes"]
    assert mistakes
    assert distrain("export", str(run), "--out=net", cwd=run.parent).code == 0
    bundle = load(run.parent / "net")
    images = open_sources(Data(source="digits", batch_size=1))["val"].images  # type: ignore[attr-defined]
    wrong = torch.stack([bundle.prepare(images[mistake["index"]]) for mistake in mistakes])
    probabilities = bundle.predict_prepared(wrong)
    assert [str(guess) for guess in probabilities.argmax(dim=1).tolist()] == [m["prediction"] for m in mistakes]
    assert [m["badness"] for m in mistakes] == pytest.approx(probabilities.amax(dim=1).tolist(), rel=1e-5)
    assert sorted((m["badness"] for m in mistakes), reverse=True) == [m["badness"] for m in mistakes]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "there is no run 'nowhere'"),
        (["run", "--metrics=mae"], "eval.metrics names mae, which is not for data whose target is class"),
        (["run", "--data=nowhere"], "nowhere does not exist"),
        (["run", "--gpus=9"], "9 were requested"),
        (["run", "--set=augment.eval=[{Resize: {size: 1}}]"], "does not accept images of 1x1x1 pixels"),
    ],
)
def test_bad_request_is_one_sentence(run: Path, arguments: list[str], words: str) -> None:
    done = distrain("eval", *arguments, cwd=run.parent)
    assert done.code == 2
    assert words in done.err
    assert len(done.err.splitlines()) == 1


def photographs(folder: Path, numbers: range) -> None:
    for name, value in (("dark", 40), ("light", 200)):
        (folder / name).mkdir(parents=True)
        for number in numbers:
            pixels = np.random.default_rng(number).integers(value - 30, value + 30, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def test_all_of_other_data_without_splits_is_evaluated(tmp_path: Path) -> None:
    photographs(tmp_path / "photos", range(8))
    photographs(tmp_path / "others", range(100, 103))
    for folder in ("photos", "others"):
        (tmp_path / folder / "dark/._0.png").touch()
        (tmp_path / folder / "dark/up").symlink_to("..")
    changes = ["data.val_fraction=0.25", "data.val_samples=3"]
    changes += ["data.num_workers=0", "model.name=lenet", "train.max_steps=2"]
    fixed = ["augment={mean: null, std: null}", "train.threads=1"]
    settings = [f"--set={change}" for change in changes + fixed]
    done = fit("imagefolder-resnet18", "--data=photos", "--run=run", *settings, cwd=tmp_path)
    notes = [
        f"note: {tmp_path / 'photos'}: skipped hidden and system files: 1 file (dark/._0.png)",
        f"note: {tmp_path / 'photos'}: did not follow 1 link to a folder that is read anyway (dark/up)",
    ]
    assert [line for line in done.out.splitlines() if line.startswith("note: ")] == notes
    counts = {}
    for more in ([], ["--data=photos"], ["--data=others"], ["--data=others", "--split=train"]):
        done = examine(tmp_path / "run", "--json", "--no-pictures", *more)
        found = json.loads(done.out)
        if not more:
            assert [line for line in done.err.splitlines() if line.startswith("note: ")] == notes
        counts[tuple(more)] = (found["split"], found["num_samples"])
    assert list(counts.values()) == [("val", 3), ("val", 3), ("all", 6), ("all", 6)]


SLOW_LOSS = """
import os, time, torch
def loss(logits, targets):
    if "DAWDLE" in os.environ:
        time.sleep(1000)
    return torch.nn.functional.cross_entropy(logits, targets)
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_ends_an_evaluation_in_the_middle_of_a_batch(tmp_path: Path, processes: int) -> None:
    (tmp_path / "slow.py").write_text(SLOW_LOSS)
    fit("--set=train.max_steps=2", "--set=loss={name: 'slow:loss'}", "--run=run", cwd=tmp_path)
    process = subprocess.Popen(
        command("eval", "run", f"--procs={processes}"),
        cwd=tmp_path,
        env={**os.environ, "DAWDLE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_until(lambda: any(tmp_path.glob("run/evaluations/*/heartbeats/rank-0.json")), "the examination")
    (folder,) = tmp_path.glob("run/evaluations/*")
    wait_for_phase(folder, "evaluate")
    process.send_signal(signal.SIGINT)
    done = end_of(process, timeout_s=60)
    assert done.code == 130, done.out
    assert "stopped on request; nothing was saved" in done.out
    assert "Traceback" not in done.out
    assert not folder.exists()
