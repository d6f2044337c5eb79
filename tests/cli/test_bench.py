"""`distrain bench` and `distrain plan` as a user runs them: real processes, nothing kept."""

import json
import signal
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.cli_runner import command, distrain, wait_until
from tests.data.writing import write

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.slow
def test_bench_measures_every_part_and_keeps_nothing(tmp_path: Path) -> None:
    arguments = ["bench", "digits", "--procs=2", "--steps=4", "--json", "--plot=bench.png"]
    done = distrain(*arguments, cwd=tmp_path)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert [point["processes"] for point in report["scaling"]] == [1, 2]
    assert report["scaling"][0]["efficiency"] == 1
    figures = report["figures"]
    assert {"data", "prepare", "forward", "backward", "wait", "reduce", "update", "other"} == set(figures["parts_s"])
    for name in ("images_per_s", "loader_images_per_s", "compute_images_per_s", "lone_step_s"):
        assert figures[name] > 0
    weights = figures["memory"]["weights"]
    assert figures["communication"]["gradient_bytes"] == figures["memory"]["gradients"] < weights
    assert figures["saving"]["num_bytes"] > weights + figures["memory"]["optimizer"]
    assert figures["saving"]["commit_s"] >= figures["saving"]["blocked_s"] > 0
    assert len(figures["memory"]["peaks"]) == 2
    assert report["verdict"][0].startswith(("waiting-bound", "input-bound", "communication-bound", "compute-bound"))
    with Image.open(tmp_path / "bench.png") as picture:
        assert min(picture.size) > 300
    assert [path.name for path in tmp_path.iterdir()] == ["bench.png"]


@pytest.mark.slow
def test_first_interrupt_ends_a_bench_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    bench = subprocess.Popen(
        command("bench", "digits", "--procs=1", "--steps=100000"),
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_until(lambda: any(path.read_text() == "steps" for path in tmp_path.glob("runs/.*/*/stage")), "a step")
    bench.send_signal(signal.SIGINT)
    out, _ = bench.communicate(timeout=60)
    assert bench.returncode == 130, out
    assert "nothing was saved" in out
    assert not list((tmp_path / "runs").iterdir())


def images(folder: Path) -> Path:
    for split, count in (("train", 12), ("val", 4)):
        for name in ("ants", "bees"):
            for number in range(count):
                write(folder / split / name / f"{number}.png")
    return folder


SMALL = ["--set=model.name=lenet", "--set=data.batch_size=8", "--set=augment.train=[{Resize: {size: [32, 32]}}]"]
SMALL += ["--set=augment.eval=[{Resize: {size: [32, 32]}}]", "--set=data.num_workers=1"]


def test_plan_reports_memory_time_disk_and_jobs(tmp_path: Path) -> None:
    folder = images(tmp_path / "photos")
    arguments = ["imagefolder-resnet18", *SMALL, f"--data={folder}", "--procs=1", "--nodes=2", "--network=10gbe"]
    done = distrain("plan", *arguments, "--time=8:00:00", "--steps=2", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    plan = json.loads(done.out)
    assert plan["processes"] == 2
    assert plan["total_steps"] == 3 * round(plan["epochs"])  # 24 images
    assert plan["largest_micro_batch"] == 4
    assert plan["step"]["images_per_s"] > 0
    assert not plan["step"]["is_measured"]
    assert plan["times"]["total"] > plan["times"]["steps"] > 0
    assert plan["limit"]["fits"]
    assert plan["disk"]["has_room"]
    assert plan["disk"]["num_bytes"] == plan["disk"]["checkpoints"] * plan["disk"]["checkpoint_bytes"]
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("schedule={name: plateau}", "the learning rates cannot be foreseen: schedule.name=plateau has a state"),
        pytest.param(
            "optimizer={name: schedule_free_sgd, lr: 0.1}",
            "optimizer.name=schedule_free_sgd has no schedule that could be foreseen",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_plan_reports_what_it_cannot_foresee(tmp_path: Path, change: str, words: str) -> None:
    arguments = (
        [f"--set={change}", "--set=schedule.name=constant"] if "schedule_free" in change else [f"--set={change}"]
    )
    done = distrain("plan", "digits", *arguments, "--procs=1", "--steps=2", cwd=tmp_path)
    assert done.code == 0, done.err
    assert f"unknown              {words}" in done.out


def test_plan_for_gpus_without_one_does_not_invent_their_speed(tmp_path: Path) -> None:
    done = distrain("plan", "digits", "--gpus=8", "--steps=2", "--json", cwd=tmp_path, env=NO_GPU)
    assert done.code == 0, done.err
    plan = json.loads(done.out)
    assert plan["step"] is plan["times"] is plan["largest_micro_batch"] is plan["measured_images_per_s"] is None
    assert plan["memory"]["optimizer"] > 0
    assert plan["disk"]["has_room"]
    assert any("this machine has no GPU" in words for words in plan["unknown"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ["--weak", "--procs=2"],
        ["--procs=2", "--set=train.exact=true", "--set=train.micro_batch_size=2"],
        ["--procs=2", "--set=parallel.strategy=fsdp"],
        ["--procs=1", "--set=augment.mixup=0.2", "--set=train.ema_decay=0.9"],
    ],
)
def test_bench_of_an_image_folder(tmp_path: Path, more: list[str]) -> None:
    folder = images(tmp_path / "photos")
    done = distrain("bench", "imagefolder-resnet18", *SMALL, f"--data={folder}", "--steps=2", *more, cwd=tmp_path)
    assert done.code == 0, done.err
    for words in ("throughput", "data wait", "loader", "checkpoint", "memory"):
        assert words in done.out
    assert "-bound" in done.out
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.slow
@pytest.mark.gpu
def test_bench_on_a_gpu(tmp_path: Path) -> None:
    done = distrain("bench", "digits", "--gpus=1", "--steps=20", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    figures = json.loads(done.out)["figures"]
    assert figures["memory"]["total"] > figures["memory"]["peak"] > figures["memory"]["weights"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bench", "digit"], "did you mean digits?"),
        (["bench", "--procs=0"], "--procs must be 1 or more, not 0"),
        (["bench", "--procs=3"], "data.batch_size=64 does not divide over 3 processes"),
        (["bench", "--plot=bench.doc"], "--plot bench.doc has an unknown suffix"),
        (["bench", "imagefolder-resnet18", "--data=nowhere"], "nowhere does not exist"),
        (["plan", "--time=tomorrow"], "--time tomorrow is not a time limit"),
        (["plan", "--network=slow"], "--network slow is not a link"),
        (["plan", "--nodes=0"], "--nodes 0"),
    ],
)
def test_bad_request_is_one_sentence(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = distrain(*arguments, cwd=tmp_path, env=NO_GPU)
    assert done.code == 2
    assert words in done.err
    assert len(done.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_failure_of_the_network_is_reported_and_nothing_is_kept(tmp_path: Path) -> None:
    done = distrain("bench", "--set=model.name=resnet19", cwd=tmp_path)
    assert done.code == 2
    assert "did you mean resnet18?" in done.err.splitlines()[-1]
    assert not list(tmp_path.iterdir())
