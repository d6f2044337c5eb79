"""No command ends in a traceback: read-only disks, other users' and damaged runs, a closed output, every --help."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from PIL import Image

from distrain.cli.app import app
from distrain.runs.directory import RunDirectory
from distrain.runs.format import FORMAT_VERSION
from distrain.system import locks
from tests.cli.walker import Walked, walk
from tests.cli_runner import QUIET, fit

# Representative arguments: RUN is a finished run, FAILED one that can be continued, LIVE one that is being trained.
ARGUMENTS = {
    "fit": ["--run=runs/failed", "--device=cpu"],
    "submit": ["--run=runs/failed", "--procs=1"],
    "sweep": ["digits", "--param=optimizer.lr=log(0.1, 1)", "--dry-run"],
    "stop": ["runs/live"],
    "cancel": ["runs/live"],
    "priority": ["runs/live", "3"],
    "queue": [],
    "serve": ["--systemd"],
    "resume": ["runs/failed"],
    "logs": ["runs/done"],
    "stacks": ["runs/live"],
    "report": ["runs/done"],
    "recipes list": [],
    "recipes show": ["digits"],
    "recipes init": ["digits", "mine.yaml"],
    "recipes keys": ["train"],
    "runs list": [],
    "runs show": ["runs/done"],
    "runs compare": ["runs/done", "runs/failed"],
    "runs best": [],
    "runs tag": ["runs/done", "baseline"],
    "runs note": ["runs/done", "a note"],
    "runs rm": ["runs/done"],
    "devices list": [],
    "devices drain": ["cpu-0"],
    "devices undrain": ["cpu-0"],
    "launch list": [],
    "launch show": ["gpu-4"],
    "checkpoints list": ["runs/done"],
    "checkpoints verify": ["runs/done"],
    "checkpoints show": ["runs/done"],
    "checkpoints prune": ["runs/done", "--keep-last=1"],
    "checkpoints average": ["runs/done", "runs/failed"],
    "checkpoints consolidate": ["runs/done", "model.safetensors"],
    "data check": ["photos", "--workers=1"],
    "data info": ["photos", "--workers=1"],
    "data pack": ["photos", "--jobs=1"],
    "eval": ["runs/done", "--device=cpu", "--no-pictures"],
    "predict": ["runs/done", "photos/train/ants/0.jpg", "--show", "--device=cpu"],
    "export": ["runs/done"],
    "import": ["weights.safetensors"],
    "bench": ["--root=runs", "--device=cpu", "--procs=1"],
    "plan": ["--root=runs", "--procs=1"],
    "verify": ["--procs=none"],
    "doctor": [],
}
READING = [
    "sweep",
    "logs",
    "queue",
    "serve",
    "recipes list",
    "recipes show",
    "recipes keys",
    "runs list",
    "runs show",
    "devices list",
    "runs compare",
    "runs best",
    "launch list",
    "launch show",
    "checkpoints list",
    "checkpoints verify",
    "checkpoints show",
    "data check",
]


# They write elsewhere, or have another fault to name first.
NOT_OF_THE_DISK = {"submit", "priority", "verify", "doctor", "stacks", "import", "devices drain", "devices undrain"}


def command(name: str) -> list[str]:
    return [*name.split(), *ARGUMENTS[name]]


def names_of_all_commands() -> list[str]:
    def below(group: typer.core.TyperGroup, prefix: str) -> Iterator[str]:
        for name, entry in group.commands.items():
            if isinstance(entry, typer.core.TyperGroup):
                yield from below(entry, f"{prefix}{name} ")
            else:
                yield f"{prefix}{name}"

    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return list(below(group, ""))


def assert_told(walked: Walked) -> None:
    words = f"{walked.arguments} ends with {walked.code}\n{walked.out}\n{walked.err}"
    assert walked.code in {0, 1, 2}, words
    assert "Traceback" not in walked.out + walked.err, words
    assert "Logging error" not in walked.err, words
    if walked.code == 2:
        assert walked.err.count("distrain: ") == 1, words


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs and pictures; its parents can be searched by all users."""
    folder = tmp_path_factory.mktemp("trained")
    fit("--run=runs/done", "--set=train.max_steps=2", "--device=cpu", "--procs=1", cwd=folder)
    for name in ("failed", "live"):
        shutil.copytree(folder / "runs" / "done", folder / "runs" / name)
        run = RunDirectory(folder / "runs" / name)
        status = run.read_status()
        run.write_status(status.model_copy(update={"state": "failed" if name == "failed" else "running"}))
    for split in ("train", "val"):
        for number, name in enumerate(("ants", "bees")):
            (folder / "photos" / split / name).mkdir(parents=True)
            for count in range(2):
                color = (100 * number, 20 + 50 * count, 90 if split == "train" else 9)
                Image.new("RGB", (40, 40), color).save(folder / "photos" / split / name / f"{count}.jpg")
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the folder, in which a process holds the lock of `runs/live`."""
    copy = tmp_path / "place"
    shutil.copytree(trained, copy)
    (copy / "weights.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with locks.hold(copy / "runs" / "live" / "launcher-lock"):
        yield copy


def test_every_command_has_representative_arguments() -> None:
    assert sorted(ARGUMENTS) == sorted(names_of_all_commands())


@pytest.mark.slow
def test_every_help_is_printed_in_any_encoding_and_to_a_closed_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helps = [[*name.split(), "--help"] for name in ("", *ARGUMENTS, "recipes", "runs", "launch", "checkpoints", "data")]
    for walked in walk(helps[::6], cwd=tmp_path, closed=[1], torch=False):
        assert_told(walked)
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    for walked in walk(helps, cwd=tmp_path, torch=False):
        assert_told(walked)
        assert walked.code == 0
        assert "Usage" in walked.out


@pytest.mark.slow
def test_no_command_ends_in_a_traceback_with_a_closed_output(place: Path) -> None:
    slow = {"fit", "resume", "bench", "plan", "eval", "stop", "data info", "data pack", "doctor", "import"}
    names = [name for name in ARGUMENTS if name not in slow]
    for walked in walk([command(name) for name in names], cwd=place, closed=[0, 1]):
        assert_told(walked)


@pytest.mark.slow
def test_read_only_disk_is_one_sentence_for_commands_that_write_and_no_problem_for_others(place: Path) -> None:
    mount = f"mount --bind {place} {place} && mount -o remount,bind,ro {place}"
    under = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*under, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs a read-only file system, and none can be mounted here")
    before = sorted(place.rglob("*"))
    for walked in walk([command(name) for name in ARGUMENTS] + [["fit", "--device=cpu"]], cwd=place, under=under):
        assert_told(walked)
        name = next((name for name in ARGUMENTS if walked.arguments == command(name)), "fit")
        if name in READING:
            assert walked.code == 0, walked
        elif name not in NOT_OF_THE_DISK:
            assert walked.code == 2, walked
            assert "read-only" in walked.err, walked
            assert not re.search(r"/\.[^/]*\.\d+\b|/\.\d+\.", walked.err), walked  # the name of no draft
    assert sorted(place.rglob("*")) == before


@pytest.mark.slow
def test_names_in_any_script_and_of_any_bytes_pass_through_every_command(tmp_path: Path) -> None:
    place = tmp_path / os.fsdecode(b"\xff 'q\" [b] \n\xe6\x97\xa5")
    photos = os.fsdecode(b"p\xfe")
    for split in ("train", "val"):
        for number, name in enumerate((os.fsdecode(b"[red]x\xfd"), "$\u65e5 n\n")):
            (place / photos / split / name).mkdir(parents=True)
            for count in range(2):
                file = place / photos / split / name / os.fsdecode(b"[i]%d\xfc.png" % count)
                Image.new("RGB", (16, 16), (90 * number, 50 * count, len(split) * 9)).save(file)
    (place / photos / split / name / os.fsdecode(b"._\n\xfc.png")).touch()  # is skipped, which is said
    recipe = ["imagefolder-resnet18", f"--data={photos}", "--set=model.name=cifar-cnn", "--set=model.weights=null"]
    steps = ["--set=data.batch_size=2", "--set=train.max_steps=2", "--device=cpu", *QUIET]
    picture = f"{photos}/val/$\u65e5 n\n/{os.fsdecode(b'[i]1')}" + os.fsdecode(b"\xfc.png")
    commands = [
        ["data", "check", photos, "--workers=1"],
        ["data", "info", photos, "--workers=1"],
        ["data", "pack", photos, "--jobs=1"],
        ["fit", *recipe, *steps, "--run=\u65e5"],
        ["runs", "list", "--root=."],
        ["runs", "show", "\u65e5"],
        ["checkpoints", "list", "\u65e5"],
        ["eval", "\u65e5", "--device=cpu"],
        ["export", "\u65e5"],
        ["predict", "\u65e5/export/bundle", photos, "--device=cpu", "--csv"],
        ["predict", "\u65e5", picture, "--show", "--device=cpu"],
    ]
    *walked, predicted = walk([*commands, ["predict", "\u65e5", photos, "--device=cpu", "--json"]], cwd=place)
    for each in (*walked, predicted):
        assert_told(each)
        assert each.code == 0, each
    assert len([json.loads(line) for line in predicted.out.splitlines()]) == 8


def test_refused_evaluation_leaves_no_folder(place: Path) -> None:
    (refused,) = walk([["eval", "runs/done", "--data=photos", "--device=cpu"]], cwd=place)
    assert_told(refused)
    assert refused.code == 2
    assert not (place / "runs" / "done" / "evaluations").exists()


def test_run_that_is_closed_to_others_names_whom_to_ask_and_no_option_that_does_not_help(place: Path) -> None:
    under = as_another_user(place)
    (place / "runs" / "done").chmod(0o700)
    for walked in walk([["eval", "runs/done"], ["runs", "show", "done"]], cwd=place, under=under):
        assert_told(walked)
        assert walked.code == 2
        assert re.search("belongs to .*, and you .* have no permission; ask .* for access, or name", walked.err), walked
        assert "--out" not in walked.err


def as_another_user(place: Path) -> list[str]:
    """Return the program under which root may do what any user may, in a place whose runs another user owns."""
    under = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner", "--inh-caps=-all"]
    if shutil.which("setpriv") is None or subprocess.run([*under, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs root and setpriv, to run as another user")
    for path in (place / "runs", *(place / "runs").rglob("*")):
        os.chown(path, 1, 1)
        path.chmod(0o755 if path.is_dir() else 0o644)
    return under


def test_run_of_another_user_can_be_read_and_names_its_owner_to_all_that_write(place: Path) -> None:
    under = as_another_user(place)
    elsewhere = [
        ["eval", "runs/done", "--device=cpu", "--no-pictures", "--out=mine"],
        ["export", "runs/done", "--out=bundle"],
        ["predict", "runs/done", "photos/train/ants/0.jpg", "--device=cpu"],
        ["checkpoints", "consolidate", "runs/done", "model.safetensors"],
        ["checkpoints", "prune", "runs/done", "--keep-last=1", "--dry-run"],
    ]
    writing = [command(name) for name in ("fit", "resume", "stop", "checkpoints prune", "eval", "export")]
    reading = [command(name) for name in READING]
    for walked in walk([*reading, *elsewhere, *writing], cwd=place, under=under):
        assert_told(walked)
        if walked.arguments in writing:
            assert walked.code == 2, walked
            assert "belongs to daemon, and you (root) have no permission; " in walked.err, walked
        else:
            assert walked.code == 0, walked
    assert (place / "mine" / "findings.json").exists()


def test_closed_run_of_another_user_is_one_sentence_and_leaves_the_others_listed(place: Path) -> None:
    under = as_another_user(place)
    (place / "runs" / "done").chmod(0o700)
    names = [name for name in ARGUMENTS if "runs/done" in ARGUMENTS[name]]
    *others, listed, as_json = walk(
        [*(command(name) for name in names), ["runs", "list"], ["runs", "list", "--json"]], cwd=place, under=under
    )
    for walked in others:
        assert_told(walked)
        assert walked.code == 2, walked
        assert "belongs to daemon" in walked.err, walked
    assert "failed" in listed.out
    assert "done cannot be read: " in listed.out
    assert {Path(row["run"]).name: row["state"] for row in json.loads(as_json.out)}["done"] == "unreadable"


@pytest.mark.slow
def test_damaged_file_of_a_run_is_one_sentence_and_leaves_the_others_listed(place: Path) -> None:
    runs = place / "runs"
    contents = [b"", b"{", b"\xff\xfe\0", b"[]", b'{"step": "x"}}\n']
    commands: list[list[str]] = []
    for file in ("status.json", "metrics.jsonl", "recipe.yaml", "profile.yaml", "job.json"):
        for number, content in enumerate(contents):
            name = f"{file}-{number}"
            shutil.copytree(runs / "done", runs / name)
            (runs / name / file).write_bytes(content)
            commands += [["runs", "show", f"runs/{name}"], ["resume", f"runs/{name}"]]
    names = [name for name in ARGUMENTS if "runs/done" in ARGUMENTS[name] and name != "predict"]
    for damaged in ("status.json-1", "recipe.yaml-2"):
        commands += [[word.replace("runs/done", f"runs/{damaged}") for word in command(name)] for name in names]
    *others, listed = walk([*commands, ["runs", "list"]], cwd=place)
    for walked in others:
        assert_told(walked)
    assert listed.code == 0
    assert "done" in listed.out
    assert "status.json-1 cannot be read: " in listed.out


def test_run_of_a_newer_format_is_refused_in_one_sentence_by_all_commands_that_open_it(place: Path) -> None:
    for name in ("done", "failed", "live"):
        path = place / "runs" / name / "status.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": FORMAT_VERSION + 1}))
    names = [name for name in ARGUMENTS if any(word.startswith(("runs/", "--run=")) for word in ARGUMENTS[name])]
    more = [["fit", "--set=model.weights=runs/done"], ["export", "last"], ["export", *checkpoints_of(place / "runs")]]
    before = sorted(place.rglob("*"))
    *others, listed, as_json = walk(
        [*[command(name) for name in names], *more, ["runs", "list"], ["runs", "list", "--json"]], cwd=place
    )
    assert len(names) > 12
    for walked in others:
        assert walked.code == 2, walked
        assert re.fullmatch(
            r"distrain: (model.weights=runs/done: )?run directory \S*runs/\w+ has format version 2, and this distrain "
            r"reads versions up to 1; update distrain, or use the one that wrote it\n",
            walked.err,
        ), walked
    assert sorted(place.rglob("*")) == before
    assert listed.out.count("cannot be read: run directory ") == 3
    assert {row["state"] for row in json.loads(as_json.out)} == {"unreadable"}


def checkpoints_of(runs: Path) -> list[str]:
    return [str(path) for path in (runs / "done" / "checkpoints").glob("step-*")]
