"""Samples and their split: representatives, clusters, train and test, and the removal of what is alike across them."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from duplicates import Likeness, Views, alike, clusters, representatives, views

SAME = Likeness(0.97, 0.97, 0)
DRAWING = Likeness(0.93, 0.95, 6)
PHOTO = Likeness(0.97, 0.97, 6)
LARGEST_TEST_CLUSTER = 0.1


@dataclass(frozen=True)
class Sample:
    """One row of a task; `identity` ties rows that must share a split; pixels (32, 32, 3) uint8 or None for text."""

    label: str
    caption: str
    domain: str
    source: str
    id: str
    identity: str
    pixels: np.ndarray | None
    split: str = ""


def rank(text: str) -> str:
    """Return a fixed pseudo-random sort key that depends on the text alone."""
    return hashlib.sha256(text.encode()).hexdigest()


def view_of(samples: Sequence[Sample]) -> Views:
    """Compute the likeness views of samples with pixels."""
    return views(np.stack([sample.pixels for sample in samples if sample.pixels is not None]))


def by_class(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """Group samples by label, each group in a fixed pseudo-random order."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in sorted(samples, key=lambda sample: rank(sample.id)):
        groups[sample.label].append(sample)
    return dict(sorted(groups.items()))


def split_sizes(samples: Iterable[Sample]) -> tuple[int, int]:
    """Count train and test samples."""
    counts = Counter(sample.split for sample in samples)
    return counts["train"], counts["test"]


def thin(samples: Sequence[Sample]) -> list[Sample]:
    """Keep one of every group of same-class images that are the same but for detail, across sets."""
    kept = []
    for members in by_class(samples).values():
        seen = view_of(members)
        keep = representatives(alike(seen, seen, SAME), len(members))
        kept += [member for member, good in zip(members, keep, strict=True) if good]
    return kept


def split_class(members: Sequence[Sample], bound: Likeness, test_share: float) -> list[Sample]:
    """Split one class by clusters of alike images and shared identity; big clusters always train."""
    first: dict[str, int] = {}
    ties = [(row, first.setdefault(member.identity, row)) for row, member in enumerate(members)]
    seen = view_of(members)
    pairs = np.concatenate([np.array(ties, dtype=np.int64), alike(seen, seen, bound)])
    cluster = clusters(pairs, len(members))
    size = Counter(cluster.tolist())
    wanted, largest = test_share * len(members), max(1.0, LARGEST_TEST_CLUSTER * len(members))
    test: set[int] = set()
    count = 0
    for number in dict.fromkeys(cluster.tolist()):
        if count < wanted and size[number] <= largest:
            test.add(number)
            count += size[number]
    return [replace(m, split="test" if c in test else "train") for m, c in zip(members, cluster.tolist(), strict=True)]


def split_all(samples: Sequence[Sample], bound: Likeness, test_share: float) -> list[Sample]:
    """Split every class of a task."""
    return [one for members in by_class(samples).values() for one in split_class(members, bound, test_share)]


def remove_leaks(
    tasks: dict[str, list[Sample]], bounds: dict[str, Likeness]
) -> tuple[dict[str, list[Sample]], Counter]:
    """Drop every train image alike to a test image of any task; return what is left and how many went, by task."""
    rows = [(name, sample) for name, samples in tasks.items() for sample in samples]
    seen = view_of([sample for _, sample in rows])
    owner = np.array([name for name, _ in rows])
    is_test = np.array([sample.split == "test" for _, sample in rows])
    leaking = np.zeros(len(rows), dtype=bool)
    for name in tasks:
        train = np.flatnonzero((owner == name) & ~is_test)
        for tests, bound in ((is_test & (owner == name), bounds[name]), (is_test & (owner != name), DRAWING)):
            pairs = alike(seen[np.flatnonzero(tests)], seen[train], bound)
            leaking[train[pairs[:, 1]]] = True
    kept: dict[str, list[Sample]] = {name: [] for name in tasks}
    for (name, sample), bad in zip(rows, leaking, strict=True):
        if not bad:
            kept[name].append(sample)
    return kept, Counter(owner[leaking].tolist())


def cap(samples: Sequence[Sample], limits: dict[str, int], key: tuple[str, ...]) -> list[Sample]:
    """Keep at most `limits[split]` samples of every combination of the attributes in `key`, in a fixed order."""
    taken: Counter = Counter()
    kept = []
    for sample in sorted(samples, key=lambda sample: rank(sample.id)):
        place = (sample.split, *(getattr(sample, name) for name in key))
        if taken[place] < limits[sample.split]:
            taken[place] += 1
            kept.append(sample)
    return kept
