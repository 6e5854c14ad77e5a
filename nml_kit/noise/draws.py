"""Which samples noise takes: decided by keyed hashes of their ids, whatever their order and whatever else there is."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nml_kit.errors import InvalidInputError

Ids = Sequence[str] | Sequence[int] | NDArray[Any] | None


def changed_count(ratio: float, num_samples: int) -> int:
    """How many of N samples a ratio (fraction) changes, ⌊ratio · N + ½⌋; InvalidInputError unless it is in 0–1."""
    if not isinstance(ratio, Real) or not 0 <= ratio <= 1:
        raise InvalidInputError(f"Expected ratio to be a fraction from 0 to 1, got {ratio!r}; 10 % is 0.1.")
    return math.floor(ratio * num_samples + 0.5)


def hash_ids(ids: Ids, num_samples: int, seed: int, purpose: str) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return two independent random 64-bit words for each id, (N,) and (N,)."""
    texts = [str(position) for position in range(num_samples)] if ids is None else _checked_ids(ids, num_samples)
    return random_words(texts, seed, purpose)


def random_words(texts: Iterable[str], seed: int, purpose: str) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Two independent random 64-bit words for each text, (N,) and (N,): the same in whatever parts texts come."""
    if not isinstance(seed, Integral) or isinstance(seed, bool):
        raise InvalidInputError(f"Expected seed to be an integer, got {seed!r}.")
    # A key of the seed's own digest: any size of seed fits, and labels and captions draw independently.
    key = hashlib.blake2b(f"{purpose} {int(seed)}".encode()).digest()
    encoded = (text.encode("utf-8", "surrogatepass") for text in texts)
    digests = b"".join(hashlib.blake2b(content, key=key, digest_size=16).digest() for content in encoded)
    words = np.frombuffer(digests, dtype="<u8").reshape(-1, 2)
    return words[:, 0], words[:, 1]


def _checked_ids(ids: Ids, num_samples: int) -> list[str]:
    array = np.array(ids, dtype=object)
    if array.shape != (num_samples,) or not all(isinstance(sample_id, str | Integral) for sample_id in array):
        raise InvalidInputError(f"Expected {num_samples} ids, texts or integers, got shape {array.shape}: {ids!r:.60}.")
    texts = [str(sample_id) for sample_id in array]
    repeated, times = Counter(texts).most_common(1)[0]
    if times > 1:
        raise InvalidInputError(f"Expected unique ids, got {repeated!r} {times} times; make ids unique.")
    return texts
