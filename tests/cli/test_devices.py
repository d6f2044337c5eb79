"""`distrain devices` shows who has which device, and takes devices out of service."""

import json
import os
import re
from pathlib import Path

import pytest

from distrain.system.leases import LeaseFolder, user_name
from tests.cli_runner import Done, distrain
from tests.fakes import gpu, mig, nvml_environment

ME = user_name(os.getuid())
SLOTS = [f"cpu-{number}" for number in range(os.cpu_count() or 1)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LeaseFolder:
    path = tmp_path / "leases"
    path.mkdir()
    monkeypatch.setenv("DISTRAIN_LOCK_DIR", str(path))
    monkeypatch.delenv("DISTRAIN_DEVICES", raising=False)
    return LeaseFolder(path)


def timeless(text: str) -> str:
    return re.sub(r"\d\d:\d\d", "HH:MM", text)


def refusal(done: Done) -> str:
    assert (done.code, done.out) == (2, ""), done
    assert done.err.startswith("distrain: ")
    assert done.err.count("\n") == 1
    return timeless(done.err.removeprefix("distrain: ").strip())


def test_devices_are_listed_with_what_keeps_a_run_from_them(folder: LeaseFolder, tmp_path: Path) -> None:
    full = gpu(0, used=20 * 2**30, pids=[70])
    environment = nvml_environment(full, gpu(1), mig(2, "1/0"))
    lease = folder.acquire(gpu(1)["uuid"], Path("/runs/other"))
    (folder.path / "cpu-0.lock").mkdir()
    done = distrain("devices", cwd=tmp_path, env=environment)
    assert done.code == 0, done.err
    rows = [re.split(r"  +", line.strip()) for line in timeless(done.out).splitlines()]
    h100 = "NVIDIA H100 80GB HBM3"
    assert rows[:5] == [
        ["device", "name", "memory", "state"],
        [full["uuid"], h100, "80.0 GiB", "filled", "filled by process 70 (20.0 GiB of its memory)"],
        [gpu(1)["uuid"], h100, "80.0 GiB", "leased", f"leased to run other of {ME} since HH:MM"],
        ["MIG-21aaaaaa-bbbb", f"{h100} MIG 1g.10gb", "10.0 GiB", "free"],
        ["cpu-0", "CPU slot", "faulty", f"{folder.path}/cpu-0.lock cannot be opened (Is a directory)"],
    ]
    assert [row[0] for row in rows[4:]] == SLOTS
    listed = json.loads(distrain("devices", "list", "--json", cwd=tmp_path, env=environment).out)
    assert [device["id"] for device in listed[3:]] == SLOTS
    assert [(device["state"], device["is_free"]) for device in listed[:3]] == [
        ("filled", False),
        ("leased", False),
        ("free", True),
    ]
    assert listed[0]["memory_bytes"] == 80 * 2**30
    assert (listed[1]["holder"]["run"], listed[1]["holder"]["user"]) == ("/runs/other", ME)
    assert lease is not None
    lease.release()


def test_drained_device_is_out_of_service_until_it_is_returned(folder: LeaseFolder, tmp_path: Path) -> None:
    drained = distrain("devices", "drain", "cpu-0", "--reason", "fan\tfails", cwd=tmp_path)
    assert (drained.code, drained.out) == (0, "drained cpu-0\n")
    again = distrain("devices", "drain", "cpu-0", "--reason=other", cwd=tmp_path)
    assert timeless(again.out) == f"cpu-0 is drained by {ME} at HH:MM: fan\\tfails; nothing was changed\n"
    (listed, *others) = json.loads(distrain("devices", "--json", cwd=tmp_path).out)
    assert (listed["state"], listed["drain"]["reason"]) == ("drained", "fan\tfails")
    assert all(device["is_free"] for device in others)
    assert distrain("devices", "undrain", "cpu-0", cwd=tmp_path).out == "cpu-0 is in service\n"
    assert distrain("devices", "undrain", "cpu-0", cwd=tmp_path).out == "cpu-0 is in service already\n"


def test_run_keeps_a_device_that_is_drained(folder: LeaseFolder, tmp_path: Path) -> None:
    lease = folder.acquire("cpu-0", Path("/runs/other"))
    drained = distrain("devices", "drain", "cpu-0", cwd=tmp_path)
    assert timeless(drained.out) == f"drained cpu-0; run other of {ME} since HH:MM keeps it\n"
    (listed, *_) = json.loads(distrain("devices", "--json", cwd=tmp_path).out)
    assert (listed["state"], listed["drain"]["user"]) == ("leased", ME)
    assert lease is not None
    lease.release()


def test_device_is_named_by_the_beginning_of_its_name(folder: LeaseFolder, tmp_path: Path) -> None:
    environment = nvml_environment(gpu(0), gpu(1))
    done = distrain("devices", "drain", "GPU-1", cwd=tmp_path, env=environment)
    assert done.out == f"drained {gpu(1)['uuid']}\n"
    several = distrain("devices", "drain", "GPU", cwd=tmp_path, env=environment)
    assert refusal(several) == f"2 devices begin with 'GPU': {gpu(0)['uuid']}, {gpu(1)['uuid']}"
    unknown = distrain("devices", "undrain", "cpu0", cwd=tmp_path)
    assert refusal(unknown).startswith("there is no device 'cpu0' here; did you mean cpu-0")
    assert refusal(unknown).endswith("; `distrain devices` lists them")


def test_devices_cannot_be_drained_where_none_are_leased(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTRAIN_LOCK_DIR", "")
    off = "DISTRAIN_LOCK_DIR is empty, so no devices are leased; name a folder, or unset it"
    for verb in ("drain", "undrain"):
        assert refusal(distrain("devices", verb, "cpu-0", cwd=tmp_path)) == off
    assert all(device["is_free"] for device in json.loads(distrain("devices", "--json", cwd=tmp_path).out))
    monkeypatch.setenv("DISTRAIN_LOCK_DIR", str(tmp_path / "missing" / "leases"))
    refused = refusal(distrain("devices", "drain", "cpu-0", cwd=tmp_path))
    assert refused.startswith(f"devices cannot be leased: {tmp_path}/missing/leases cannot be created (No such file")
    monkeypatch.setenv("DISTRAIN_LOCK_DIR", "leases")
    relative = "DISTRAIN_LOCK_DIR=leases must be an absolute path, the same for all users of this machine"
    for words in (["devices"], ["fit", "--device=cpu", "--run=run"]):
        assert refusal(distrain(*words, cwd=tmp_path)) == relative
    assert not (tmp_path / "run").exists()


def test_fit_on_a_gpu_that_another_program_fills_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    full = gpu(0, used=20 * 2**30, pids=[70])
    done = distrain("fit", "--gpus=1", "--run=run", cwd=tmp_path, env=nvml_environment(full))
    assert refusal(done) == (
        f"1 GPU is needed, and none of 1 is free ({full['uuid']} filled by process 70 (20.0 GiB of its memory)); "
        "wait with --wait, or queue the run with --queue"
    )
    assert not (tmp_path / "run").exists()
