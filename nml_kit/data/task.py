"""`Task`: inputs, labels, captions, domains and stable ids of a data set, row by row."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, Shaped, UInt8
from numpy.typing import ArrayLike, NDArray

from nml_kit.data.images import LazyImages, decode_images
from nml_kit.errors import DataFileError, InvalidInputError, unknown_name
from nml_kit.noise import CaptionNoise, LabelNoise
from nml_kit.store import fingerprint

_TEST_SHARE = 0.25


@dataclass(frozen=True, eq=False)
class Task:
    """A labelled data set whose row i is described by the i-th element of every array.

    `ids` (N,) str, unique; `labels` (N,) int64 in 0..K−1; `class_names` K strings; `captions`, `domains`, `splits`
    (N,) str, split "train" or "test"; `image_data` pixels (N, H, W, 3) uint8, or encoded files (N,) of bytes, which
    are decoded when pixels are asked for, or `LazyImages` (N,), which are also read only then, or None for a text task.
    Captions are else the names of the classes, the domain is else "all", and a quarter of each class is else "test".
    Raises InvalidInputError if lengths differ, an id repeats or is no Unicode text, such as the name of a file in an
    encoding of old, a label is outside 0..K−1, or a split is another.

    >>> import numpy as np
    >>> task = Task("two", np.array(["a", "b"]), np.array([0, 1]), ("no", "yes"), splits=np.array(["train", "test"]))
    >>> len(task), task.select(split="train").ids.tolist(), task.captions.tolist()
    (2, ['a'], ['no', 'yes'])
    """

    name: str
    ids: Shaped[np.ndarray, " n"]
    labels: Int64[np.ndarray, " n"]
    class_names: tuple[str, ...]
    captions: Shaped[np.ndarray, " n"] | Any = None  # these three are arrays once the task is made
    domains: Shaped[np.ndarray, " n"] | Any = None
    splits: Shaped[np.ndarray, " n"] | Any = None
    image_data: Shaped[np.ndarray, "n ..."] | LazyImages | None = None

    def __post_init__(self) -> None:
        owner, labels, k = f"Task {self.name!r}", self.labels, self.num_classes
        for column in ("labels", "captions", "domains", "splits", "image_data"):
            values = getattr(self, column)
            if values is not None and len(values) != len(self.ids):
                expected = f"expected {len(self.ids)} {column.removesuffix('_data')}, one per id"
                raise InvalidInputError(f"{owner}: {expected}, but got {len(values)}.")
        if len(labels) and not (labels.min() >= 0 and labels.max() < k):
            raise InvalidInputError(f"{owner}: expected labels in 0..{k - 1}, but got {labels.min()}..{labels.max()}.")
        require_unique_ids(self.ids, owner)
        try:
            "".join(self.ids.tolist()).encode()
        except UnicodeEncodeError as error:
            raise InvalidInputError(f"{owner}: expected ids of Unicode text, but got {error}; rename it.") from error
        if self.captions is None:
            names = np.array([name.replace("_", " ") for name in self.class_names], dtype=np.str_)
            object.__setattr__(self, "captions", names[labels])
        if self.domains is None:
            object.__setattr__(self, "domains", np.full(len(labels), "all"))
        if self.splits is None:
            object.__setattr__(self, "splits", splits_by_id(self.ids, labels))
        if len(wrong := np.setdiff1d(self.splits, ["train", "test"])):
            raise InvalidInputError(f"{owner}: expected splits train and test, but got {str(wrong[0])!r}; rename it.")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def images(self) -> UInt8[np.ndarray, "n h w 3"] | None:
        """All pixels, or None for a text task; raises DataFileError if a file does not decode, or if sizes differ."""
        if self.image_data is None:
            return None
        self._require_unchanged()  # from now on
        images = self.inputs(slice(None))
        if images.dtype == object:
            raise DataFileError(
                f"Task {self.name!r}: expected images of one size, but got {sorted({i.shape for i in images})[:4]}; "
                "resize them, or take `inputs(rows)` in batches and resize those."
            )
        return images

    @property
    def fingerprint(self) -> str:
        """Hash of the ids and the inputs (image data, or captions of a text task); labels are not part of it.

        Files count by their bytes, never by their paths or times; all are read, but not again until one is written to.
        Raises DataFileError if one was, after `images` or this were first asked for.
        """
        self._require_unchanged()
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        inputs = self.captions if self.image_data is None else self.image_data
        content = inputs.digest() if isinstance(inputs, LazyImages) else inputs
        return fingerprint({"ids": self.ids, "inputs": content})

    def _require_unchanged(self) -> None:
        """What is kept of this task must be of its files as they were when this was first asked."""
        now = self.image_data.stamp() if isinstance(self.image_data, LazyImages) else None
        if now is not None and now != vars(self).setdefault("_stamp", now):  # of a file that is gone, reading tells
            raise DataFileError(
                f"Task {self.name!r}: expected files as they were when they were first read, but some have changed; "
                "load the task again."
            )

    def inputs(self, rows: slice | Shaped[np.ndarray, " m"]) -> Shaped[np.ndarray, "m ..."]:
        """The model inputs of `rows`: uint8 images (m, H, W, 3), or captions (m,) of a text task.

        Images of several sizes come as an object array (m,) of uint8 (h, w, 3).
        Raises DataFileError if a file is missing or does not decode.
        """
        if self.image_data is None:
            return self.captions[rows]
        chosen = self.image_data[rows]
        return decode_images(chosen, self.ids[rows], self.name) if chosen.dtype == object else chosen

    def take(self, rows: Shaped[np.ndarray, " m"]) -> "Task":
        """The task restricted to `rows`, a boolean mask (N,) or integer positions."""
        columns = ("ids", "labels", "captions", "domains", "splits", "image_data")
        present = {name: getattr(self, name) for name in columns if getattr(self, name) is not None}
        return replace(self, **{name: values[rows] for name, values in present.items()})

    def select(self, *, split: str | None = None, domains: Sequence[str] | None = None) -> "Task":
        """The samples of one split and of some domains; UnknownNameError for one that does not occur."""
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
            keep[generator.permutation(rows)[:train_per_class]] = True
        return replace(self.take(keep), class_names=self.class_names[:kept_classes])


def noise_fingerprint(record: LabelNoise | CaptionNoise) -> str:
    """Hash a record of noise, every label, text and setting of it, to 64 hex digits."""
    return fingerprint({"record": type(record).__name__, **vars(record)})


def task_from_arrays(
    inputs: ArrayLike,
    labels: ArrayLike,
    *,
    name: str = "arrays",
    ids: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    captions: ArrayLike | None = None,
    domains: ArrayLike | None = None,
    splits: ArrayLike | None = None,
) -> Task:
    """A Task of images (N, H, W, 3) or (N, H, W) uint8, or of texts (N,), with labels (N,): arrays, tensors, or lists.

    The classes are the sorted values of the labels, numbers or texts; with `class_names` numbers are positions in
    these. Without `ids` rows are numbered; without `domains` all are one; without `splits` a quarter of each class is
    "test", drawn by a hash of the ids.
    Raises InvalidInputError for inputs or labels of other kinds, and as `Task` does.

    >>> task = task_from_arrays(np.zeros((8, 5, 4, 3), np.uint8), ["no", "yes"] * 4)
    >>> task.class_names, task.select(split="test").images.shape
    (('no', 'yes'), (2, 5, 4, 3))
    """
    values = np.asarray(inputs)
    texts = values.ndim == 1 and all(isinstance(value, str) for value in values.tolist())
    try:
        numbers, names = classes_of(np.asarray(labels), class_names or ())
    except ValueError as error:
        raise InvalidInputError(f"Expected labels as whole numbers or texts, got {error}.") from error
    written = {"captions": values if texts else captions, "domains": domains, "splits": splits}
    return Task(
        name,
        ids=numbered_ids(len(values)) if ids is None else np.asarray(ids).astype(np.str_),
        labels=numbers,
        class_names=names if class_names is None else tuple(class_names),
        image_data=None if texts else _as_rgb(values),
        **{column: np.asarray(given) for column, given in written.items() if given is not None},
    )


def require_unique_ids(ids: Shaped[np.ndarray, " n"], owner: str) -> None:
    """Raise InvalidInputError naming a repeated id."""
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) != len(ids):
        repeated = str(unique[counts > 1][0])
        raise InvalidInputError(
            f"{owner}: expected unique ids, but got {repeated!r} {counts.max()} times; make ids unique."
        )


def select_rows(
    splits: Shaped[np.ndarray, " n"],
    domains: Shaped[np.ndarray, " n"],
    *,
    split: str | None = None,
    domains_wanted: Sequence[str] | None = None,
) -> Bool[np.ndarray, " n"]:
    """Boolean mask (N,) of the rows in `split` and in `domains_wanted` (None: all)."""
    mask = np.ones(len(splits), dtype=bool)
    splits_wanted = None if split is None else [split]
    for kind, column, wanted in (("split", splits, splits_wanted), ("domain", domains, domains_wanted)):
        for name in wanted or ():
            if name not in column:
                raise unknown_name(kind, name, np.unique(column).tolist())
        if wanted is not None:
            mask &= np.isin(column, list(wanted))
    return mask


def splits_by_id(ids: Shaped[np.ndarray, " n"], labels: Int64[np.ndarray, " n"]) -> Shaped[np.ndarray, " n"]:
    """Splits (N,) for a set without: a quarter of each class is "test", by a hash of the ids, whatever their order.

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


def classes_of(
    values: Sequence[Any] | Shaped[np.ndarray, " n"], class_names: Sequence[str] = ()
) -> tuple[Int64[np.ndarray, " n"], tuple[str, ...]]:
    """Labels (N,) in 0..K−1 and the names of the K classes, of whole numbers or texts (N,).

    The classes are the sorted values that occur, so that noise flips no label to a class without samples. Numbers with
    `class_names` stay what they are, positions in these; so do texts that are all among them.
    Raises ValueError for other values, negative numbers, or a text that is empty.

    >>> classes_of(["dog", "cat", "dog"])[1], classes_of([30, 1]), classes_of([2, 0], ["a", "b", "c"])[0]
    (('cat', 'dog'), (array([1, 0]), ('1', '30')), array([2, 0]))
    """
    column = np.asarray(values)
    if column.ndim == 1 and column.dtype.kind in "iu" and len(column):
        if column.min() < 0:
            raise ValueError(f"labels {column.min()} to {column.max()}, not from 0; write names as texts")
        if class_names:
            return column.astype(np.int64), tuple(class_names)
    elif column.ndim != 1 or not all(isinstance(value, str) for value in column.tolist()):
        raise ValueError(f"labels of dtype {column.dtype} and shape {column.shape}, not whole numbers or texts")
    elif empty := [row for row, value in enumerate(column.tolist(), 1) if not value.strip()]:
        raise ValueError(f"an empty label in row {empty[0]:,} ({len(empty):,} in all); fill it in or delete the row")
    found, labels = np.unique(column.astype(object), return_inverse=True)
    names = tuple(map(str, found.tolist()))
    if set(names) <= set(class_names):
        return np.array([list(class_names).index(name) for name in names], dtype=np.int64)[labels], tuple(class_names)
    return labels.astype(np.int64), names


def numbered_ids(count: int, prefix: str = "") -> NDArray[np.str_]:
    """Ids (N,) of rows that have none: their numbers, from 0, after `prefix`."""
    return np.array([f"{prefix}{row:09d}" for row in range(count)], dtype=np.str_)


def _as_rgb(images: NDArray[Any]) -> NDArray[np.uint8]:
    if images.dtype == np.uint8 and images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=-1)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise InvalidInputError(
            f"Expected images (N, H, W, 3) or (N, H, W) of uint8, or texts (N,), got {images.dtype} of shape "
            f"{images.shape}; put the channels last (`.permute(0, 2, 3, 1)`) and scale to 0..255."
        )
    return images
