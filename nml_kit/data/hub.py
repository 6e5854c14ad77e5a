"""Data sets as Hugging Face `datasets` has them: from the hub, saved to disk, or a directory of data files."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nml_kit.data.folders import official_splits
from nml_kit.data.images import LazyImages, Stamp, as_objects
from nml_kit.data.task import Task, classes_of, make_task
from nml_kit.errors import DataFileError, InvalidInputError, MissingDependencyError, NMLError

PAIR_SEPARATOR = "\n"
_SAVED = ("dataset_dict.json", "state.json")
_NO_INPUTS = ("id", "idx", "split", "domain", "label")


@dataclass(frozen=True, eq=False)
class _HubImages:
    """The encoded images of one column of a `datasets.Dataset`, which stay in its memory-mapped files."""

    rows: Any
    column: str

    def read(self, number: int) -> bytes:
        """The bytes of a row's image."""
        image = self.rows[number][self.column]
        try:
            return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        except (OSError, ValueError, TypeError) as error:
            raise DataFileError(f"{self.place(number)}: expected an image, got {error}; load the data anew.") from error

    def size(self, number: int) -> int:
        """Its size."""
        return len(self.read(number))

    def stamp(self, _: NDArray[np.int64]) -> Stamp | None:
        """None: which rows its files hold is the business of `datasets`."""
        return None

    def place(self, number: int) -> str:
        """The row, for messages."""
        return f"{self.rows.builder_name or 'data set'}, row {number}"


def is_saved_to_disk(path: Path) -> bool:
    """Whether `save_to_disk` of `datasets` wrote this directory."""
    return any((path / name).is_file() for name in _SAVED)


def is_cached(source: str, config: str = "") -> bool:
    """Whether `datasets` has prepared this data set of the hub in its cache (HF_DATASETS_CACHE, HF_HOME)."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(os.environ.get("HF_HOME") or home) / "datasets")
    return (cache.expanduser() / source.replace("/", "___") / config).is_dir()


def read_hub(
    source: str | Path,
    *,
    config: str | None = None,
    name: str | None = None,
    inputs: Sequence[str] = (),
    label: str = "",
    class_names: Sequence[str] = (),
    splits: Mapping[str, str] | None = None,
) -> Task:
    """A Task from a data set of the hub ("owner/name"), or a local directory (of `save_to_disk`, or of data files).

    `inputs`: the column of images, or of texts; default: the one `Image` column, else all columns of text. Texts of
    two columns, as GLUE's pairs, are joined by PAIR_SEPARATOR, a line break. Columns `domain`, and `caption` of images,
    are kept. `label`: default "label", "labels", or the one `ClassLabel` column; `class_names` are what its classes are
    called here; the same names in another order number them anew.
    `splits` says which of its splits are "train" and "test"; default: `official_splits` of the first part of their
    names (validation_matched is a validation split). Rows whose label is hidden (−1 or none) are left out, and splits
    that have only such; what is "test" is decided after that.
    Raises MissingDependencyError without `datasets`, DataFileError if it cannot be read, InvalidInputError if the
    columns are not clear.
    """
    parts = {split: _labelled(rows, label) for split, rows in _all_splits(source, config).items()}
    parts = {split: (rows, column) for split, (rows, column) in parts.items() if len(rows)}
    uses = dict(splits) if splits is not None else _uses(list(parts))
    if missing := [split for split in uses if split not in parts]:
        raise DataFileError(f"{source}: expected labelled rows in split {missing[0]!r}, got splits {', '.join(parts)}.")
    if not uses:
        raise DataFileError(f"{source}: expected labelled splits such as train or test, got {', '.join(parts)}.")
    return _assembled(
        name or Path(str(source)).name,
        {split: parts[split][0] for split in uses},
        uses,
        next(column for _, column in parts.values()),
        inputs,
        class_names,
    )


def _all_splits(source: str | Path, config: str | None) -> dict[str, Any]:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MissingDependencyError("Hugging Face data needs datasets: pip install 'nml_kit[hub]'.") from error
    path = Path(source)
    try:
        if is_saved_to_disk(path):
            found = datasets.load_from_disk(str(path))
        else:
            found = datasets.load_dataset(str(source), config)
    except (
        OSError,
        ValueError,
        LookupError,
        RuntimeError,
        pa.ArrowException,
        datasets.exceptions.DatasetsError,
    ) as error:
        where = "the directory" if path.is_dir() else "the hub (is it reachable, the name right, access granted?)"
        raise DataFileError(f"Expected data set {source} in {where}, got {type(error).__name__}: {error}") from error
    return dict(found) if isinstance(found, dict) else {str(found.split or "all"): found}


def _labelled(rows: Any, label: str) -> tuple[Any, str]:
    """The rows with a label that is not hidden, and the column of it."""
    column = _label_column(rows, label)
    values = np.array([-1 if value is None else value for value in rows[column][:]], dtype=object)
    keep = np.array([value != -1 for value in values], dtype=bool)
    return (rows if keep.all() else rows.select(np.flatnonzero(keep))), column


def _label_column(rows: Any, label: str) -> str:
    classes = [name for name, kind in rows.features.items() if type(kind).__name__ == "ClassLabel"]
    found = [name for name in ([label] if label else ["label", "labels"]) if name in rows.features] or classes
    if len(found) != 1:
        raise InvalidInputError(
            f"Expected one column of labels, got {', '.join(rows.features)}; name it: read_hub(…, label=…)."
        )
    return found[0]


def _uses(names: list[str]) -> dict[str, str]:
    families = official_splits(sorted({name.partition("_")[0] for name in names}))
    if names == ["all"]:
        return {"all": ""}
    return {name: families[name.partition("_")[0]] for name in names if name.partition("_")[0] in families}


def _assembled(
    name: str,
    parts: dict[str, Any],
    uses: dict[str, str],
    label: str,
    inputs: Sequence[str],
    class_names: Sequence[str],
) -> Task:
    import datasets

    first = next(iter(parts.values()))
    columns = list(inputs) or _input_columns(first, label)
    try:
        rows = datasets.concatenate_datasets(list(parts.values()))
        image_data = _lazy_images(rows, columns)
        captions = _captions(rows) if image_data is not None else _joined_texts(rows, columns)
        labels, found_names = classes_of(rows[label][:])
    except NMLError:
        raise
    except (ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DataFileError(f"{name}: expected columns of images or texts, and of labels, got {error}.") from error
    counts = [len(part) for part in parts.values()]
    written = getattr(first.features[label], "names", None)
    found_names = written or found_names
    if class_names and sorted(class_names) == sorted(found_names):  # the same in another order
        labels = np.array([list(class_names).index(found) for found in found_names])[labels]
    elif class_names and (len(found_names) > len(class_names) or (written and len(written) < len(class_names))):
        raise DataFileError(f"{name}: expected the classes {', '.join(class_names)}, got {', '.join(found_names)}.")
    use = np.repeat(list(uses.values()), counts)
    return make_task(
        name,
        ids=np.array([f"{split}/{row:09d}" for split, part in parts.items() for row in range(len(part))]),
        labels=labels,
        class_names=class_names or found_names,
        captions=captions,
        domains=_texts(rows["domain"][:]) if "domain" in rows.features else None,
        splits=use if all(uses.values()) else None,
        image_data=image_data,
    )


def _input_columns(rows: Any, label: str) -> list[str]:
    import datasets

    images = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    texts = [name for name, kind in rows.features.items() if getattr(kind, "dtype", "") in ("string", "large_string")
             and name not in (*_NO_INPUTS, label)]  # fmt: skip
    if len(images) > 1 or (not images and not 1 <= len(texts) <= 2):
        raise InvalidInputError(
            f"Expected one column of images, or one or two of texts, got {', '.join(rows.features)}; name them: "
            "read_hub(…, inputs=[…])."
        )
    return images or texts


def _lazy_images(rows: Any, columns: Sequence[str]) -> LazyImages | None:
    import datasets

    if not isinstance(rows.features[columns[0]], datasets.Image):
        return None
    encoded = rows.select_columns([columns[0]]).cast_column(columns[0], datasets.Image(decode=False))
    return LazyImages(_HubImages(encoded, columns[0]), np.arange(len(rows)))


def _captions(rows: Any) -> NDArray[np.object_] | None:
    return _texts(rows["caption"][:]) if "caption" in rows.features else None


def _joined_texts(rows: Any, columns: Sequence[str]) -> NDArray[np.object_]:
    return _texts([PAIR_SEPARATOR.join(texts) for texts in zip(*(rows[column][:] for column in columns), strict=True)])


def _texts(values: Sequence[str]) -> NDArray[np.object_]:
    """Texts (N,) as objects: a long one does not pad all."""
    return as_objects(list(values))
