"""GPUs are counted as CUDA would show them, and what prevents training on a GPU is reported."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from distrain.cli import predict
from distrain.errors import BundleError, LaunchError
from distrain.export.write_bundle import write_bundle
from distrain.system import gpus
from distrain.system.gpu_faults import TorchGpus, find_gpu_faults
from distrain.system.gpus import count_gpus, find_gpus
from distrain.system.nvml import Nvml, read_nvml
from tests.cli_runner import distrain
from tests.export.factories import make_bundle
from tests.fakes import gpu, mig, nvml_environment, torch_environment, use_nvml

A, B, C, D = (f"GPU-{number}1112222-3333-4444-5555-666677778888" for number in range(4))
CPU_TORCH = TorchGpus("2.14.1+cpu", None, [], None, has_nccl=False)
CUDA_TORCH = TorchGpus("2.14.1+cu130", "13.0", ["H100", "H100"], None, has_nccl=True, architectures=["sm_90"])


@pytest.fixture(autouse=True)
def no_memory() -> None:
    """Clear the caches, so that each test queries and logs again."""
    read_nvml.cache_clear()
    gpus._ask_torch.cache_clear()
    gpus._note.cache_clear()


@pytest.mark.parametrize(
    ("visible", "count"),
    [
        (None, 4),
        ("", 0),
        ("-1", 0),
        ("NONE", 0),
        ("NoDevFiles", 0),
        ("1", 1),
        ("3", 1),
        ("0,1", 2),
        (" 0 , 2 ", 2),
        ("3,0,1", 3),
        ("0,-1,1", 1),
        ("0,,1", 1),
        ("0,4,1", 1),
        ("0,GPU-1,1", 1),
        ("1gpu,2", 2),
        (A, 1),
        (f"{B},{D}", 2),
        ("GPU-0,GPU-1111", 2),
        ("GPU-0,GPU-9,GPU-1", 1),
    ],
)
def test_visible_devices_are_counted_as_cuda_does(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, count: int
) -> None:
    use_nvml(monkeypatch, *map(gpu, range(4)))
    _set(monkeypatch, visible)
    assert count_gpus() == count


@pytest.mark.parametrize("visible", ["4", "11", "0,0", "0,1,0", "GPU-9", "GPU-", f"{A},{A}", "MIG-1"])
def test_list_without_a_gpu_is_refused_and_not_trained_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, visible: str
) -> None:
    use_nvml(monkeypatch, *map(gpu, range(4)))
    _set(monkeypatch, visible)
    with pytest.raises(LaunchError, match=f"CUDA_VISIBLE_DEVICES={visible} selects no usable GPU of the 4 here"):
        find_gpus()


@pytest.mark.parametrize(
    ("visible", "count"),
    [(None, 1), ("0", 1), ("1", 1), ("2", 1), ("0,1", 1), ("MIG-02", 1), ("MIG-01,MIG-11", 1), (f"MIG-{A}/2/0", 1)],
)
def test_a_process_sees_one_mig_device(monkeypatch: pytest.MonkeyPatch, visible: str | None, count: int) -> None:
    use_nvml(monkeypatch, mig(0, "1/0", "2/0"), mig(1, "1/0"), gpu(2))
    _set(monkeypatch, visible)
    assert count_gpus() == count
    assert "(a process uses one MIG device)" in str(find_gpus())


@pytest.mark.parametrize("visible", ["1", f"MIG-{A}/3/0", "MIG-09"])
def test_gpu_in_mig_mode_without_an_instance_cannot_be_used(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    use_nvml(monkeypatch, mig(0, "1/0"), mig(1))
    _set(monkeypatch, visible)
    with pytest.raises(LaunchError, match="selects no usable GPU"):
        find_gpus()


def test_lost_gpu_is_reported_and_not_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use_nvml(monkeypatch, gpu(0), gpu(1, lost=True))
    _set(monkeypatch, None)
    assert count_gpus() == 1
    assert "GPU 1: NVML: GPU is lost; training starts without it" in caplog.text


def test_machine_without_any_sign_of_a_gpu_never_starts_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    use_nvml(monkeypatch, fault="Driver Not Loaded")
    _set(monkeypatch, None)
    monkeypatch.setattr(gpus, "nvidia_files", list)
    monkeypatch.setattr(gpus, "ask_torch", lambda: pytest.fail("torch is asked"))
    assert count_gpus() == 0


@pytest.mark.parametrize("answer", [{"gpus": []}, {"fault": "Driver Not Loaded"}])
def test_gpus_that_are_not_available_in_a_container_are_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, answer: dict[str, Any]
) -> None:
    use_nvml(monkeypatch, **answer)
    _set(monkeypatch, None)
    monkeypatch.setattr(gpus, "nvidia_files", list)
    monkeypatch.setattr(gpus, "has_gpus_of_others", lambda: True)
    assert count_gpus() == 0
    assert "this machine has NVIDIA GPUs, but none is available to this process" in caplog.text


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"version": "2.14.1+cpu", "cuda": None}, "torch 2.14.1+cpu is a CPU-only build"),
        (
            {"reason": "CUDA initialization:\n driver too old."},
            "torch 2.14.1+cu130: CUDA initialization: driver too old",
        ),
    ],
)
def test_unusable_gpu_is_refused_and_not_trained_on_the_cpu(
    tmp_path: Path, answers: dict[str, Any], words: str
) -> None:
    environment = {**torch_environment(**answers), "CUDA_VISIBLE_DEVICES": "0"}
    done = distrain("fit", cwd=tmp_path, env=environment)
    assert done.code == 2
    assert f"(CUDA_VISIBLE_DEVICES=0) that cannot be used: NVML Shared Library Not Found; {words}. " in done.err
    assert len(done.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
    assert distrain("fit", "--device=cpu", "--dry-run", cwd=tmp_path, env=environment).code == 0


def test_gpus_that_only_torch_sees_are_used_with_a_note(tmp_path: Path) -> None:
    environment = {**torch_environment(count=2), "CUDA_VISIBLE_DEVICES": "0,1"}
    done = distrain("fit", "--gpus=2", "--dry-run", cwd=tmp_path, env=environment)
    assert done.code == 0, done.err
    assert "--nproc-per-node=2" in done.out
    assert done.err == (
        "note: NVML is not available (NVML Shared Library Not Found); torch sees 2 GPUs here, and training uses "
        "what torch sees\n"
    )
    missing = distrain("fit", "--gpus=3", cwd=tmp_path, env=environment)
    assert "torch on this machine sees 2 GPUs, and 3 were requested" in missing.err


def test_existing_gpus_are_planned_and_missing_ones_are_reported(tmp_path: Path) -> None:
    environment = {**nvml_environment(*map(gpu, range(4))), "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    planned = distrain("fit", "--launch=gpu-4", "--dry-run", cwd=tmp_path, env=environment)
    assert "--nproc-per-node=4" in planned.out
    missing = distrain("fit", "--launch=node-8", "--dry-run", cwd=tmp_path, env=environment)
    assert missing.code == 2
    assert "with CUDA_VISIBLE_DEVICES=0,1,2,3 shows 4 GPUs, and 8 were requested" in missing.err


def test_predictions_do_not_ignore_a_gpu_that_torch_cannot_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tmp_path / "bundle"
    write_bundle(make_bundle(), bundle)
    use_nvml(monkeypatch, gpu(0))
    _set(monkeypatch, None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(BundleError, match="torch finds no GPU here; see `distrain doctor`, or use device cpu"):
        predict._open(str(bundle), tmp_path, device=None)
    assert predict._open(str(bundle), tmp_path, device="cpu").classes == ("a", "b", "c")


def test_doctor_describes_the_gpus_and_reports_that_torch_sees_none(tmp_path: Path) -> None:
    done = distrain("doctor", "--json", cwd=tmp_path, env=nvml_environment(gpu(0), gpu(1)))
    facts = json.loads(done.out)
    assert done.code == 1
    assert facts["driver"] == {"version": "580.82.07", "cuda": "13.0"}
    assert [(found["memory_gib"], found["capability"]) for found in facts["gpus"]] == [(80.0, "9.0"), (80.0, "9.0")]
    assert any("the driver shows 2 GPUs, but torch sees none: " in problem for problem in facts["problems"])


@pytest.mark.parametrize(
    ("torch", "changes", "words"),
    [
        (CUDA_TORCH, {}, None),
        (CPU_TORCH, {}, "torch sees none: torch 2.14.1+cpu is a CPU-only build; install a CUDA build"),
        (CPU_TORCH, {}, "this torch has no NCCL, so several GPUs cannot train together"),
        (TorchGpus("2.14.1+cu130", "13.0"), {"cuda": 12040}, "supports CUDA 12.4, but torch is built for 13.0: update"),
        (TorchGpus("2.14.1", "13.0", reason="No device."), {}, "torch sees none: No device.; check the driver"),
        (CUDA_TORCH, {"fault": "Driver Not Loaded"}, "torch sees 2 GPUs, but NVML: Driver Not Loaded: GPUs are used"),
        (CPU_TORCH, {"fault": "Mismatch"}, "/dev/nvidia0 exists, but NVML: Mismatch, and torch sees no GPU: torch"),
        (CUDA_TORCH, {"gpus": [gpu(0)]}, "NVML shows 1 GPU, but torch sees 2; check CUDA_VISIBLE_DEVICES"),
        (
            CUDA_TORCH,
            {"gpus": [gpu(0), gpu(1), gpu(2, lost=True)]},
            "GPU 2: NVML: GPU is lost; see nvidia-smi for details",
        ),
        (CUDA_TORCH, {"gpus": [gpu(0), gpu(1, capability=[7, 0])]}, "no kernels for NVIDIA H100 80GB HBM3 (compute"),
        (
            CUDA_TORCH,
            {"gpus": [gpu(0), gpu(1, capability=[8, 9])]},
            "(compute capability 8.9), only for sm_90; install",
        ),
    ],
)
def test_faults_are_found_in_both_directions(
    monkeypatch: pytest.MonkeyPatch, torch: TorchGpus, changes: dict[str, Any], words: str | None
) -> None:
    use_nvml(monkeypatch, **{"gpus": [gpu(0), gpu(1)], **changes})
    nvml = read_nvml()
    found = find_gpu_faults(nvml, torch, num_visible=len(nvml.gpus), files=["/dev/nvidia0"])
    assert [words in sentence for sentence in found].count(True) == 1 if words else not found


@pytest.mark.parametrize("architectures", [["sm_80"], ["compute_70"], ["sm_86", "sm_89"], ["sm_90a", "sm_80"]])
def test_kernels_serve_later_gpus_of_their_generation_and_ptx_all_later_ones(
    monkeypatch: pytest.MonkeyPatch, architectures: list[str]
) -> None:
    use_nvml(monkeypatch, gpu(0, capability=[8, 9]))
    torch = TorchGpus("2.14.1", "13.0", ["L40S"], None, has_nccl=True, architectures=architectures)
    assert find_gpu_faults(read_nvml(), torch, num_visible=1, files=[]) == []


def test_missing_package_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert read_nvml() == Nvml(fault="package nvidia-ml-py is not installed")


def _set(monkeypatch: pytest.MonkeyPatch, visible: str | None) -> None:
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
