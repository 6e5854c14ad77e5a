"""Data sets as `Task` values: inputs, labels, captions, domains and stable ids, loaded by name."""

import io
import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from nml_kit.errors import DataFileError, InvalidInputError, unknown_name
from nml_kit.store import fingerprint

SHIPPED_TASKS = (
    "icons-pretrain",
    "icons",
    "icons-rare",
    "icons-badges",
    "emoji",
    "fashion",
    "digits",
    "emoji-text",
)
REQUIRED_COLUMNS = ("label", "caption", "domain", "source", "id", "split")

_MOST_CHARACTERS = 10**9  # of a column, at four bytes each
_ARROW_ERRORS = (pa.ArrowException, RuntimeError, MemoryError)
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # none that another program decodes, as Pillow does with EPS
_IMAGE_ERRORS = (OSError, TypeError, ValueError, SyntaxError, LookupError, ArithmeticError, EOFError, struct.error,
                 NotImplementedError, MemoryError, Image.DecompressionBombError)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Task:
    """A labelled data set whose row i is described by the i-th element of every array.

    `ids` (N,) str, unique; `labels` (N,) int64 in 0..K−1; `class_names` K strings; `captions`, `domains`, `splits`
    (N,) str, split "train" or "test"; `image_data` pixels (N, H, W, 3) uint8, or encoded files (N,) of bytes, which
    are decoded when pixels are asked for, or None for a text task.
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
    image_data: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        columns = {"labels": self.labels, "captions": self.captions, "domains": self.domains,
                   "splits": self.splits}  # fmt: skip
        if self.image_data is not None:
            columns["images"] = self.image_data
        for column, values in columns.items():
            if len(values) != len(self.ids):
                raise InvalidInputError(
                    f"Task {self.name!r}: expected {len(self.ids)} {column}, one per id, but got {len(values)}."
                )
        require_unique_ids(self.ids, f"Task {self.name!r}")
        if len(self.labels) and not (self.labels.min() >= 0 and self.labels.max() < self.num_classes):
            raise InvalidInputError(
                f"Task {self.name!r}: expected labels in 0..{self.num_classes - 1}, but got "
                f"{self.labels.min()}..{self.labels.max()}."
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def images(self) -> NDArray[np.uint8] | None:
        """All pixels, uint8 RGB (N, H, W, 3), or None for a text task; DataFileError if a file does not decode."""
        return None if self.image_data is None else self.inputs(slice(None))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the ids and the inputs (image data, or captions of a text task); labels are not part of it."""
        inputs = self.captions if self.image_data is None else self.image_data
        return fingerprint({"ids": self.ids, "inputs": inputs})

    def inputs(self, rows: slice | NDArray[np.intp]) -> NDArray[Any]:
        """The model inputs of `rows`: uint8 images (n, H, W, 3), or captions (n,) of a text task."""
        if self.image_data is None:
            return self.captions[rows]
        chosen = self.image_data[rows]
        return _decode_images(chosen, self.ids[rows], self.name) if chosen.dtype == object else chosen

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


def data_dir() -> Path:
    """Directory of the shipped data: $NML_DATA, else inside the installed package, else in the checkout."""
    if os.environ.get("NML_DATA"):
        return Path(os.environ["NML_DATA"])
    package = Path(__file__).parent
    packaged = package / "_shipped" / "data"
    return packaged if packaged.is_dir() else package.parent / "data"


def load_task(name: str, *, root: str | Path | None = None) -> Task:
    """Load a shipped task by name, or any Parquet file in the same format by its path.

    Images are decoded when asked for. `root` replaces the directory of the shipped data.
    Raises UnknownNameError for an unregistered name, DataFileError if the file is missing, cut short or has
    other columns than `image`, `label`, `caption`, `domain`, `source`, `id`, `split`.

    >>> digits = load_task("digits")
    >>> digits.images.shape, digits.num_classes
    ((1797, 32, 32, 3), 10)
    """
    if name.endswith(".parquet"):
        return read_parquet_task(Path(name))
    if name not in SHIPPED_TASKS:
        raise unknown_name("data set", name, SHIPPED_TASKS)
    return read_parquet_task(Path(root or data_dir()) / f"{name}.parquet")


def read_parquet_task(path: Path) -> Task:
    """Read one Parquet file in the Hugging Face image convention as a Task; see `load_task`."""
    table = _read_table(path)
    missing = [column for column in REQUIRED_COLUMNS if column not in table.column_names]
    metadata = table.schema.metadata or {}
    if missing or b"class_names" not in metadata:
        raise DataFileError(
            f"{path}: expected columns {', '.join(REQUIRED_COLUMNS)} and `class_names` in the schema metadata, "
            f"but {', '.join(missing) or 'class_names'} is missing; rebuild it with `python data/build.py`."
        )
    try:
        text = {column: _texts(table[column]) for column in ("id", "caption", "domain", "split")}
        labels = _without_gaps(table["label"]).cast(pa.int64()).to_numpy()
        class_names = json.loads(metadata[b"class_names"])
        if not isinstance(class_names, list) or not all(isinstance(name, str) for name in class_names):
            raise ValueError("class names that are no list of texts")
        image_data = _encoded_images(table) if "image" in table.column_names else None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, *_ARROW_ERRORS) as error:
        raise DataFileError(
            f"{path}: expected texts, whole labels, class names as JSON and images as encoded bytes, but got {error}; "
            "rebuild it with `python data/build.py`."
        ) from error
    return Task(
        name=path.stem,
        ids=text["id"],
        labels=labels,
        class_names=tuple(class_names),
        captions=text["caption"],
        domains=text["domain"],
        splits=text["split"],
        image_data=image_data,
    )


def _read_table(path: Path) -> pa.Table:
    if not path.is_file():
        raise DataFileError(
            f"Data file {path} is missing; expected the shipped Parquet file there. "
            "Restore it from the repository or set NML_DATA to the directory that holds it."
        )
    try:
        table = pq.read_table(path, partitioning=None)
        table.validate(full=True)
        return table
    except (OSError, ValueError, TypeError, LookupError, *_ARROW_ERRORS) as error:
        raise DataFileError(
            f"Data file {path} ({path.stat().st_size} bytes) is not a whole Parquet file: {error}. "
            "It may have been cut short; restore it from the repository."
        ) from error


def _without_gaps(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if column.null_count:
        raise ValueError(f"{column.null_count} values that are missing")
    return column


def _texts(column: pa.ChunkedArray) -> NDArray[np.str_]:
    texts = _without_gaps(column).cast(pa.large_string()).to_pylist()
    if (longest := max(map(len, texts), default=0)) * len(texts) > _MOST_CHARACTERS:
        raise ValueError(f"a text of {longest:,} characters, too long for {len(texts):,} rows: numpy pads all to it")
    return np.array(texts, dtype=np.str_)


def _encoded_images(table: pa.Table) -> NDArray[np.object_]:
    encoded = table["image"].combine_chunks().field("bytes").to_pylist()
    column = np.empty(len(encoded), dtype=object)
    column[:] = encoded
    return column


def _decode_images(encoded: NDArray[np.object_], ids: NDArray[np.str_], name: str) -> NDArray[np.uint8]:
    images = []
    for sample_id, data in zip(ids.tolist(), encoded, strict=True):
        try:
            images.append(np.asarray(Image.open(io.BytesIO(data), formats=_FORMATS).convert("RGB")))
        except _IMAGE_ERRORS as error:
            raise DataFileError(
                f"Task {name!r}: the image of sample {sample_id!r} does not decode: {error}."
            ) from error
    if len(sizes := {image.shape for image in images}) > 1:
        raise DataFileError(f"Task {name!r}: expected images of one size, but got {sorted(sizes)}; resize them.")
    return np.stack(images) if images else np.empty((0, 0, 0, 3), dtype=np.uint8)
