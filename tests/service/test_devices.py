"""A run gets free devices of those it may use, or a sentence says who has them."""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from distrain.config.profile import Profile
from distrain.errors import LaunchError, StoppedError
from distrain.service import devices
from distrain.service.devices import lease_devices, list_devices, require_leases, slot_names
from distrain.system import gpus
from distrain.system.leases import LeaseFolder, user_name
from tests.cli_runner import wait_until
from tests.fakes import gpu, mig, use_nvml

A, B, C, D = (gpu(number)["uuid"] for number in range(4))
GIB = 2**30
ME = user_name(os.getuid())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LeaseFolder:
    """The folder of leases of this test, on a machine without GPUs and with three slots of the CPU."""
    use_nvml(monkeypatch)
    monkeypatch.setenv("DISTRAIN_LOCK_DIR", str(tmp_path / "leases"))
    for name in ("CUDA_VISIBLE_DEVICES", "DISTRAIN_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    return require_leases()


def profile(device: str, processes: int, **more: Any) -> Profile:
    return Profile.model_validate(
        {"launcher": "torchrun", "device": device, "processes": processes, "threads": 1, **more}
    )


@contextmanager
def leased(
    wanted: Profile, *, run: str = "/runs/mine", wait: bool = False
) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Lease devices during the block; yields the variables of the ranks, and what was reported."""
    notes: list[str] = []
    with lease_devices(wanted, Path(run), wait=wait, is_over=lambda: False, notify=notes.append) as variables:
        yield variables, notes


def variables(wanted: Profile) -> dict[str, str]:
    with leased(wanted) as (found, notes):
        assert notes == []
        return found


def shown(*names: str) -> dict[str, str]:
    """The variables of a run that has leased these GPUs."""
    return {"DISTRAIN_LEASED": ",".join(names), "CUDA_VISIBLE_DEVICES": ",".join(names)}


def refusal(wanted: Profile, *, wait: bool = False) -> str:
    """Return the sentence that refuses a run, with times as HH:MM."""
    with pytest.raises(LaunchError) as caught, leased(wanted, wait=wait):
        pass
    return re.sub(r"\d\d:\d\d", "HH:MM", str(caught.value))


def hold(folder: LeaseFolder, *names: str, run: str = "/runs/other") -> None:
    """Lease devices for another run, until the end of the test."""
    for name in names:
        assert folder.acquire(name, Path(run)) is not None


def test_free_gpus_are_chosen_in_order_and_shown_by_uuid(folder: LeaseFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    use_nvml(monkeypatch, *map(gpu, range(4)))
    with leased(profile("cuda", 2)) as (first, _), leased(profile("cuda", 1)) as (second, _):
        assert first == shown(A, B)
        assert second == shown(C)
        assert [device.state for device in list_devices("gpu")] == ["leased", "leased", "leased", "free"]
    assert all(device.is_free for device in list_devices())


def test_run_in_one_process_leases_all_of_its_gpus(folder: LeaseFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    use_nvml(monkeypatch, *map(gpu, range(3)))
    assert variables(profile("cuda", 1, devices=2, launcher="inprocess")) == shown(A, B)


@pytest.mark.parametrize(
    ("visible", "chosen"), [("3,1", [D, B]), ("2,3,0", [C, D]), (f"{B},{A}", [B, A]), ("1,-1,0", None), ("", None)]
)
def test_variable_that_names_visible_gpus_is_respected(
    folder: LeaseFolder, monkeypatch: pytest.MonkeyPatch, visible: str, chosen: list[str] | None
) -> None:
    use_nvml(monkeypatch, *map(gpu, range(4)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if chosen is not None:
        assert variables(profile("cuda", 2)) == shown(*chosen)
    else:
        number = len([device for device in list_devices() if device.kind == "gpu"])
        available = f"{number or 'none'} of {number} is free"
        assert refusal(profile("cuda", 2), wait=True) == f"2 GPUs are needed, and {available}"


def test_gpus_that_others_fill_or_that_are_drained_are_skipped_and_reported(
    folder: LeaseFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_nvml(
        monkeypatch,
        gpu(0, used=9 * GIB, pids=[71, 70]),
        gpu(1, used=50 * GIB),  # in a container NVML names no processes
        gpu(2),
        gpu(3, used=7 * GIB, pids=[72]),
        gpu(4, used=39 * GIB),
    )
    folder.drain(C, "fan fails")
    with leased(profile("cuda", 2)) as (found, notes):
        assert found == shown(D, gpu(4)["uuid"])
        assert [re.sub(r"\d\d:\d\d", "HH:MM", note) for note in notes] == [
            f"note: NVIDIA H100 80GB HBM3 {A} is skipped: filled by process 70, 71 (9.0 GiB of its memory)",
            f"note: NVIDIA H100 80GB HBM3 {B} is skipped: filled by another program (50.0 GiB of its memory)",
            f"note: NVIDIA H100 80GB HBM3 {C} is skipped: drained by {ME} at HH:MM: fan fails",
        ]
    assert refusal(profile("cuda", 3)).startswith("3 GPUs are needed, and 2 of 5 are free (")


def test_memory_that_the_run_of_a_lease_uses_does_not_fill_its_gpu(
    folder: LeaseFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_nvml(monkeypatch, gpu(0, used=70 * GIB, pids=[70]))
    hold(folder, A)
    (device,) = list_devices("gpu")
    assert (device.state, device.is_out, device.filled_by) == ("leased", False, None)


def test_device_whose_lock_file_is_unusable_is_skipped_and_reported(
    folder: LeaseFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_nvml(monkeypatch, gpu(0), gpu(1))
    (folder.path / f"{A}.lock").symlink_to("/etc/passwd")
    (folder.path / "cpu-0.ranks").mkdir()
    with leased(profile("cuda", 1)) as (found, notes):
        assert found == shown(B)
        assert len(notes) == 1
        assert f"{A} is skipped: {folder.path}/{A}.lock cannot be opened (" in notes[0]
    assert variables(profile("cpu", 2)) == {"DISTRAIN_LEASED": "cpu-1,cpu-2"}
    assert [device.state for device in list_devices()] == ["faulty", "free", "faulty", "free", "free"]


def test_mig_devices_are_leased_by_their_own_uuid(folder: LeaseFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    use_nvml(monkeypatch, mig(0, "1/0", "2/0"), mig(1, "1/0"))
    found = []
    for _ in range(3):
        lease = lease_devices(profile("cuda", 1), Path("/runs/a"), wait=False, is_over=lambda: False, notify=print)
        found.append((lease, lease.__enter__()))
    assert [each["CUDA_VISIBLE_DEVICES"] for _, each in found] == [
        "MIG-01aaaaaa-bbbb",
        "MIG-02aaaaaa-bbbb",
        "MIG-11aaaaaa-bbbb",
    ]
    assert refusal(profile("cuda", 1)).startswith("1 GPU is needed, and none of 3 is free (MIG-01aaaaaa-bbbb, MIG-02")
    for lease, _ in found:
        lease.__exit__(None, None, None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-02")
    assert variables(profile("cuda", 1)) == shown("MIG-02aaaaaa-bbbb")


def test_gpus_without_nvml_are_leased_by_their_entries(folder: LeaseFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    use_nvml(monkeypatch, fault="Driver Not Loaded")
    monkeypatch.setattr(gpus, "nvidia_files", lambda: ["/dev/nvidia0"])
    monkeypatch.setattr(gpus, "ask_torch", lambda: (2, ""))
    assert variables(profile("cuda", 1)) == {"DISTRAIN_LEASED": "cuda-0", "CUDA_VISIBLE_DEVICES": "0"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 2")
    hold(folder, "cuda-3")
    assert variables(profile("cuda", 1)) == {"DISTRAIN_LEASED": "cuda-2", "CUDA_VISIBLE_DEVICES": "2"}


def test_shortage_says_who_has_what_since_when_and_what_to_do(
    folder: LeaseFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_nvml(monkeypatch, *map(gpu, range(4)))
    advice = "; wait with --wait, or queue the run with --queue"
    hold(folder, "cpu-0", "cpu-2")
    others = f"cpu-0 and cpu-2 leased to run other of {ME} since HH:MM"
    assert refusal(profile("cpu", 2)) == f"2 CPU slots are needed, and 1 of 3 is free ({others}){advice}"
    hold(folder, "cpu-1", run="/runs/third")
    others += f"; cpu-1 leased to run third of {ME} since HH:MM"
    assert refusal(profile("cpu", 1)) == f"1 CPU slot is needed, and none of 3 is free ({others}){advice}"
    hold(folder, C)
    folder.drain(D, "")
    others = f"{C} leased to run other of {ME} since HH:MM; {D} drained by {ME} at HH:MM"
    assert refusal(profile("cuda", 3)) == f"3 GPUs are needed, and 2 of 4 are free ({others}){advice}"
    assert all(device.is_free for device in list_devices("gpu")[:2])


def test_more_processes_than_slots_share_all_of_them(folder: LeaseFolder) -> None:
    assert variables(profile("cpu", 64)) == {"DISTRAIN_LEASED": "cpu-0,cpu-1,cpu-2"}
    hold(folder, "cpu-1")
    assert refusal(profile("cpu", 64)).startswith("3 CPU slots are needed, and 2 of 3 are free (cpu-1 leased to ")


def test_nodes_of_one_run_on_one_machine_share_its_slots_and_each_has_its_own_gpus(
    folder: LeaseFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [profile("cpu", 2, nodes=2, node_rank=rank) for rank in range(2)]
    with leased(nodes[0]) as (first, _), leased(nodes[1]) as (second, _):
        assert first == {"DISTRAIN_LEASED": "cpu-0,cpu-1"}
        assert second == {}
        with pytest.raises(LaunchError, match="2 CPU slots are needed, and 1 of 3 is free"):
            lease_devices(nodes[0], Path("/runs/other"), wait=False, is_over=lambda: False, notify=print).__enter__()
    use_nvml(monkeypatch, *map(gpu, range(3)))
    nodes = [profile("cuda", 2, nodes=2, node_rank=rank) for rank in range(2)]
    with leased(nodes[0]) as (first, _):
        assert first == shown(A, B)
        assert refusal(nodes[1]).startswith("2 GPUs are needed, and 1 of 3 is free")


def test_devices_that_the_queue_has_assigned_are_used_and_no_others(
    folder: LeaseFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_nvml(monkeypatch, *map(gpu, range(4)))
    monkeypatch.setenv("DISTRAIN_DEVICES", f"{D},{B}")
    assert variables(profile("cuda", 2)) == shown(B, D)
    assert refusal(profile("cuda", 3), wait=True) == "3 GPUs are needed, and 2 of 2 are free"
    monkeypatch.setenv("DISTRAIN_DEVICES", "cpu-7,cpu-1")
    assert variables(profile("cpu", 2)) == {"DISTRAIN_LEASED": "cpu-7,cpu-1"}
    hold(folder, "cpu-7")
    assert refusal(profile("cpu", 2)).startswith("2 CPU slots are needed, and 1 of 2 is free (cpu-7 leased to ")


def test_nothing_is_leased_in_an_allocation_of_slurm_or_where_leases_are_off(
    folder: LeaseFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_nvml(monkeypatch, gpu(0))
    hold(folder, A, *slot_names())
    for device in ("cuda", "cpu"):
        assert variables(profile(device, 1, launcher="slurm")) == {}
    monkeypatch.setenv("DISTRAIN_LOCK_DIR", "")
    for device in ("cuda", "cpu"):
        assert variables(profile(device, 1)) == {}
    with pytest.raises(LaunchError, match=r"^DISTRAIN_LOCK_DIR is empty, so no devices are leased; name a folder"):
        require_leases()


def test_without_a_folder_a_note_says_so_and_the_memory_in_use_decides(
    folder: LeaseFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_nvml(monkeypatch, gpu(0, used=9 * GIB, pids=[70]), gpu(1), gpu(2))
    monkeypatch.setenv("DISTRAIN_LOCK_DIR", str(tmp_path / "missing" / "leases"))
    with leased(profile("cuda", 1)) as (found, notes):
        assert found == {"CUDA_VISIBLE_DEVICES": B}
        assert notes[0].startswith(
            "note: devices are not leased, so another run may choose the same GPU: "
            f"{tmp_path}/missing/leases cannot be created (No such file or directory); an administrator can share it by"
        )
        assert notes[1].startswith(f"note: NVIDIA H100 80GB HBM3 {A} is skipped: filled by process 70")
    assert refusal(profile("cuda", 3)).startswith(f"3 GPUs are needed, and 2 of 3 are free ({A} filled by process 70 ")
    assert variables(profile("cpu", 3)) == {}
    with pytest.raises(LaunchError, match=r"^devices cannot be leased: .*missing/leases cannot be created"):
        require_leases()


def test_run_that_waits_says_so_once_and_starts_when_a_device_is_free(
    folder: LeaseFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_WAIT_S", 0.01)
    monkeypatch.setenv("DISTRAIN_DEVICES", "cpu-0")
    lease = folder.acquire("cpu-0", Path("/runs/other"))
    assert lease is not None
    looks, notes = [], list[str]()

    def is_over() -> bool:
        looks.append("looked")
        return False

    def free() -> None:
        wait_until(lambda: len(looks) > 5, "the wait")
        lease.release()

    thread = threading.Thread(target=free)
    thread.start()
    wanted = profile("cpu", 1)
    with lease_devices(wanted, Path("/runs/a"), wait=True, is_over=is_over, notify=notes.append) as found:
        assert found == {"DISTRAIN_LEASED": "cpu-0"}
    thread.join()
    assert len(notes) == 1
    assert notes[0].startswith("waiting: 1 CPU slot is needed, and none of 1 is free (cpu-0 leased to run other of ")
    assert "--" not in notes[0]


def test_wait_ends_on_request(folder: LeaseFolder) -> None:
    hold(folder, *slot_names())
    lease = lease_devices(profile("cpu", 1), Path("/runs/a"), wait=True, is_over=lambda: True, notify=print)
    with pytest.raises(StoppedError):
        lease.__enter__()
