"""Values are read back unchanged, without pickle, and errors name values that cannot be written."""

import datetime
import io
import random
from collections import Counter, OrderedDict, deque
from typing import Any

import numpy as np
import pytest
import torch

from distrain.tensors.plain_values import NotPlainError, decode, encode

VALUES: dict[Any, Any] = {
    "none": None,
    "list": [1.5, float("inf"), True, "\u00fc\ud800"],
    "nested": (1, ({"a": ()},)),
    7: {"$tensor": b"\x00a", (1, "x"): bytearray(b"")},
    "ordered": OrderedDict(b=1, a=2),
    "counter": Counter("aab"),
    "sets": [{3, 1, "x"}, frozenset({(1, 2)})],
    "deque": deque([1, 2], maxlen=2),
    "complex": 1 + 2j,
    "types": [torch.bfloat16, torch.Size([2, 3])],
    "python's draws": random.getstate(),
    "numpy's draws": np.random.default_rng(0).bit_generator.state,
    "large": 2**200,
}


def back(value: Any) -> Any:
    return decode(*encode(value))


def test_plain_values_are_read_back_equal_and_of_the_same_types() -> None:
    found = back(VALUES)
    assert found == VALUES
    assert repr(found) == repr(VALUES) or {type(v) for v in found.values()} == {type(v) for v in VALUES.values()}
    assert list(found) == list(VALUES)
    assert found["deque"].maxlen == 2
    assert np.isnan(back(float("nan")))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6).reshape(2, 3).t(),
        torch.tensor(1.5, dtype=torch.bfloat16),
        torch.nn.Parameter(torch.ones(2)),
        torch.zeros(0, 3, dtype=torch.bool),
        torch.tensor([1j]),
    ],
)
def test_tensors_are_read_back_as_copies_without_history(tensor: torch.Tensor) -> None:
    text, parts = encode([tensor])
    (found,) = decode(text, parts)
    assert type(found) is torch.Tensor and not found.requires_grad
    assert found.dtype == tensor.dtype and torch.equal(found, tensor)
    found.zero_()
    assert torch.equal(decode(text, parts)[0], tensor)


@pytest.mark.parametrize(
    "array", [np.arange(6, dtype=">i2").reshape(2, 3), np.array(["ab"]), np.float32(1.5), np.bool_(1)]
)
def test_arrays_are_read_back_with_their_dtype_and_are_writable(array: Any) -> None:
    found = back(array)
    assert type(found) is type(array) and found.dtype == array.dtype and np.array_equal(found, array)
    if isinstance(found, np.ndarray):
        found[...] = found[::-1]


def test_stream_is_read_back_at_its_beginning() -> None:
    stream = io.BytesIO(b"state")
    stream.read()
    assert back(stream).read() == b"state"


RING: list[Any] = []
RING.append(RING)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": [lambda: 0]}, r"a builtins\.function at \['a'\]\[0\]"),
        (datetime.date(2020, 1, 1), r"a datetime\.date"),
        (np.array([object()]), r"a NumPy value of dtype object"),
        (torch.zeros(2).to_sparse(), r"a Tensor of layout torch\.sparse_coo"),
        (torch.zeros(2, device="meta"), r"a Tensor"),
        pytest.param(10**5000, r"4300 digits", id="digits"),
        (RING, r"contains itself"),
        ({datetime.date(2020, 1, 1): 1}, r"a datetime\.date at  \(a key\)"),
    ],
)
def test_error_names_the_place_of_a_value_that_cannot_be_written(value: Any, words: str) -> None:
    with pytest.raises(NotPlainError, match=words):
        encode(value)
