"""What NVML reports of a GPU is read through one handle, and what it does not report is absent without a word."""

import sys

import pynvml
import pytest

from distrain.system.gpu_readings import GpuReader
from tests.fakes import gpu, mig, use_nvml

BUSY = {
    "used": 20 * 2**30,
    "utilization": [50, 100],
    "milliwatts": 650_500,
    "celsius": 87,
    "sm_mhz": 1755,
    "memory_mhz": 2619,
    "reasons": 0x20 | 0x04,
}
FIGURES = {
    "utilization": 0.5,
    "memory_used_gib": 20.0,
    "power_w": 650.5,
    "temperature_c": 87.0,
    "sm_clock_mhz": 1755.0,
    "memory_clock_mhz": 2619.0,
    "throttled_power": 1.0,
    "throttled_thermal": 1.0,
    "throttled_hardware": 0.0,
}


def uuid(number: int) -> str:
    """As torch shows it: without the prefix of NVML."""
    name: str = gpu(number)["uuid"]
    return name.removeprefix("GPU-")


def test_gpus_are_read_in_the_order_that_cuda_has(monkeypatch: pytest.MonkeyPatch) -> None:
    use_nvml(monkeypatch, gpu(0, celsius=40), gpu(1, **BUSY))
    reader = GpuReader([uuid(1), uuid(0)])
    assert reader.read() == [FIGURES, {"memory_used_gib": 0.0, "temperature_c": 40.0}]
    assert reader.read()[0] == FIGURES | {"utilization": 1.0}
    reader.close()
    assert reader.read() == []


@pytest.mark.parametrize(
    ("reasons", "found"),
    [
        (0x00, []),
        (0x01, []),  # idle
        (0x02 | 0x10 | 0x100, []),  # clocks that a user, a synchronous boost or a display has set
        (0x04, ["throttled_power"]),
        (0x20, ["throttled_thermal"]),
        (0x40 | 0x08, ["throttled_hardware", "throttled_thermal"]),
        (0x80, ["throttled_hardware"]),
    ],
)
def test_reasons_for_throttling_are_those_of_nvml(
    monkeypatch: pytest.MonkeyPatch, reasons: int, found: list[str]
) -> None:
    use_nvml(monkeypatch, gpu(0, reasons=reasons))
    (figures,) = GpuReader([uuid(0)]).read()
    assert sorted(name for name, value in figures.items() if name.startswith("throttled") and value) == found


def test_bits_and_names_are_those_of_the_installed_nvml() -> None:
    assert pynvml.nvmlClocksThrottleReasonSwPowerCap == 0x04
    assert pynvml.nvmlClocksThrottleReasonSwThermalSlowdown == 0x20
    assert pynvml.nvmlClocksThrottleReasonHwThermalSlowdown == 0x40
    assert pynvml.nvmlClocksThrottleReasonHwSlowdown == 0x08
    assert pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown == 0x80
    assert (pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM, pynvml.NVML_TEMPERATURE_GPU) == (1, 2, 0)
    for name in ("UtilizationRates", "MemoryInfo", "PowerUsage", "Temperature", "ClockInfo", "HandleByUUID"):
        assert callable(getattr(pynvml, f"nvmlDeviceGet{name}"))
    assert callable(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons)


def test_mig_device_has_the_figures_that_nvml_has_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    use_nvml(monkeypatch, mig(0, "1/0"))
    assert GpuReader(["01aaaaaa-bbbb"]).read() == [{"memory_used_gib": 0.0}]


def test_lost_gpu_has_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    use_nvml(monkeypatch, gpu(0, lost=True), gpu(1, celsius=41))
    assert GpuReader([uuid(0), uuid(1)]).read() == [{}, {"memory_used_gib": 0.0, "temperature_c": 41.0}]


@pytest.mark.parametrize("missing", ["module", "driver"])
def test_without_nvml_nothing_is_read_and_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], missing: str
) -> None:
    if missing == "module":
        monkeypatch.setitem(sys.modules, "pynvml", None)  # its import fails
    else:
        use_nvml(monkeypatch, fault="Driver Not Loaded")
    reader = GpuReader([uuid(0)])
    assert reader.read() == [{}]
    reader.close()
    assert capfd.readouterr() == ("", "")


def test_run_without_gpus_does_not_open_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert GpuReader([]).read() == []
