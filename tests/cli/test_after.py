"""`export`, `predict` and `import` after a real training: the exported network is the evaluated one."""

import csv
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from distrain.export import load
from distrain.models.nets import DigitsCnn
from tests.cli.test_bad_input import assert_one_sentence
from tests.cli_runner import Done, command, distrain, fit, status
from tests.export.factories import validation_digits, write_digits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `run`, two epochs of digits with a moving average, its bundle in `bundle`, and pictures in `digits`."""
    folder = tmp_path_factory.mktemp("after")
    fit("--set=train.epochs=2", "--set=train.ema_decay=0.9", "--run=run", cwd=folder)
    write_digits(folder / "digits", 6)
    done = distrain("export", "run", "--out=bundle", "--json", cwd=folder)
    assert done.code == 0, done.err
    (folder / "export.json").write_text(done.out)
    return folder


def predict(*arguments: str, cwd: Path, code: int = 0) -> Done:
    done = distrain("predict", *arguments, cwd=cwd)
    assert done.code == code, done.out + done.err
    return done


def test_bundle_is_the_best_checkpoint_as_it_was_evaluated(folder: Path) -> None:
    facts = json.loads((folder / "export.json").read_text())
    bundle = load(folder / "bundle")
    source = validation_digits()
    best = status(folder / "run")["best"]
    right = (bundle.predict(list(source.images)).argmax(dim=1) == source.targets).sum().item()
    assert right / len(source) == best["val/top1"]
    assert facts["step"] == bundle.description.step == best["step"]
    assert facts["weights"] == "moving average"
    assert facts["chosen"] == "the best by evaluation"
    assert (folder / "bundle" / "model.safetensors").stat().st_mode & 0o044 == 0o044


def test_export_reports_its_source_and_replaces_only_with_force(folder: Path) -> None:
    done = distrain("export", "run/checkpoints/step-00000023", "--format=torch", cwd=folder)
    assert done.code == 0, done.err
    assert "step-00000023 (as named" in done.out
    assert "moving average" in done.out
    assert "compared    on 40 real images" in done.out
    assert re.search(r"step-00000023 \(as named, val loss [\d.]+, top-1 [\d.]+%, top-5 [\d.]+%\)", done.out)
    assert (folder / "run" / "export" / "model.pt2.json").is_file()
    again = distrain("export", "run/checkpoints/step-00000023", "--format=torch", cwd=folder)
    assert_one_sentence(again, "model.pt2 exists", "--force")


def test_missing_folders_of_an_output_are_created(folder: Path) -> None:
    for form, name in (("bundle", "a/b/bundle"), ("safetensors", "c/d/m.safetensors"), ("torch", "e/f/m.pt2")):
        done = distrain("export", "run", f"--format={form}", f"--out={name}", cwd=folder)
        assert done.code == 0, done.err
        assert (folder / name).exists()
    done = distrain("import", "c/d/m.safetensors", "--out=g/h/m.safetensors", cwd=folder)
    assert done.code == 0, done.err
    assert (folder / "g/h/m.safetensors").is_file()
    assert distrain("recipes", "init", "digits", "i/j/my.yaml", cwd=folder).code == 0
    assert_one_sentence(distrain("export", "run", "--out=i/j/my.yaml/x/y", cwd=folder), "my.yaml is not a folder")


def test_run_and_bundle_predict_the_same(folder: Path) -> None:
    of_bundle = predict("bundle", "digits", "--csv", "--top-k=2", cwd=folder)
    of_run = predict("run", "digits", "--csv", "--top-k=2", "--batch-size=4", cwd=folder)
    rows = list(csv.DictReader(of_bundle.out.splitlines()))
    assert [row["image"] for row in rows] == [f"digits/{number:03}.png" for number in range(6)]
    for row, other in zip(rows, csv.DictReader(of_run.out.splitlines()), strict=True):
        assert row["class_1"] == other["class_1"]
        assert float(row["probability_1"]) == pytest.approx(float(other["probability_1"]), abs=1e-5)
    assert "the best by evaluation" in of_run.err


def test_network_is_used_without_the_data_that_it_was_trained_on(folder: Path, tmp_path: Path) -> None:
    source = validation_digits()
    images, labels = source.images.numpy(), source.targets.numpy()
    train, val = slice(64), slice(64, 96)
    named = {"train_images": images[train], "train_labels": labels[train]}
    np.savez(tmp_path / "data.npz", **named, val_images=images[val], val_labels=labels[val])  # type: ignore[arg-type]
    changes = ["data={source: tensors, path: data.npz, batch_size: 32}", "train.max_steps=2"]
    fit(*(f"--set={change}" for change in changes), "--run=run", cwd=tmp_path)
    (tmp_path / "data.npz").unlink()
    digits = [str(folder / "digits" / f"{number:03}.png") for number in range(6)]
    assert len(predict("run", *digits, cwd=tmp_path).out.splitlines()) >= 6
    assert distrain("export", "run", cwd=tmp_path).code == 0
    description = load(tmp_path / "run" / "export" / "bundle").description.preprocessing
    assert (description.image_channels, description.input_shape, description.input_dtype) == (1, (1, 8, 8), "uint8")


def test_bad_images_are_reported_in_their_place_and_the_others_are_predicted(folder: Path) -> None:
    (folder / "bad.png").write_text("no picture")
    named = ["digits/000.png", "bad.png", "missing.png", "digits/001.png"]
    rows = [json.loads(line) for line in predict("bundle", *named, "--json", cwd=folder, code=1).out.splitlines()]
    assert [row["image"] for row in rows] == named
    assert ["error" in row for row in rows] == [False, True, True, False]
    done = predict("bundle", *named, cwd=folder, code=1)
    assert len(done.out.splitlines()) == 2
    assert "bad.png cannot be read" in done.err
    assert "there is no such file" in done.err


def test_single_image_prints_each_class_and_is_shown(folder: Path) -> None:
    done = predict("bundle", "digits/000.png", "--show", cwd=folder)
    lines = done.out.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("class: ")
    assert "█" in lines[0]
    assert (folder / "000-predicted.png").read_bytes().startswith(b"\x89PNG")


def test_paths_come_from_standard_input_and_a_closed_pipe_is_not_a_failure(folder: Path) -> None:
    paths = "\n".join(f"digits/{number % 6:03}.png" for number in range(60))
    piped = " ".join(command("predict", "bundle", "-", "--batch-size=1"))
    shell = ["bash", "-o", "pipefail", "-c", f"{piped} | head -n 2"]
    done = subprocess.run(shell, input=paths, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["digits/000.png", "digits/001.png"]


def test_piped_name_that_no_file_can_have_is_reported_and_the_others_are_predicted(folder: Path) -> None:
    done = subprocess.run(
        command("predict", "bundle", "-"),
        input="digits/000.png\na\0b.png\n\0\ndigits/001.png\n",
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["digits/000.png", "digits/001.png"]
    assert done.stderr.splitlines() == [
        rf"distrain: image {name} cannot be read (there is no such file)" for name in (r"a\x00b.png", r"\x00")
    ]


def test_import_takes_an_old_file_and_training_takes_what_it_wrote(folder: Path) -> None:
    tensors = load_file(folder / "bundle" / "model.safetensors")
    torch.save({"net": {f"module.{n}": t for n, t in tensors.items()}, "epoch": 7, "acc": 97.5}, folder / "old.pth")
    done = distrain("import", "old.pth", "--model=digits-cnn", cwd=folder)
    assert done.code == 0, done.err
    for words in (f"{len(tensors)} tensors from 'net'", "epoch: 7", "acc: 97.5", "fits     digits-cnn with 10 classes"):
        assert words in done.out
    DigitsCnn(10, 1).load_state_dict(load_file(folder / "old.safetensors"))
    misfit = distrain("import", "old.pth", "--model=cifar-cnn", "--out=other.safetensors", "--json", cwd=folder)
    assert misfit.code == 1
    missing = json.loads(misfit.out)["fit"]["missing"]
    told = distrain("import", "old.pth", "--model=cifar-cnn", "--out=other.safetensors", cwd=folder)
    names = [line for line in told.out.splitlines() if line.startswith("missing")]
    assert names[-1] == f"missing  and {len(missing) - 8} more; --json lists them all"
    assert len(names) == 9
    assert not (folder / "other.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "run", "--format=tflite"], ["unknown format 'tflite'", "onnx"]),
        (["export", "nothing"], ["no run 'nothing'"]),
        (["export", "empty"], ["no checkpoint in"]),
        (["export", "run/checkpoints/step-00000023", "--best"], ["--best chooses among"]),
        (["export", "run", "--with-normalize"], ["--with-normalize", "torch and onnx"]),
        (["export", "run", "--format=onnx", "--out=model.pb"], ["does not end in .onnx"]),
        (["export", "run", "--out=digits", "--force"], ["digits is not a bundle"]),
        (["predict", "bundle", "missing.png"], ["no image missing.png"]),
        (["predict", "bundle", "-"], ["standard input has no paths of images"]),
        (["predict", "bundle", "digits", "--show"], ["--show is for a single image"]),
        (["predict", "bundle", "digits", "--csv", "--json"], ["exclude each other"]),
        (["import", "missing.pth"], ["no file missing.pth"]),
        (["import", "bundle/model.safetensors"], ["exists", "--out"]),
    ],
)
def test_bad_request_is_one_sentence(folder: Path, arguments: list[str], words: list[str]) -> None:
    (folder / "empty").mkdir(exist_ok=True)
    (folder / "empty" / "recipe.yaml").write_bytes((folder / "run" / "recipe.yaml").read_bytes())
    assert_one_sentence(distrain(*arguments, cwd=folder), *words)


def test_folder_is_predicted_without_hidden_files_and_once(folder: Path) -> None:
    write_digits(folder / "odd", 3)
    expected = predict("bundle", "odd", "--csv", cwd=folder).out
    (folder / "odd/._0.png").touch()
    (folder / "odd/__MACOSX").mkdir()
    (folder / "odd/up").symlink_to("..")
    done = predict("bundle", "odd", "--csv", cwd=folder)
    assert done.out == expected
    assert done.err.splitlines() == [
        "note: odd: skipped hidden and system files: 1 file (._0.png) and 1 folder (__MACOSX)",
        "note: odd: did not follow 1 link to a folder that is read anyway (up)",
    ]
