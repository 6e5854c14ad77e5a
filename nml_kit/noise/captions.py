"""Captions that samples exchange among themselves, at an exact ratio, as a record."""

from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, Shaped
from numpy.typing import NDArray

from nml_kit.errors import InvalidInputError
from nml_kit.noise.draws import Ids, changed_count, hash_ids


@dataclass(frozen=True, eq=False)
class CaptionNoise:
    """What was exchanged: texts before and after (N,) object, mask (N,) bool, `noisy[i] = clean[source[i]]`."""

    clean: Shaped[np.ndarray, " n"]
    noisy: Shaped[np.ndarray, " n"]
    mask: Bool[np.ndarray, " n"]
    source: Int64[np.ndarray, " n"]
    requested_ratio: float
    realised_ratio: float
    seed: int


def inject_caption_noise(
    captions: Sequence[str] | Shaped[np.ndarray, " n"], ratio: float, *, seed: int, ids: Ids = None
) -> CaptionNoise:
    """Let ⌊ratio · N + ½⌋ samples exchange captions (N,) among themselves, so that each of them gets another text.

    Every text is used as often as before. `ids` (N,), unique texts or integers, decide the draw; without them the
    position does. Who takes part is nested in the ratio, who gets whose caption is not.

    Raises InvalidInputError for a bad argument, and when the exchange is impossible: for a single sample, or when one
    text fills more than half of those that would have to change.

    >>> noise = inject_caption_noise(["a cat", "a dog", "a cow", "a hen"], 0.5, seed=0)
    >>> int(noise.mask.sum()), sorted(noise.noisy) == sorted(noise.clean)
    (2, True)
    """
    clean = _checked_captions(captions)
    count = changed_count(ratio, len(clean))
    selection, place = hash_ids(ids, len(clean), seed, "caption")
    ranked = np.lexsort((place, selection))
    chosen = ranked[nested_prefix(clean[ranked].tolist(), count)]
    order = chosen[np.argsort(place[chosen])]
    groups: dict[str, int] = {}
    group_of = [groups.setdefault(text, len(groups)) for text in clean[order]]
    order = order[np.argsort(group_of, kind="stable")]
    # Random order, but equal texts stand together: a shift by the largest group leaves no text where it was.
    source = np.arange(len(clean))
    source[order] = np.roll(order, -max(Counter(group_of).values(), default=0))
    mask = source != np.arange(len(clean))
    return CaptionNoise(clean, clean[source], mask, source, float(ratio), float(mask.mean()), int(seed))


def _checked_captions(captions: Sequence[str] | np.ndarray) -> NDArray[np.object_]:
    clean = np.array(captions, dtype=object)
    if clean.ndim != 1 or not clean.size:
        raise InvalidInputError(f"Expected captions to be texts of shape (N,), N ≥ 1, got shape {clean.shape}.")
    for place, caption in enumerate(clean):
        if not isinstance(caption, str):
            raise InvalidInputError(f"Expected captions to be texts, got {caption!r} at {place}; drop or fill it.")
    return clean


def nested_prefix(texts: list[str], count: int) -> list[int]:
    """Choose `count` positions, the first ones where possible, none of whose texts fills more than half of them.

    One is added at a time, so the choice is nested in `count`; two where an odd number could not exchange two texts.
    """
    chosen: list[int] = []
    frequency: Counter[str] = Counter()
    postponed: defaultdict[str, deque[int]] = defaultdict(deque)
    upcoming = iter(range(len(texts)))

    def add_one(limit: int) -> bool:
        ready = [queue[0] for text, queue in postponed.items() if queue and frequency[text] < limit]
        if ready:
            position = postponed[texts[min(ready)]].popleft()
        else:
            for position in upcoming:
                if frequency[texts[position]] < limit:
                    break
                postponed[texts[position]].append(position)
            else:
                return False
        chosen.append(position)
        frequency[texts[position]] += 1
        return True

    while (size := len(chosen)) < count:
        if size and add_one((size + 1) // 2):
            continue
        if size + 1 == count or not add_one(size // 2 + 1) or not add_one(size // 2 + 1):
            text, times = Counter(texts).most_common(1)[0]
            raise InvalidInputError(
                f"Expected {count} of {len(texts)} captions to exchange texts, at least two and no text in more than "
                f"half of them, got {text!r:.60} {times} times; change the ratio or drop repeated captions."
            )
    return chosen
