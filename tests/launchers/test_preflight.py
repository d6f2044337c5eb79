"""Missing resources are reported before anything is started, each in one sentence."""

import socket
from pathlib import Path

import pytest

from distrain.config import Recipe, load_recipe
from distrain.launchers.preflight import (
    find_disk_shortage,
    find_memory_shortage,
    find_rendezvous_fault,
    find_shortages,
)
from distrain.messages import MEBIBYTE
from distrain.runs.directory import RunDirectory
from distrain.runs.status import Status
from distrain.system.memory import available_memory_bytes
from tests.cli_runner import QUIET, distrain, fit
from tests.disk import fill, small_disk

PHOTOS = "imagefolder-resnet18"


def recipe(*overrides: str, reference: str = "digits") -> Recipe:
    return load_recipe(reference, overrides=list(overrides), data="photos" if reference == PHOTOS else None)


def machine(root: Path, *, available_mebibytes: int, groups: str = "") -> Path:
    """The files in which a kernel reports its memory; `groups` is the content of /proc/self/cgroup."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "meminfo").write_text(
        f"MemTotal: {1 << 30} kB\nMemAvailable:   {available_mebibytes * 1024} kB\nSwapFree: 0 kB\n"
    )
    (root / "proc" / "self" / "cgroup").write_text(groups)
    return root


def checkpoint(run: RunDirectory, step: int, *, mebibytes: int) -> None:
    folder = run.checkpoints / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "shard").write_bytes(bytes(mebibytes * MEBIBYTE))


def test_new_run_needs_a_minimum_of_disk_space(tmp_path: Path) -> None:
    assert find_disk_shortage(recipe(), RunDirectory(tmp_path / "runs" / "new")) is None
    with small_disk(tmp_path / "disk", mebibytes=20) as disk:
        said = find_disk_shortage(recipe(), RunDirectory(disk / "runs" / "new"))
    assert said is not None
    assert said.startswith(f"the disk of {disk} has 20.0 MiB free, but a run needs 200.0 MiB; ")


def test_resumed_run_needs_disk_space_for_its_coming_checkpoints(tmp_path: Path) -> None:
    kept = recipe("checkpoint.keep_last=3")
    with small_disk(tmp_path / "disk", mebibytes=40) as disk:
        run = RunDirectory(disk / "run")
        checkpoint(run, 10, mebibytes=4)
        checkpoint(run, 20, mebibytes=4)
        fill(disk, leave_bytes=13 * MEBIBYTE)
        assert find_disk_shortage(kept, run) is None  # 3, the best and one in flight, less 2 that are there
        more = recipe("checkpoint.keep_last=4")
        said = find_disk_shortage(more, run)
        assert said is not None
        assert "4 more checkpoints of 4.0 MiB are planned" in said
        assert "lower checkpoint.keep_last=4" in said
        assert find_disk_shortage(recipe("checkpoint.keep_last=1", "checkpoint.keep_best=false"), run) is None

        run.write_status(Status(total_steps=100))
        said = find_disk_shortage(recipe("checkpoint.keep_every_steps=20"), run)
        assert said is not None
        assert "7 more checkpoints" in said  # of the steps 40, 60, 80 and 100, and one step less 1 that is there


def test_each_process_needs_a_minimum_of_memory(tmp_path: Path) -> None:
    system = machine(tmp_path, available_mebibytes=1200)
    assert find_memory_shortage(processes=2, system=system) is None
    said = find_memory_shortage(processes=3, system=system)
    assert said is not None
    assert said.startswith("this machine has 1.2 GiB of memory left, but 3 training processes need at least 512.0 MiB")
    assert find_memory_shortage(processes=64, system=tmp_path / "nothing known") is None
    assert (available_memory_bytes() or 0) > 0


@pytest.mark.parametrize("version", [1, 2])
def test_memory_of_a_container_or_a_job_counts(tmp_path: Path, version: int) -> None:
    line = "0::/jobs/7/step\n" if version == 2 else "4:cpu:/\n5:memory:/jobs/7/step\n"
    system = machine(tmp_path, available_mebibytes=9000, groups=line)
    root = system / "sys" / "fs" / "cgroup" / ("" if version == 2 else "memory")
    limit, usage = (
        ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    job = root / "jobs" / "7"
    (job / "step").mkdir(parents=True)
    (job / "step" / limit).write_text("max\n")
    (job / limit).write_text(f"{600 * MEBIBYTE}\n")
    (job / usage).write_text(f"{500 * MEBIBYTE}\n")
    (job / "memory.stat").write_text(f"anon 7\ninactive_file {50 * MEBIBYTE}\n")
    assert available_memory_bytes(system) == 150 * MEBIBYTE
    assert "has 150.0 MiB of memory left, but 1 training process needs" in (
        find_memory_shortage(processes=1, system=system) or ""
    )


def test_all_shortages_are_found_at_once(tmp_path: Path) -> None:
    system = machine(tmp_path / "machine", available_mebibytes=100)
    with small_disk(tmp_path / "small", mebibytes=2) as small:
        found = find_shortages(recipe(), RunDirectory(small / "run"), processes=1, system=system)
    assert [sentence.split(" has ")[0] for sentence in found] == [f"the disk of {small}", "this machine"]
    assert all("\n" not in sentence and ";" in sentence for sentence in found)


def test_rendezvous_is_checked_from_both_sides() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert find_rendezvous_fault("127.0.0.1", port, is_local=False) is None
        assert f"port {port} of 127.0.0.1 cannot be opened here" in (
            find_rendezvous_fault("127.0.0.1", port, is_local=True) or ""
        )
    assert find_rendezvous_fault("127.0.0.1", port, is_local=True) is None
    assert find_rendezvous_fault("127.0.0.1", port, is_local=False) is None  # refused: nobody listens yet
    assert "is not this node" in (find_rendezvous_fault("192.0.2.1", 1, is_local=True) or "")
    assert "no-such-host.invalid cannot be resolved here" in (
        find_rendezvous_fault("no-such-host.invalid", 1, is_local=False) or ""
    )
    assert "255.255.255.255:9 is not reachable" in (find_rendezvous_fault("255.255.255.255", 9, is_local=False) or "")


def test_all_faults_are_reported_at_once_and_nothing_is_started(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", mebibytes=20) as disk:
        arguments = [PHOTOS, "--data=nowhere", "--gpus=4", f"--run={disk / 'run'}"]
        done = distrain("fit", *arguments, cwd=tmp_path, env={"CUDA_VISIBLE_DEVICES": ""})
        assert done.code == 2
        lines = done.err.splitlines()
        assert [line.startswith("distrain: ") for line in lines] == [True] * 3
        assert "no GPU" in lines[0]
        assert "nowhere does not exist" in lines[1]
        assert "20.0 MiB free" in lines[2]
        assert not list(disk.iterdir())


@pytest.mark.slow
def test_no_preflight_skips_the_estimates(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", mebibytes=20) as disk:
        run = disk / "run"
        arguments = ["digits", "--set=train.max_steps=2", f"--run={run}"]
        refused = distrain("fit", *arguments, *QUIET, cwd=tmp_path)
        assert refused.code == 2
        assert refused.err.count("\n") == 1
        assert not run.exists()
        assert distrain("fit", *arguments, "--dry-run", cwd=tmp_path).code == 0
        fit(*arguments, "--no-preflight", cwd=tmp_path)
        fill(disk)
        assert distrain("fit", f"--run={run}", cwd=tmp_path).code == 0  # it is finished: nothing is wanted of the disk
        assert "nowhere does not exist" in distrain("fit", PHOTOS, "--data=nowhere", "--no-preflight", cwd=tmp_path).err
