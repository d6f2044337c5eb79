"""Reads what GPUs are doing from NVML, through handles that stay open: utilization, memory, power, clocks, throttling.

Whatever NVML does not report, as in some containers or for MIG devices, is absent; nothing is raised or printed.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

GIBIBYTE = 2**30  # bytes

# Bits of nvmlDeviceGetCurrentClocksThrottleReasons, without those of an idle GPU and of clocks that a user has set.
# https://docs.nvidia.com/deploy/nvml-api/group__nvmlClocksEventReasons.html
_REASONS = {
    "throttled_power": 0x04,  # the power limit: normal at full load
    "throttled_thermal": 0x20 | 0x40,  # by the driver or by the hardware
    "throttled_hardware": 0x08 | 0x80,  # slowed down to half or less by the hardware; an external power brake
}
# NVML_CLOCK_SM, NVML_CLOCK_MEM and NVML_TEMPERATURE_GPU of nvml.h
_SM_CLOCK, _MEMORY_CLOCK, _TEMPERATURE = 1, 2, 0


class GpuReader:
    """Holds open NVML handles of some GPUs; without NVML it reads nothing."""

    def __init__(self, uuids: Sequence[str]) -> None:
        """`uuids` are those that CUDA shows, without the prefix of NVML."""
        self._nvml: Any = None
        self._handles: list[Any] = [None] * len(uuids)
        if not uuids:
            return
        with suppress(Exception):  # no module, no driver, or both hidden in a container: `distrain doctor` reports it
            import pynvml

            pynvml.nvmlInit()
            self._nvml = pynvml
            self._handles = [self._open(uuid) for uuid in uuids]

    def read(self) -> list[dict[str, float]]:
        """Return the figures of each GPU by name; a GPU that NVML does not show, or has lost, has none."""
        return [{} if handle is None else self._read(handle) for handle in self._handles]

    def close(self) -> None:
        """Close NVML."""
        if self._nvml is not None:
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
            self._nvml, self._handles = None, []

    def _open(self, uuid: str) -> Any:
        for prefix in ("GPU-", "MIG-"):
            with suppress(self._nvml.NVMLError):
                return self._nvml.nvmlDeviceGetHandleByUUID(prefix + uuid)
        return None

    def _read(self, handle: Any) -> dict[str, float]:
        nvml = self._nvml
        readers: tuple[Callable[[], dict[str, float]], ...] = (
            lambda: {"utilization": nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100},
            lambda: {"memory_used_gib": nvml.nvmlDeviceGetMemoryInfo(handle).used / GIBIBYTE},
            lambda: {"power_w": nvml.nvmlDeviceGetPowerUsage(handle) / 1000},
            lambda: {"temperature_c": float(nvml.nvmlDeviceGetTemperature(handle, _TEMPERATURE))},
            lambda: {"sm_clock_mhz": float(nvml.nvmlDeviceGetClockInfo(handle, _SM_CLOCK))},
            lambda: {"memory_clock_mhz": float(nvml.nvmlDeviceGetClockInfo(handle, _MEMORY_CLOCK))},
            lambda: _throttling(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
        )
        found: dict[str, float] = {}
        for read in readers:
            with suppress(nvml.NVMLError):
                found |= read()
        return found


def _throttling(reasons: int) -> dict[str, float]:
    """Return 1 for each kind of throttling that is active, else 0; their mean is a share of the time."""
    return {name: float(bool(reasons & bits)) for name, bits in _REASONS.items()}
