"""Tables of samples in CSV or Parquet files: anyone's, and those of the shipped data."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nml_kit.data.images import LazyImages, as_objects, image_files
from nml_kit.data.task import Task, classes_of, make_task, padded_texts
from nml_kit.errors import DataFileError

TABLE_SUFFIXES = (".parquet", ".csv", ".tsv")
REQUIRED_COLUMNS = ("label", "caption", "domain", "source", "id", "split")

_ARROW_ERRORS = (pa.ArrowException, RuntimeError, MemoryError)


def read_table_task(path: Path) -> Task:
    """A Task from a table with the columns `label`, and `image` or `text`; .csv, .tsv or .parquet.

    An image is the path of a file, from the table's folder, or encoded bytes (in Parquet, also as Hugging Face keeps
    them). Labels are numbers in 0..K−1 (their names are read where Hugging Face wrote them) or texts. Optional are
    `split` (train and test; else a quarter is set apart by a hash of the ids), `domain`, `id` (else the image's path,
    or the row's number) and `caption`. A Parquet file that has `class_names` in its metadata is read by
    `read_parquet_task`. Raises DataFileError naming a missing column, or if the file is not whole.
    """
    table = _read_delimited(path) if path.suffix in (".csv", ".tsv") else _read_table(path)
    if b"class_names" in (table.schema.metadata or {}):
        return read_parquet_task(path)
    inputs = next((name for name in ("image", "text") if name in table.column_names), None)
    missing = ["`image` or `text`"] * (inputs is None) + ["`label`"] * ("label" not in table.column_names)
    if missing or inputs is None:
        raise DataFileError(
            f"{path}: expected the columns `image` or `text`, and `label`, but {' and '.join(missing)} is missing; "
            f"rename one of {', '.join(table.column_names)}."
        )
    try:
        given = {column: _objects(table[column]) for column in ("split", "domain", "caption")
                 if column in table.column_names}  # fmt: skip
        image_data, names = _images(table, path.parent) if inputs == "image" else (None, None)
        if inputs == "text":
            given["caption"] = _objects(table["text"])
        labels, class_names = classes_of(_label_values(table["label"]))
        numbered = [f"{row:09d}" for row in range(len(labels))]
        ids = _texts(table["id"]) if "id" in table.column_names else padded_texts(names or numbered)
    except (ValueError, TypeError, LookupError, AttributeError, *_ARROW_ERRORS) as error:
        raise DataFileError(
            f"{path}: expected texts, labels as whole numbers or texts, and images as paths or encoded bytes, but got "
            f"{error}."
        ) from error
    return make_task(
        path.stem,
        ids=ids,
        labels=labels,
        class_names=_written_names(table) or class_names,
        captions=given.get("caption"),
        domains=given.get("domain"),
        splits=given.get("split"),
        image_data=image_data,
    )


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


def _read_delimited(path: Path) -> pa.Table:
    """A CSV or TSV file; every column but `label` is text, so that an id such as 007 stays."""
    tabs = path.suffix == ".tsv"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline().rstrip("\r\n")
        columns = [name.strip('"') for name in header.split("\t" if tabs else ",")]
        return pyarrow.csv.read_csv(
            path,
            parse_options=pyarrow.csv.ParseOptions(
                delimiter="\t" if tabs else ",", quote_char=False if tabs else '"', newlines_in_values=not tabs
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={name: pa.string() for name in columns if name != "label"}
            ),
        )
    except (OSError, ValueError, *_ARROW_ERRORS) as error:
        raise DataFileError(f"Expected a table with a line of column names in {path}, got {error}.") from error


def _objects(column: pa.ChunkedArray) -> NDArray[np.object_]:
    """Texts (N,) as objects: a long one does not pad all."""
    return as_objects(_without_gaps(column).cast(pa.large_string()).to_pylist())


def _label_values(column: pa.ChunkedArray) -> Any:
    column = _without_gaps(column)
    if pa.types.is_integer(column.type):
        return column.cast(pa.int64()).to_numpy()
    return column.cast(pa.large_string()).to_pylist()


def _written_names(table: pa.Table) -> list[str] | None:
    """The class names that Hugging Face `datasets` wrote beside a table."""
    try:
        notes = json.loads((table.schema.metadata or {})[b"huggingface"])
        names = notes["info"]["features"]["label"]["names"]
    except (ValueError, LookupError, TypeError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _images(table: pa.Table, folder: Path) -> tuple[NDArray[np.object_] | LazyImages, list[str] | None]:
    """The images of a table, and their paths if they are files."""
    column = _without_gaps(table["image"]).combine_chunks()
    if pa.types.is_struct(column.type):
        if not column.field("bytes").null_count:
            return _encoded_images(table), None
        column = _without_gaps(column.field("path"))
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return as_objects(column.to_pylist()), None
    paths = column.cast(pa.large_string()).to_pylist()
    return image_files([folder / path for path in paths]), paths


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
    return padded_texts(_without_gaps(column).cast(pa.large_string()).to_pylist())


def _encoded_images(table: pa.Table) -> NDArray[np.object_]:
    return as_objects(table["image"].combine_chunks().field("bytes").to_pylist())
