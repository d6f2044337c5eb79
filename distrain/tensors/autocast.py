"""Enters autocast by a dtype, for every forward pass."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_NO_CONTEXT: AbstractContextManager[Any] = nullcontext()


def autocast(dtype: torch.dtype | None, device_type: str) -> AbstractContextManager[Any]:
    """Return the context of a forward pass that computes convolutions and matrix products in `dtype`, unless None."""
    return _NO_CONTEXT if dtype is None else torch.autocast(device_type, dtype)
