"""The call of sbatch by `distrain submit`, recorded by a fake on PATH, and the files in the run directory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.cli_runner import Done, distrain
from tests.data.writing import write

FAKE_SBATCH = """#!/usr/bin/env python3
import json, os, sys
record = {"argv": sys.argv, "cwd": os.getcwd(), "env": dict(os.environ)}
open(os.environ["FAKE_SBATCH_SAW"], "w").write(json.dumps(record))
print(os.environ.get("FAKE_SBATCH_SAYS", "4711;tiny"))
"""
AWKWARD = "a b'c\"d$HOME`id`\n%j;e"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a fake sbatch first on PATH; returns the file in which it writes what it was called with."""
    program = tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text(FAKE_SBATCH)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SBATCH_SAW", str(tmp_path / "saw.json"))
    return tmp_path / "saw.json"


def submit(*arguments: str, cwd: Path) -> Done:
    cwd.mkdir(exist_ok=True)
    done = distrain("submit", *arguments, cwd=cwd)
    assert done.code == 0, done.err
    return done


def test_options_reach_sbatch_under_its_names(fake: Path, tmp_path: Path) -> None:
    options = ["--nodes=2", "--gpus=4", "--time=4:00:00", "--partition=p", "--account=a", "--qos=q", "--constraint=c"]
    more = [
        "--dependency=afterok:1",
        "--no-requeue",
        "--restarts=5",
        "--stall-timeout=60",
        "--sbatch=mem=64G",
        "--sbatch=exclusive",
        "--set=data.num_workers=3",
    ]
    done = submit("digits", *options, *more, "--run=run", cwd=tmp_path / "work")
    argv = json.loads(fake.read_text())["argv"][1:]
    run = tmp_path / "work" / "run"
    assert argv[-2:] == [f"--python={sys.executable}", str(run)]
    assert Path(argv[-3]).name == "train.sbatch"
    assert argv[:-3] == [
        "--parsable",
        "--job-name=digits",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--gpus-per-node=4",
        "--cpus-per-task=16",
        *options[2:],
        "--dependency=afterok:1",
        "--no-requeue",
        "--export=ALL",
        "--mem=64G",
        "--exclusive",
        f"--output={run}/logs/slurm-%j.out",
    ]
    assert done.out.startswith("submitted     job 4711\n")
    assert f"distrain logs -f {run}" in done.out
    assert json.loads((run / "job.json").read_text())["id"] == "4711"
    profile = yaml.safe_load((run / "profile.yaml").read_text())
    assert (profile["launcher"], profile["device"], profile["nodes"], profile["processes"]) == ("slurm", "cuda", 2, 4)
    assert (profile["restarts"], profile["stall_timeout_s"]) == (5, 60)


def test_notes_on_the_data_are_printed_at_the_submission(fake: Path, tmp_path: Path) -> None:
    for place in ("train/a", "train/b", "test/a", "test/b"):
        write(tmp_path / "photos" / place / "0.png")
    done = submit("imagefolder-resnet18", f"--data={tmp_path / 'photos'}", "--procs=1", cwd=tmp_path / "work")
    assert f"note: {tmp_path / 'photos'} has no val/: validating on test/" in done.out.splitlines()


def test_options_of_sbatch_that_request_gpus_leave_the_device_to_slurm(fake: Path, tmp_path: Path) -> None:
    submit("digits", "--sbatch=gres=gpu:4", "--run=run", cwd=tmp_path / "work")
    assert yaml.safe_load((tmp_path / "work" / "run" / "profile.yaml").read_text())["device"] is None


JOB_AROUND = {
    "SLURM_JOB_ID": "17",
    "SLURM_ARRAY_JOB_ID": "16",
    "SLURM_ARRAY_TASK_ID": "1",
    "SLURM_RESTART_COUNT": "2",
    "SLURM_STEP_ID": "0",
    "SLURM_MEM_PER_CPU": "200",
    "SLURM_JOB_GPUS": "1",
    "SBATCH_PARTITION": "urgent",
    "SRUN_CPUS_PER_TASK": "2",
    "SLURMD_NODENAME": "n1",
    "PMI_RANK": "0",
    "CUDA_VISIBLE_DEVICES": "1",
}


def test_nothing_of_the_job_around_it_reaches_the_job_that_is_submitted(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in JOB_AROUND.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    monkeypatch.setenv("SBATCH_WAIT", "1")
    submit("digits", "--run=run", cwd=tmp_path / "work")
    environment = json.loads(fake.read_text())["env"]
    assert not environment.keys() & JOB_AROUND.keys()
    assert environment["SLURM_CONF"] == "/etc/slurm.conf"

    for name in JOB_AROUND:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SBATCH_ACCOUNT", "physics")  # the user's own, on a login node
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    submit("digits", "--run=again", cwd=tmp_path / "work")
    environment = json.loads(fake.read_text())["env"]
    assert environment["SBATCH_ACCOUNT"] == "physics"
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert "SBATCH_WAIT" not in environment


@pytest.mark.parametrize(
    ("printed", "job_id"),
    [
        ("Welcome to cluster 7\n---\n--> Verifying 12 things...OK\n4711", "4711"),
        ("\n  4711;tiny  \nHave a nice day", "4711"),
        ("hello\nSubmitted batch job 4711 on cluster tiny", "4711"),
        ("300\n4711", "4711"),
    ],
)
def test_job_id_is_found_in_what_an_sbatch_with_a_banner_prints(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: str, job_id: str
) -> None:
    monkeypatch.setenv("FAKE_SBATCH_SAYS", printed)
    done = submit("digits", "--run=run", cwd=tmp_path / "work")
    assert done.out.startswith(f"submitted     job {job_id}\n")
    assert json.loads((tmp_path / "work" / "run" / "job.json").read_text())["id"] == job_id


@pytest.mark.parametrize("printed", ["", "Welcome to cluster 7", "job4711"])
def test_sbatch_that_prints_no_id_is_one_sentence_and_leaves_nothing(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: str
) -> None:
    monkeypatch.setenv("FAKE_SBATCH_SAYS", printed)
    (tmp_path / "work").mkdir()
    done = distrain("submit", "digits", "--run=run", cwd=tmp_path / "work")
    assert done.code == 2
    assert f"printed no job id on a separate line ({printed or 'no output'})" in done.err
    assert done.err.count("\n") == 1
    assert not list((tmp_path / "work").iterdir())


def test_resumed_job_is_submitted_as_it_was_with_the_python_of_then(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, squeue = tmp_path / "work", fake.parent / "bin" / "squeue"
    squeue.write_text("#!/bin/sh\nexit 1\n")
    squeue.chmod(0o755)
    submit("digits", "--array=train.seed=0", "--array=train.seed=1", "--run=sweep", cwd=work)
    job = json.loads((work / "sweep" / "1" / "job.json").read_text())
    job["argv"] = [word.replace(sys.executable, "/other/python") for word in job["argv"]]
    (work / "sweep" / "1" / "job.json").write_text(json.dumps(job))
    for _ in range(2):
        assert distrain("resume", "sweep/1", cwd=work).code == 0
    argv = json.loads(fake.read_text())["argv"]
    assert argv[-2:] == ["--python=/other/python", str(work / "sweep" / "1")]
    assert Path(argv[-3]).name == "train.sbatch"
    assert [word for word in argv if word.startswith(("--output=", "--array="))] == [
        f"--output={work / 'sweep' / '1'}/logs/slurm-%j.out"
    ]


def test_awkward_names_reach_sbatch_as_data(fake: Path, tmp_path: Path) -> None:
    work = tmp_path / AWKWARD
    submit("digits", f"--sbatch=job-name={AWKWARD}", f"--run={AWKWARD}", cwd=work)
    saw = json.loads(fake.read_text())
    assert saw["cwd"] == str(work)
    assert f"--job-name={AWKWARD}" in saw["argv"]
    assert saw["argv"][-1] == str(work / AWKWARD)
    assert f"--output={str(work / AWKWARD).replace('%', '%%')}/logs/slurm-%j.out" in saw["argv"]


def test_dry_run_prints_the_call_and_creates_nothing(fake: Path, tmp_path: Path) -> None:
    done = submit("digits", "--nodes=2", "--run=it's", "--dry-run", cwd=tmp_path / "work")
    line = done.out.splitlines()[-1]
    assert "sbatch --parsable --job-name=digits --nodes=2 --ntasks-per-node=1" in line
    assert subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout == "4711;tiny\n"
    assert json.loads(fake.read_text())["argv"][-1] == str(tmp_path / "work" / "it's")
    assert not list((tmp_path / "work").iterdir())


def test_array_has_a_run_directory_for_each_task(fake: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    done = submit("digits", "--array=optimizer.lr=0.1", "--array=optimizer.lr=0.2", "--run=sweep", cwd=work)
    argv = json.loads(fake.read_text())["argv"]
    assert "--array=0-1" in argv
    assert argv[-2:] == [str(work / "sweep" / "0"), str(work / "sweep" / "1")]
    assert Path(argv[-4]).name == "sweep.sbatch"
    assert "job 4711, an array of 2" in done.out
    for number, rate in enumerate((0.1, 0.2)):
        run = work / "sweep" / str(number)
        assert json.loads((run / "job.json").read_text())["id"] == f"4711_{number}"
        assert yaml.safe_load((run / "recipe.yaml").read_text())["optimizer"]["lr"] == rate


def test_snapshot_holds_what_git_tracks_and_the_extras(fake: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "package").mkdir(parents=True)
    for name in ("mine.py", "package/net.py", "untracked.py", "table.csv", "other.csv"):
        (work / name).write_text("1")
    subprocess.run(["git", "init", "--quiet"], cwd=work, check=True)
    subprocess.run(["git", "add", "mine.py", "package"], cwd=work, check=True)
    (work / "mine.py").write_text("2")  # as it is now, not as it was committed
    submit("digits", "--snapshot-extra=table.csv", "--run=run", cwd=work)
    code = work / "run" / "code"
    found = {str(path.relative_to(code)): path.read_text() for path in code.rglob("*") if path.is_file()}
    assert found == {"mine.py": "2", "package/net.py": "1", "table.csv": "1"}

    submit("digits", "--no-snapshot", "--run=bare", cwd=work)
    assert not (work / "bare" / "code").exists()


def test_without_git_the_snapshot_holds_the_modules_and_packages(fake: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    for name in ("mine.py", "package/__init__.py", "package/inner/net.py", "data/not_code.py", "notes.txt"):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).touch()
    submit("digits", "--run=run", cwd=work)
    code = work / "run" / "code"
    found = {str(path.relative_to(code)) for path in code.rglob("*") if path.is_file()}
    assert found == {"mine.py", "package/__init__.py", "package/inner/net.py"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpus=2", "--procs=2"], "--gpus and --procs both give"),
        (["--nodes=0"], "--nodes 0 is not a number of nodes for SLURM; give 1 or more"),
        (["--restarts=-1"], "--restarts must be 0 or more, not -1"),
        (["--sbatch=; rm -rf"], "is not KEY=VALUE"),
        (["--snapshot-extra=absent"], "--snapshot-extra absent is not a file"),
        (["--set=train.epoch=1"], "did you mean train.epochs"),
    ],
)
def test_bad_input_is_one_sentence_and_creates_nothing(
    fake: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "work").mkdir()
    done = distrain("submit", "digits", *arguments, cwd=tmp_path / "work")
    assert done.code == 2
    assert words in done.err
    assert done.err.count("\n") == 1
    assert not list((tmp_path / "work").iterdir())
    assert not fake.exists()


def test_machine_without_sbatch_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = distrain("submit", "digits", "--queue=slurm", cwd=tmp_path)
    assert done.code == 2
    assert "sbatch is not installed on this machine" in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "advice"),
    [("--device=cpu", "; to use the queue of this machine instead, add --queue local\n"), ("--queue=slurm", "\n")],
)
def test_machine_with_sbatch_and_no_cluster_is_led_to_its_own_queue(
    fake: Path, tmp_path: Path, option: str, advice: str
) -> None:
    program = tmp_path / "bin" / "sbatch"
    program.write_text("#!/bin/sh\necho 'sbatch: error: Unknown host' >&2\nexit 1\n")
    work = tmp_path / "work"
    work.mkdir()
    done = distrain("submit", "digits", option, cwd=work)
    assert (done.code, done.err) == (2, f"distrain: SLURM refuses the job: Unknown host{advice}")
    assert not list(work.iterdir())


def test_machine_without_sbatch_has_a_queue_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = distrain("submit", "digits", "--device=cpu", cwd=tmp_path)
    assert done.code == 0
    assert "goes into the queue of this machine: there is no sbatch here" in done.err
    (run,) = (tmp_path / "runs").glob("digits-*")
    assert json.loads((run / "job.json").read_text())["queue"] == "local"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--queue=local", "--partition=gpu"], "--partition does not go with the queue of this machine"),
        (["--queue=slurm", "--priority=3", "--root=x"], "--priority and --root do not go with SLURM"),
        (["--queue=moon"], "--queue moon is neither local nor slurm"),
        (["--queue=local", "--time=soon"], "--time soon is not a time limit"),
        (["--queue=local", "--after=nothing"], "there is no run 'nothing'"),
    ],
)
def test_options_of_one_queue_are_refused_by_the_other(
    fake: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "work").mkdir()
    done = distrain("submit", "digits", "--device=cpu", *arguments, cwd=tmp_path / "work")
    assert (done.code, done.err.count("distrain: ")) == (2, 1)
    assert words in done.err
    assert not list((tmp_path / "work").iterdir())
