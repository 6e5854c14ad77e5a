"""`Task`: inputs, labels, captions, domains and stable ids of a data set, row by row."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nml_kit.data.digests import digest_of
from nml_kit.data.images import LazyImages, decode_images
from nml_kit.errors import DataFileError, InvalidInputError, unknown_name
from nml_kit.store import fingerprint

_TEST_SHARE = 0.25
_MOST_CLASSES = 1_000_000
_MOST_CHARACTERS = 10**9  # of a column, at four bytes each


@dataclass(frozen=True, eq=False)
class Task:
    """A labelled data set whose row i is described by the i-th element of every array.

    `ids` (N,) str, unique; `labels` (N,) int64 in 0..K−1; `class_names` K strings; `captions`, `domains`, `splits`
    (N,) str, split "train" or "test"; `image_data` pixels (N, H, W, 3) uint8, or encoded files (N,) of bytes, which
    are decoded when pixels are asked for, or `LazyImages` (N,), which are also read only then, or None for a text task.
    Raises InvalidInputError if lengths differ, an id repeats, or a label is outside 0..K−1.

    >>> import numpy as np
    >>> task = Task("two", ids=np.array(["a", "b"]), labels=np.array([0, 1]), class_names=("no", "yes"),
    ...             captions=np.array(["n", "y"]), domains=np.array(["d", "d"]),
    ...             splits=np.array(["train", "test"]))
    >>> len(task), task.select(split="train").ids.tolist()
    (2, ['a'])
    """

    name: str
    ids: NDArray[np.str_]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    captions: NDArray[np.str_]
    domains: NDArray[np.str_]
    splits: NDArray[np.str_]
    image_data: NDArray[Any] | LazyImages | None = None

    def __post_init__(self) -> None:
        columns: dict[str, Any] = {"labels": self.labels, "captions": self.captions, "domains": self.domains,
                                   "splits": self.splits}  # fmt: skip
        if self.image_data is not None:
            columns["images"] = self.image_data
        for column, values in columns.items():
            _require_length(self.name, column, values, len(self.ids))
        require_unique_ids(self.ids, f"Task {self.name!r}")
        _require_labels(self.name, self.labels, self.num_classes)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def images(self) -> NDArray[np.uint8] | None:
        """All pixels, uint8 RGB (N, H, W, 3), or None for a text task.

        Raises DataFileError if a file does not decode, or if sizes differ.
        """
        if self.image_data is None:
            return None
        images = self.inputs(slice(None))
        if images.dtype == object:
            raise DataFileError(
                f"Task {self.name!r}: expected images of one size, but got {sorted({i.shape for i in images})[:4]}; "
                "resize them, or take `inputs(rows)` in batches and resize those."
            )
        return images

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the ids and the inputs (image data, or captions of a text task); labels are not part of it.

        Files count by their bytes, never by their paths or times; all are read, but not again until one is written to.
        """
        inputs = self.captions if self.image_data is None else self.image_data
        content = digest_of(inputs) if isinstance(inputs, LazyImages) else inputs
        return fingerprint({"ids": self.ids, "inputs": content})

    def inputs(self, rows: slice | NDArray[np.intp]) -> NDArray[Any]:
        """The model inputs of `rows`: uint8 images (n, H, W, 3), or captions (n,) of a text task.

        Images of several sizes come as an object array (n,) of uint8 (h, w, 3).
        Raises DataFileError if a file is missing or does not decode.
        """
        if self.image_data is None:
            return self.captions[rows]
        chosen = self.image_data[rows]
        return decode_images(chosen, self.ids[rows], self.name) if chosen.dtype == object else chosen

    def take(self, rows: NDArray[Any]) -> "Task":
        """The task restricted to `rows`, a boolean mask (N,) or integer positions."""
        image_data = None if self.image_data is None else self.image_data[rows]
        return replace(self, ids=self.ids[rows], labels=self.labels[rows], captions=self.captions[rows],
                       domains=self.domains[rows], splits=self.splits[rows], image_data=image_data)  # fmt: skip

    def select(self, *, split: str | None = None, domains: Sequence[str] | None = None) -> "Task":
        """The samples of one split and of some domains; an unknown name is an error.

        Raises UnknownNameError if `split` or a domain does not occur in the task.
        """
        return self.take(select_rows(self.splits, self.domains, split=split, domains_wanted=domains))

    def limit(self, *, classes: int | None = None, train_per_class: int | None = None, seed: int) -> "Task":
        """A smaller task: the first `classes` classes and a random `train_per_class` training samples of each.

        Test samples of the kept classes all stay, so accuracies of small runs are measured as finely as possible.
        """
        kept_classes = self.num_classes if classes is None else min(classes, self.num_classes)
        generator = np.random.default_rng(seed)
        keep = (self.splits == "test") & (self.labels < kept_classes)
        for label in range(kept_classes):
            rows = np.flatnonzero((self.splits == "train") & (self.labels == label))
            rows = rows[np.argsort(self.ids[rows])]
            count = len(rows) if train_per_class is None else min(train_per_class, len(rows))
            keep[generator.permutation(rows)[:count]] = True
        return replace(self.take(keep), class_names=self.class_names[:kept_classes])


def _require_labels(name: str, labels: NDArray[np.int64], num_classes: int) -> None:
    if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
        raise InvalidInputError(
            f"Task {name!r}: expected labels in 0..{num_classes - 1}, but got {labels.min()}..{labels.max()}."
        )


def _require_length(name: str, column: str, values: Any, count: int) -> None:
    if len(values) != count:
        raise InvalidInputError(f"Task {name!r}: expected {count} {column}, one per id, but got {len(values)}.")


def require_unique_ids(ids: NDArray[np.str_], owner: str) -> None:
    """Raise InvalidInputError naming a repeated id."""
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) != len(ids):
        repeated = str(unique[counts > 1][0])
        raise InvalidInputError(
            f"{owner}: expected unique ids, but got {repeated!r} {counts.max()} times; make ids unique."
        )


def select_rows(
    splits: NDArray[np.str_],
    domains: NDArray[np.str_],
    *,
    split: str | None = None,
    domains_wanted: Sequence[str] | None = None,
) -> NDArray[np.bool_]:
    """Boolean mask (N,) of the rows in `split` and in `domains_wanted` (None: all)."""
    mask = np.ones(len(splits), dtype=bool)
    if split is not None:
        if split not in splits:
            raise unknown_name("split", split, np.unique(splits).tolist())
        mask &= splits == split
    if domains_wanted is not None:
        for domain in domains_wanted:
            if domain not in domains:
                raise unknown_name("domain", domain, np.unique(domains).tolist())
        mask &= np.isin(domains, list(domains_wanted))
    return mask


def splits_by_id(ids: NDArray[np.str_], labels: NDArray[np.int64]) -> NDArray[np.str_]:
    """Splits (N,) for a set that comes without: a quarter of each class for "test", drawn by a hash of the ids.

    Neither order nor place of the samples counts. At least one of a class stays in "train".

    >>> splits_by_id(np.array(["a", "b", "c", "d"]), np.array([0, 0, 0, 0])).tolist()
    ['train', 'train', 'train', 'test']
    """
    ranks = np.array([int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) for name in ids.tolist()], np.uint64)
    order = np.lexsort((ranks, labels))
    counts = np.bincount(labels[order])
    place = np.arange(len(ids)) - np.repeat(np.cumsum(counts) - counts, counts)  # of a sample within its class
    splits = np.full(len(ids), "train")
    splits[order[place < np.round(_TEST_SHARE * counts).repeat(counts)]] = "test"
    return splits


def classes_of(values: Sequence[Any] | NDArray[Any]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels (N,) in 0..K−1 and the names of the K classes, of whole numbers or texts (N,).

    Texts are sorted; numbers stay what they are, so that parts of one data set agree, and are their own names.
    Raises ValueError for other values, negative numbers, or numbers that are no classes.

    >>> classes_of(["dog", "cat", "dog"])[1], classes_of([2, 0])
    (('cat', 'dog'), (array([2, 0]), ('0', '1', '2')))
    """
    found = np.asarray(values)
    if found.ndim == 1 and found.dtype.kind in "iu" and len(found):
        if found.min() < 0 or found.max() >= _MOST_CLASSES:
            raise ValueError(f"labels {found.min()} to {found.max()}, not 0 to K-1; write names as texts")
        return found.astype(np.int64), tuple(map(str, range(int(found.max()) + 1)))
    if found.ndim != 1 or not all(isinstance(value, str) for value in found.tolist()):
        raise ValueError(f"labels of dtype {found.dtype} and shape {found.shape}, not whole numbers or texts")
    names, labels = np.unique(found.astype(np.str_), return_inverse=True)
    return labels.astype(np.int64), tuple(names.tolist())


def padded_texts(texts: Sequence[str]) -> NDArray[np.str_]:
    """Texts (N,) of at most one length; raises ValueError if one is so long that padding all to it takes gigabytes.

    >>> padded_texts(["a", "bc"]).dtype
    dtype('<U2')
    """
    if (longest := max(map(len, texts), default=0)) * len(texts) > _MOST_CHARACTERS:
        raise ValueError(f"a text of {longest:,} characters, too long for {len(texts):,} rows: numpy pads all to it")
    return np.array(texts, dtype=np.str_)


def make_task(
    name: str,
    *,
    ids: NDArray[np.str_],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    captions: NDArray[Any] | None = None,
    domains: NDArray[Any] | None = None,
    splits: NDArray[Any] | None = None,
    image_data: NDArray[Any] | LazyImages | None = None,
) -> Task:
    """A Task of what a data set has: the caption of an image is else its class, the domain "all", a quarter is "test".

    Raises InvalidInputError as `Task` does, for splits other than "train" and "test", and for ids that are no Unicode
    text, such as names of files in an encoding of old.
    """
    try:
        "".join(ids.tolist()).encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"Task {name!r}: expected ids of Unicode text, but got {error}; rename it.") from error
    _require_length(name, "labels", labels, len(ids))  # before they are counted on
    _require_labels(name, labels, len(class_names))
    if splits is None:
        splits = splits_by_id(ids, labels)
    if len(wrong := np.setdiff1d(splits, ["train", "test"])):
        raise InvalidInputError(f"Task {name!r}: expected splits train and test, but got {str(wrong[0])!r}; rename it.")
    if captions is None:
        captions = np.array([class_name.replace("_", " ") for class_name in class_names], dtype=np.str_)[labels]
    if domains is None:
        domains = np.full(len(ids), "all")
    return Task(name, ids, labels, tuple(class_names), captions, domains, splits, image_data)
