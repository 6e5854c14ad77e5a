"""Features that someone else extracted: arrays of numbers and labels, in memory or in files."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Int
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import train_test_split

from nml_kit.errors import DataFileError, InvalidInputError
from nml_kit.store import fingerprint, read_table, read_tensors

if TYPE_CHECKING:
    from nml_kit.features import Features

_TEST_FRACTION = 0.25
_KINDS = (".npy", ".safetensors", ".parquet")


def read_array(path: str | Path) -> NDArray[Any]:
    """Read a .npy file (mapped, never unpickled), the one tensor of a .safetensors file, or a .parquet table.

    A table's columns become the columns of a matrix; a single one a vector, or a matrix if it holds lists. A pandas
    index is left out. Raises InvalidInputError for another kind of file, DataFileError if it is missing, cut short, has
    gaps or holds something else.
    """
    path = Path(path)
    if path.suffix not in _KINDS:
        raise InvalidInputError(f"Expected a file that ends in {', '.join(_KINDS)}, got {path}.")
    if not path.is_file():
        raise DataFileError(f"Expected an array in {path}, got no such file; check the path.")
    if path.suffix == ".safetensors":
        tensors = read_tensors(path)
        if len(tensors) != 1:
            raise DataFileError(f"{path}: expected one tensor, got {len(tensors)}: {', '.join(sorted(tensors))}.")
        return next(iter(tensors.values()))
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        table = read_table(path, [])
        index = (table.schema.pandas_metadata or {}).get("index_columns", [])
        columns = [_column(table[name], name) for name in table.column_names if name not in index]
        return columns[0] if len(columns) == 1 else np.column_stack(columns)
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        raise DataFileError(
            f"Expected an array in {path}, got {type(error).__name__}: {error}; save it anew."
        ) from error


def _column(column: pa.ChunkedArray, name: str) -> NDArray[Any]:
    """The values (N,), or (N, D) of a column of lists; ValueError for a gap."""
    if column.null_count:
        raise ValueError(f"no value in row {column.is_null().index(True).as_py()} of column {name!r}")
    values = column.to_numpy(zero_copy_only=False)
    return np.stack(values) if len(values) and isinstance(values[0], np.ndarray) else values


def features_from_files(
    train: str | Path,
    labels: str | Path,
    test: str | Path = "",
    test_labels: str | Path = "",
    *,
    domains: str | Path = "",
    test_domains: str | Path = "",
) -> "Features":
    """`features_from_arrays` of the arrays in files (see `read_array`); an empty path is none. The name is the file's.

    Raises InvalidInputError also if one of test features and test labels comes without the other.
    """
    if bool(str(test)) != bool(str(test_labels)):
        raise InvalidInputError("Expected test features and test labels, or neither, got one of the two.")
    paths = (train, labels, test, test_labels, domains, test_domains)
    X, y, X_test, y_test, at, at_test = (read_array(path) if str(path) else None for path in paths)
    if X is None or y is None:
        raise InvalidInputError("Expected files of train features and their labels, got none.")
    return features_from_arrays(X, y, X_test, y_test, domains=at, domains_test=at_test, name=Path(train).stem)


def features_from_arrays(
    X: ArrayLike,
    y: ArrayLike,
    X_test: ArrayLike | None = None,
    y_test: ArrayLike | None = None,
    *,
    domains: ArrayLike | None = None,
    domains_test: ArrayLike | None = None,
    name: str = "features",
) -> "Features":
    """Features (N, D) with labels (N,) of any kind, and domains (N,) if there are several, as a `Features` value.

    Without test samples, a quarter of the samples, stratified by class, is set apart as such.
    Raises InvalidInputError for features that are not a finite matrix of numbers, lengths that differ, labels or
    domains with gaps, another width of the test features, test classes that were not trained on, or fewer than two
    classes.

    >>> X, y = np.eye(8), np.array(["cat", "dog"] * 4)
    >>> features = features_from_arrays(X, y)
    >>> features.class_names, (features.splits == "test").sum().item()
    (('cat', 'dog'), 2)
    """
    parts = [_checked("train", X, y, domains)]
    if X_test is not None:
        parts.append(_checked("test", X_test, [] if y_test is None else y_test, domains_test))
    widths = {part[0].shape[1] for part in parts}
    if len(widths) > 1:
        raise InvalidInputError(f"Expected train and test features of one width, got {sorted(widths)}.")
    values, labels, named = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    classes = np.unique(labels[: len(parts[0][0])])
    unknown = np.setdiff1d(labels, classes)
    if len(classes) < 2 or len(unknown):
        raise InvalidInputError(
            f"Expected at least two classes, all with train samples, got {len(classes)} classes of train samples"
            + (f" and test labels such as {str(unknown[0])!r} without any." if len(unknown) else ".")
        )
    codes = np.searchsorted(classes, labels)
    splits = np.where(np.arange(len(values)) < len(parts[0][0]), "train", "test")
    if X_test is None:
        splits[_test_rows(codes)] = "test"
    from nml_kit.features import Features  # with torch: what is wrong with files is told before

    ids = np.array([f"{row:09d}" for row in range(len(values))])
    content = {"values": values, "labels": codes, "domains": named, "splits": splits}
    return Features(name, values, ids, codes, tuple(map(str, classes)), named, splits, fingerprint(content))


def _checked(
    split: str, X: ArrayLike, y: ArrayLike, domains: ArrayLike | None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.str_]]:
    values = np.asarray(X)
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise InvalidInputError(
            f"Expected {split} features as a matrix of numbers (N, D), got {values.dtype} of shape {values.shape}."
        )
    if (bad := ~np.isfinite(values).all(axis=1)).any():
        raise InvalidInputError(
            f"Expected {split} features without NaN or infinity, got one in row {bad.argmax()}; fill it."
        )
    labels = _names(f"{split} labels", y, len(values))
    names = _names(f"{split} domains", np.full(len(values), "all") if domains is None else domains, len(values))
    floats = values.dtype if values.dtype in (np.float16, np.float32, np.float64) else np.float64
    return values.astype(floats, copy=False), labels, names.astype(np.str_)


def _names(kind: str, column: ArrayLike, count: int) -> NDArray[Any]:
    """The labels or domains (N,), of objects as what these are."""
    names = np.asarray(column)
    if names.shape != (count,):
        raise InvalidInputError(f"Expected one of {kind} for each of {count} rows, got shape {names.shape}.")
    if (gaps := pd.isna(names)).any():
        raise InvalidInputError(f"Expected {kind} without gaps, got {names[gaps][0]} in row {gaps.argmax()}; fill it.")
    return np.array(names.tolist()) if names.dtype == object else names


def _test_rows(codes: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
    size = max(round(_TEST_FRACTION * len(codes)), len(np.unique(codes)))
    try:
        return train_test_split(np.arange(len(codes)), test_size=size, random_state=0, stratify=codes)[1]
    except ValueError as error:
        raise InvalidInputError(
            f"Expected at least two samples of every class to set a test part apart, got {np.bincount(codes).min()} of "
            "one; give test samples of their own."
        ) from error
