"""One hash for nested plain data and arrays, whatever the order of dict keys."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from nml_kit.errors import InvalidInputError


def fingerprint(value: Any) -> str:
    """Hash nested dicts, lists, scalars, bytes and arrays to 64 hex digits (sha256 of canonical JSON).

    The order of dict keys does not count; 1, 1.0 and True differ; NaN equals NaN; a tuple counts as a list;
    an array counts by dtype, shape and C-order content, one of strings, or of bytes, by its values whatever their item
    size. Raises InvalidInputError for anything else.

    >>> fingerprint({"a": 1, "b": [2.0]}) == fingerprint({"b": [2.0], "a": 1})
    True
    >>> fingerprint(1) == fingerprint(1.0)
    False
    """
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def plain(value: Any) -> Any:
    """Return `value` as JSON data, arrays and bytes by their digests; its fingerprint is the same.

    >>> plain({"a": (1, b"x")})["a"][0]
    1
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, bytes):
        return f"bytes sha256:{hashlib.sha256(value).hexdigest()}"
    if isinstance(value, np.ndarray):
        return _plain_array(value)
    raise InvalidInputError(
        "Expected dicts with text keys, lists, str, int, float, bool, None, bytes or arrays to fingerprint, "
        f"got {value!r:.80} ({type(value).__name__}); convert it, as with `.item()` or `dataclasses.asdict`."
    )


def plain_of_bytes(lengths: Sequence[int], contents: Iterable[bytes], kind: str = "bytes", shape: Any = None) -> str:
    """What `plain` gives for an array (N,) of bytes, of which only one is held at a time.

    Raises ValueError if a content has another length.

    >>> plain_of_bytes([1, 2], iter([b"a", b"bc"])) == plain(np.array([b"a", b"bc"], dtype=object))
    True
    """
    digest = hashlib.sha256(np.fromiter(lengths, dtype="<i8", count=len(lengths)).tobytes())
    for length, content in zip(lengths, contents, strict=True):
        if len(content) != length:
            raise ValueError(f"expected {length} bytes, got {len(content)}")
        digest.update(content)
    return f"array {kind} {shape or [len(lengths)]} sha256:{digest.hexdigest()}"


def _plain_array(array: np.ndarray) -> str:
    shape = list(array.shape)
    if array.dtype.kind in "biufcS":
        little_endian = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        digest = hashlib.sha256(little_endian.reshape(-1).view(np.uint8).data).hexdigest()
        return f"array {array.dtype.name} {shape} sha256:{digest}"
    values = array.ravel().tolist()
    kind = next((kind for kind in (str, bytes) if all(isinstance(value, kind) for value in values)), None)
    if array.dtype.kind not in "UOT" or kind is None:
        raise InvalidInputError(
            f"Expected an array of numbers, of texts or of bytes, got dtype {array.dtype}; convert it or fill its gaps."
        )
    encoded = values if kind is bytes else [text.encode("utf-8", "surrogatepass") for text in values]
    return plain_of_bytes(list(map(len, encoded)), encoded, kind.__name__, shape)
