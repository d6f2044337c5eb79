"""As much of torch as says how many GPUs there are, as FAKE_TORCH describes it."""

import json
import os
from types import SimpleNamespace

_SPEC = {"version": "2.14.1+cu130", "cuda": "13.0", "count": 0, "reason": None}
_SPEC |= json.loads(os.environ.get("FAKE_TORCH", "{}"))

__version__ = _SPEC["version"]
version = SimpleNamespace(cuda=_SPEC["cuda"])


def _init():
    if _SPEC["reason"]:
        raise RuntimeError(_SPEC["reason"])


cuda = SimpleNamespace(device_count=lambda: _SPEC["count"], init=_init)
