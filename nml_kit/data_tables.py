"""Tables of samples in Parquet files: the format of the shipped data."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nml_kit.errors import DataFileError
from nml_kit.tasks import Task

REQUIRED_COLUMNS = ("label", "caption", "domain", "source", "id", "split")

_MOST_CHARACTERS = 10**9  # of a column, at four bytes each
_ARROW_ERRORS = (pa.ArrowException, RuntimeError, MemoryError)


def read_parquet_task(path: Path) -> Task:
    """Read one Parquet file in the Hugging Face image convention as a Task; the format of the shipped data."""
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
