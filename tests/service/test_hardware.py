"""A GPU with a hardware error is taken out of service, one whose program has an error is not."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from distrain.service.hardware import drain_faulty
from distrain.system import nvml
from distrain.system.leases import LeaseFolder
from tests.cli_runner import wait_until
from tests.fakes import gpu, mig, nvml_environment, use_nvml

A, B = (gpu(number)["uuid"] for number in range(2))


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the errors that the driver reports."""
    path = tmp_path / "events"
    path.touch()
    monkeypatch.setenv("FAKE_NVML_EVENTS", str(path))
    monkeypatch.setattr(nvml.XidListener, "_WAIT_MS", 20)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[LeaseFolder]:
    path = tmp_path / "leases"
    path.mkdir()
    yield LeaseFolder(path)


def reason(folder: LeaseFolder, device: str) -> str | None:
    drain = folder.find_drain(device)
    return None if drain is None else drain.reason


def report(events: Path, *lines: str) -> None:
    """Have the driver report errors, and wait until they were read."""
    draft = events.with_name("reported")
    draft.write_text("\n".join(lines))
    draft.rename(events)
    wait_until(lambda: events.read_text() == "", "the end of the errors")


@pytest.mark.parametrize(
    ("xid", "expected"), [("79", "Xid 79"), ("48", "Xid 48"), ("lost", "Xid 79"), ("13", None), ("31", None)]
)
def test_xid_of_the_hardware_drains_its_gpu_and_one_of_a_program_does_not(
    folder: LeaseFolder, events: Path, monkeypatch: pytest.MonkeyPatch, xid: str, expected: str | None
) -> None:
    use_nvml(monkeypatch, gpu(0), gpu(1))
    notes: list[str] = []
    with drain_faulty(folder, [A, B], notes.append):
        report(events, f"{B} {xid}", f"{A} 43")
    assert reason(folder, A) is None
    assert reason(folder, B) == expected
    sentence = f"{B} has been taken out of service ({expected}); `distrain devices undrain` returns it"
    assert notes == ([] if expected is None else [sentence])


def test_gpus_of_other_runs_are_not_watched(folder: LeaseFolder, events: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_nvml(monkeypatch, gpu(0), gpu(1))
    events.write_text(f"{B} 79\n{A} 48")
    with drain_faulty(folder, [A], print):
        wait_until(lambda: reason(folder, A) == "Xid 48", "the error")
    assert events.read_text() == f"{B} 79"
    assert reason(folder, B) is None


def test_error_of_one_mig_device_drains_that_one_and_an_error_of_the_gpu_all(
    folder: LeaseFolder, events: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_nvml(monkeypatch, mig(0, "1/0", "2/0", "3/0"))
    first, second, third = "MIG-01aaaaaa-bbbb", "MIG-02aaaaaa-bbbb", "MIG-03aaaaaa-bbbb"
    with drain_faulty(folder, [first, second], print):
        report(events, f"{A} 48 3/0", f"{A} 94 2/0")
    assert [reason(folder, device) for device in (first, second, third)] == [None, "Xid 94", None]
    with drain_faulty(folder, [first, second], print):
        report(events, f"{A} 79")
    assert [reason(folder, device) for device in (first, second, third)] == ["Xid 79", "Xid 94", None]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"errors": 4}, {"errors": 5}, "1 uncorrected memory error during a run"),
        ({"errors": 0}, {"errors": 2}, "2 uncorrected memory errors during a run"),
        ({"errors": 4}, {"errors": 4}, None),
        ({"errors": 4}, {"errors": 0}, None),  # the driver was loaded again
        ({}, {}, None),  # without error correction
        ({"errors": 4}, {"errors": 5, "lost": True}, None),
    ],
)
def test_memory_errors_that_grow_during_a_run_drain_its_gpu(
    folder: LeaseFolder,
    events: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: dict[str, int],
    after: dict[str, int],
    expected: str | None,
) -> None:
    use_nvml(monkeypatch, gpu(0, errors=1), gpu(1, **before))
    with drain_faulty(folder, [A, B], print):
        nvml.read_nvml()  # as a launcher, which has counted its GPUs
        monkeypatch.setenv("FAKE_NVML", nvml_environment(gpu(0, errors=1), gpu(1, **after))["FAKE_NVML"])
    assert reason(folder, A) is None
    assert reason(folder, B) == expected


def test_gpus_without_these_events_and_cpu_slots_are_not_watched(
    folder: LeaseFolder, events: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_nvml(monkeypatch, gpu(0, without_events=True))
    events.write_text(f"{A} 79")
    with drain_faulty(folder, [A], print), drain_faulty(folder, ["cpu-0"], print):
        pass
    assert reason(folder, A) is None
    assert events.read_text() == f"{A} 79"


def test_full_disk_ends_no_run(folder: LeaseFolder, events: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_nvml(monkeypatch, gpu(0))
    folder.path.rmdir()
    with drain_faulty(folder, [A], print):
        report(events, f"{A} 79")
