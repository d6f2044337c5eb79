"""The peak of a GPU is found by the names that CUDA shows, and a GPU that is not known has none."""

import pytest

from distrain.system.gpu_peaks import Arithmetic, find_peak_flops


@pytest.mark.parametrize(
    ("name", "arithmetic", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.5),
        ("NVIDIA H100 80GB HBM3", "tf32", 494.5),
        ("NVIDIA H100 80GB HBM3", "fp32", 67),
        ("NVIDIA H100 PCIe", "fp16", 756),
        ("NVIDIA H100 NVL", "bf16", 835.5),
        ("NVIDIA H200", "bf16", 989.5),
        ("NVIDIA GH200 480GB", "bf16", 989.5),
        ("NVIDIA B200", "bf16", 2250),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100-PCIE-40GB", "tf32", 156),
        ("NVIDIA A30", "fp16", 165),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA L40S", "bf16", 362),
        ("Tesla V100-SXM2-32GB", "fp16", 125),
        ("Tesla V100-SXM2-32GB", "bf16", None),
        ("Tesla V100-PCIE-16GB", "fp16", 112),
        ("Tesla T4", "fp16", 65),
        ("NVIDIA A10", "bf16", None),
        ("NVIDIA L40", "bf16", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16", None),
        ("NVIDIA T400", "fp16", None),
    ],
)
def test_peak_is_that_of_the_data_sheet(name: str, arithmetic: Arithmetic, tera: float | None) -> None:
    assert find_peak_flops(name, arithmetic) == (None if tera is None else tera * 1e12)
