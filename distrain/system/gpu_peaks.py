"""Knows the peak arithmetic of GPUs: dense operations of tensor cores, without sparsity, from NVIDIA's data sheets."""

from typing import Literal, NamedTuple

Arithmetic = Literal["fp32", "tf32", "bf16", "fp16"]


class _Peak(NamedTuple):
    """Peak FLOP/s in units of 1e12; None for arithmetic that the GPU does not have."""

    fp32: float  # without tensor cores
    tf32: float | None
    bf16: float | None
    fp16: float


# By parts of the name that CUDA shows: the first row of which all parts are in the name.
_PEAKS: tuple[tuple[tuple[str, ...], _Peak], ...] = (
    (("B200",), _Peak(75, 1125, 2250, 2250)),
    (("GH200",), _Peak(67, 494.5, 989.5, 989.5)),
    (("H200", "NVL"), _Peak(60, 417.5, 835.5, 835.5)),
    (("H200",), _Peak(67, 494.5, 989.5, 989.5)),
    (("H100", "NVL"), _Peak(60, 417.5, 835.5, 835.5)),
    (("H100", "PCIe"), _Peak(51, 378, 756, 756)),
    (("H100",), _Peak(67, 494.5, 989.5, 989.5)),
    (("A100",), _Peak(19.5, 156, 312, 312)),
    (("A30",), _Peak(10.3, 82, 165, 165)),
    (("L40S",), _Peak(91.6, 183, 362, 362)),
    (("L4",), _Peak(30.3, 60, 121, 121)),
    (("V100", "PCIE"), _Peak(14, None, None, 112)),
    (("V100", "SXM2"), _Peak(15.7, None, None, 125)),
    (("T4",), _Peak(8.1, None, None, 65)),
)


def find_peak_flops(gpu_name: str, arithmetic: Arithmetic) -> float | None:
    """Return the peak FLOP/s of a GPU by the name that CUDA shows; None where it is not known.

    A part of a GPU, such as a MIG device, has no known peak.
    """
    named = set(gpu_name.replace("-", " ").split())
    if "MIG" in named:
        return None
    for parts, peak in _PEAKS:
        if named.issuperset(parts):
            tera = getattr(peak, arithmetic)
            return None if tera is None else tera * 1e12
    return None
