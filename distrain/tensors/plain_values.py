"""Writes values as JSON text and tensors, and reads them back, without pickle, so that loading cannot run code."""

import io
import json
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from distrain.tensors.dtensor import is_sharded

STORABLE = "numbers, text, bytes, tensors and NumPy arrays, in lists, tuples, sets, deques and dicts"


# Types by their tags in the text: a tag is the first key of a JSON object.
_BYTES: dict[str, Callable[[bytes], Any]] = {"$bytes": bytes, "$bytearray": bytearray, "$stream": io.BytesIO}
_DICTS: dict[str, Callable[[Any], Any]] = {"$dict": dict, "$ordered": OrderedDict, "$counter": Counter}
_SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {
    "$tuple": tuple,
    "$size": torch.Size,
    "$set": set,
    "$frozenset": frozenset,
}


class NotPlainError(Exception):
    """A value has a type that cannot be written; the message names the type and the value's place."""


def encode(value: Any) -> tuple[str, list[torch.Tensor]]:
    """Return a value as JSON text and the tensors that the text refers to by index, copied on their devices.

    The text is ASCII. Raises `NotPlainError` for values other than `STORABLE`, None, bools and dtypes.
    """
    tensors: list[torch.Tensor] = []
    try:
        return json.dumps(_encode(value, "", tensors)), tensors
    except RecursionError:
        raise NotPlainError("a value that contains itself") from None
    except ValueError as error:  # an integer of thousands of digits
        raise NotPlainError(str(error)) from None


def decode(text: str, tensors: Sequence[torch.Tensor], *, device: torch.device | None = None) -> Any:
    """Return the value that `encode` has written, with copies of its tensors.

    A tensor that was on a GPU is moved to `device`; None leaves it where it is.
    """
    return _decode(json.loads(text), tensors, device)


def _encode(  # noqa: C901, PLR0911 - one branch per type
    value: Any, place: str, tensors: list[torch.Tensor]
) -> Any:
    kind = type(value)
    if value is None or kind in {bool, int, float, str}:
        return value
    if kind is list:
        return _encode_all(value, place, tensors)
    if kind is dict and all(type(key) is str and not key.startswith("$") for key in value):
        return {key: _encode(item, f"{place}[{key!r}]", tensors) for key, item in value.items()}
    if kind in {dict, *_DICTS.values()}:
        pairs = [
            [_encode(key, f"{place} (a key)", tensors), _encode(item, f"{place}[{key!r}]", tensors)]
            for key, item in value.items()
        ]
        return {_tag(kind, _DICTS): pairs}
    if kind in {tuple, torch.Size}:
        return {_tag(kind, _SEQUENCES): _encode_all(value, place, tensors)}
    if kind in {set, frozenset}:
        items = sorted((_encode(item, f"{place} (an item)", tensors) for item in value), key=json.dumps)
        return {_tag(kind, _SEQUENCES): items}
    if kind is deque:
        return {"$deque": _encode_all(value, place, tensors), "maxlen": value.maxlen}
    if kind is complex:
        return {"$complex": [value.real, value.imag]}
    if kind is torch.dtype:
        return {"$dtype": str(value).removeprefix("torch.")}
    if kind in _BYTES.values():
        content = value.getvalue() if kind is io.BytesIO else bytes(value)
        return {_tag(kind, _BYTES): _add(_of_bytes(content), tensors)}
    if isinstance(value, torch.Tensor):
        return _encode_tensor(value, place, tensors)
    if isinstance(value, np.ndarray | np.generic):
        return _encode_array(value, place, tensors)
    raise NotPlainError(f"a {kind.__module__}.{kind.__qualname__}{f' at {place}' if place else ''}")


def _tag(kind: Any, kinds: Mapping[str, Any]) -> str:
    return next(tag for tag, made in kinds.items() if made is kind)


def _encode_all(values: Sequence[Any], place: str, tensors: list[torch.Tensor]) -> list[Any]:
    return [_encode(item, f"{place}[{index}]", tensors) for index, item in enumerate(values)]


def _encode_tensor(value: torch.Tensor, place: str, tensors: list[torch.Tensor]) -> Any:
    if not is_storable(value):
        raise NotPlainError(f"a {type(value).__name__} of layout {value.layout}{f' at {place}' if place else ''}")
    encoded = {"$tensor": _add(value.detach().clone(), tensors)}
    return encoded if value.device.type == "cpu" else {**encoded, "device": value.device.type}


def is_storable(tensor: torch.Tensor) -> bool:
    """Whether a tensor is plain strided memory, full or sharded: not sparse, quantized or on `meta`."""
    is_plain = type(tensor) in {torch.Tensor, torch.nn.Parameter, torch.nn.Buffer} or is_sharded(tensor)
    return is_plain and tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta


def _encode_array(value: np.ndarray[Any, Any] | np.generic, place: str, tensors: list[torch.Tensor]) -> Any:
    array = np.asarray(value)
    if array.dtype.hasobject or array.dtype.names is not None or type(value) not in {np.ndarray, array.dtype.type}:
        raise NotPlainError(f"a NumPy value of dtype {array.dtype}{f' at {place}' if place else ''}")
    kind = "$array" if isinstance(value, np.ndarray) else "$scalar"
    return {kind: _add(_of_bytes(array.tobytes()), tensors), "dtype": array.dtype.str, "shape": list(array.shape)}


def _add(tensor: torch.Tensor, tensors: list[torch.Tensor]) -> int:
    tensors.append(tensor)
    return len(tensors) - 1


def _of_bytes(content: bytes) -> torch.Tensor:
    """Return uint8 [bytes]."""
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)


def _to_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.cpu().numpy().tobytes()


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _decode(  # noqa: PLR0911 - one branch per type
    value: Any, tensors: Sequence[torch.Tensor], device: torch.device | None
) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors, device) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value), "")
    if not tag.startswith("$"):
        return {key: _decode(item, tensors, device) for key, item in value.items()}
    content = value[tag]
    if tag == "$tensor":
        return tensors[content].to(device if "device" in value else None, copy=True)
    if tag in {"$array", "$scalar"}:
        # A copy, since an array over bytes is read-only.
        array = np.frombuffer(_to_bytes(tensors[content]), dtype=value["dtype"]).reshape(value["shape"]).copy()
        return array if tag == "$array" else array[()]
    if tag in _BYTES:
        return _BYTES[tag](_to_bytes(tensors[content]))
    if tag == "$dtype":
        return _dtype(content)
    items = _decode(content, tensors, device)
    if tag in _DICTS:
        return _DICTS[tag](dict(items))
    if tag == "$deque":
        return deque(items, maxlen=value["maxlen"])
    if tag == "$complex":
        return complex(*items)
    return _SEQUENCES[tag](items)
