"""Tables of samples: anyone's CSV and Parquet files, the shipped data, and data sets of Hugging Face `datasets`."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nml_kit.data.folders import official_splits
from nml_kit.data.images import ImageSource, LazyImages, as_objects, image_files
from nml_kit.data.task import Task, classes_of, numbered_ids
from nml_kit.errors import DataFileError, InvalidInputError, MissingDependencyError

TABLE_SUFFIXES = (".parquet", ".csv", ".tsv")
REQUIRED_COLUMNS = ("label", "caption", "domain", "source", "id", "split")  # of the shipped data
PAIR_SEPARATOR = "\n"
_NO_INPUTS = ("id", "idx", "split", "domain", "label")
_MOST_CHARACTERS = 10**9  # of a column that numpy pads to one length, at four bytes each
_READING_ERRORS = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, MemoryError)
_TABLE_ERRORS = (*_READING_ERRORS, pa.ArrowException)


def read_table_task(path: Path) -> Task:
    """A Task from a table with the columns `label`, and `image` or `text`; .csv, .tsv or .parquet.

    An image is the path of a file, from the table's folder, or encoded bytes (in Parquet, also as Hugging Face keeps
    them). Labels are whole numbers (where Hugging Face wrote names: positions in these) or texts; classes are those
    that occur. Optional are `split`, `domain`, `id` (else the image's path, or the row's number) and `caption`. The
    shipped data, which have `class_names` in their metadata, have them all.
    """
    table = _read_table(path)
    columns = table.column_names
    is_shipped = b"class_names" in (table.schema.metadata or {})
    inputs = "image" if "image" in columns else "caption" if is_shipped else "text"
    missing = [name for name in (REQUIRED_COLUMNS if is_shipped else (inputs, "label")) if name not in columns]
    if missing:
        named = " and ".join("`image` or `text`" if name == "text" else f"`{name}`" for name in missing)
        raise DataFileError(
            f"{path}: expected a table with images or texts and their labels, but {named} is missing; rename one of "
            f"{', '.join(columns)}."
        )
    try:
        texts = {name: _objects(table[name]) for name in ("split", "domain", "caption") if name in columns}
        image_data, paths = _images(table, path.parent) if inputs == "image" else (None, None)
        if inputs == "text":
            texts["caption"] = _objects(table["text"])
        written_names = _written_names(table.schema.metadata or {})
        labels, class_names = classes_of(_label_values(table["label"]), written_names)
        ids = _padded(_objects(table["id"]) if "id" in columns else paths or numbered_ids(len(labels)))
    except _TABLE_ERRORS as error:
        raise DataFileError(
            f"{path}: expected texts, labels as whole numbers or texts, and images as paths or encoded bytes, but got "
            f"{error}."
        ) from error
    optional = {f"{name}s": values for name, values in texts.items()}
    return Task(path.stem, ids, labels, class_names, image_data=image_data, **optional)


def _read_table(path: Path) -> pa.Table:
    """The whole table; of a CSV or TSV file every column is text, so that an id such as 007 stays.

    Only labels that are all whole numbers, written as such, are numbers: 20 digits would become a rounded one.
    """
    kind = "table with a line of column names" if path.suffix != ".parquet" else "whole Parquet file"
    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path, partitioning=None)
            table.validate(full=True)
            return table
        tabs = path.suffix == ".tsv"
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline().rstrip("\r\n")
        columns = [name.strip('"') for name in header.split("\t" if tabs else ",")]
        kinds = dict.fromkeys(columns, pa.string())
        # In TSV as GLUE has it quotes are characters.
        parsing = {"delimiter": "\t", "quote_char": False} if tabs else {"newlines_in_values": True}
        table = pyarrow.csv.read_csv(
            path,
            parse_options=pyarrow.csv.ParseOptions(**parsing),
            convert_options=pyarrow.csv.ConvertOptions(column_types=kinds),
        )
        if "label" in columns:
            texts = [text.strip() for text in table["label"].to_pylist()]
            whole = all(re.fullmatch(r"0|-?[1-9]\d{0,17}", text) for text in texts)
            values = pa.array(map(int, texts) if whole else texts, pa.int64() if whole else pa.large_string())
            table = table.set_column(columns.index("label"), "label", values)
        return table
    except _TABLE_ERRORS as error:
        raise DataFileError(
            f"Expected a {kind} at {path}, got {error}; restore it, or set NML_DATA to where the shipped data are."
        ) from error


def _without_gaps(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if column.null_count:
        row = column.is_null().index(True).as_py() + 1
        raise ValueError(f"{column.null_count} values that are missing, the first in row {row:,}")
    return column


def _objects(column: pa.ChunkedArray) -> NDArray[np.object_]:
    """Texts (N,) as objects: a long one does not pad all."""
    return as_objects(_without_gaps(column).cast(pa.large_string()).to_pylist())


def _padded(texts: Sequence[str] | NDArray[Any]) -> NDArray[np.str_]:
    if (longest := max(map(len, texts), default=0)) * len(texts) > _MOST_CHARACTERS:
        raise ValueError(f"a text of {longest:,} characters, too long for {len(texts):,} rows: numpy pads all to it")
    return np.array(texts, dtype=np.str_)


def _label_values(column: pa.ChunkedArray) -> Any:
    if pa.types.is_integer(column.type):
        return _without_gaps(column).cast(pa.int64()).to_numpy()
    if pa.types.is_floating(column.type):  # as pandas makes of whole numbers with a gap, rounding long ones
        raise ValueError(f"labels of kind {column.type}; write them as whole numbers or texts")
    return _objects(column)


def _images(table: pa.Table, folder: Path) -> tuple[NDArray[np.object_] | LazyImages, list[str] | None]:
    """The images of a table, and their paths if they are files."""
    column = _without_gaps(table["image"]).combine_chunks()
    if pa.types.is_struct(column.type):
        encoded = column.field("bytes")
        column = _without_gaps(column.field("path")) if encoded.null_count else encoded
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return as_objects(column.to_pylist()), None
    paths = column.cast(pa.large_string()).to_pylist()
    return image_files([folder / path for path in paths]), paths


def _written_names(metadata: Mapping[bytes, bytes]) -> list[str]:
    """The class names in a table's metadata: those of the shipped data, or of Hugging Face `datasets`."""
    if b"class_names" in metadata:
        names = json.loads(metadata[b"class_names"])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("class names that are no list of texts")
        return names
    with suppress(ValueError, LookupError, TypeError):
        names = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
        return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []
    return []


@dataclass(frozen=True, eq=False)
class HubImages(ImageSource):
    """The encoded images of one column of a `datasets.Dataset`, which stay in its memory-mapped files."""

    rows: Any
    column: str

    def read(self, number: int) -> bytes:
        image = self.rows[number][self.column]
        try:
            return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        except (OSError, ValueError, TypeError) as error:
            raise DataFileError(f"{self.place(number)}: expected an image, got {error}; load the data anew.") from error

    def place(self, number: int) -> str:
        return f"{self.rows.builder_name or 'data set'}, row {number}"


def is_saved_to_disk(path: Path) -> bool:
    """Whether `save_to_disk` of `datasets` wrote this directory."""
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def read_hub(
    source: str | Path,
    *,
    config: str | None = None,
    name: str | None = None,
    inputs: Sequence[str] = (),
    class_names: Sequence[str] = (),
    splits: Mapping[str, str] | None = None,
) -> Task:
    """A Task from a data set of the hub ("owner/name"), or a local directory (of `save_to_disk`, or of data files).

    `inputs`: the column of images, or of texts; default: the one `Image` column, else all columns of text. Texts of
    two columns, as GLUE's pairs, are joined by PAIR_SEPARATOR, a line break. Columns `domain`, and `caption` of images,
    are kept. Labels are the column "label" or "labels", or the one `ClassLabel` column; `class_names` are what its
    classes are called here; the same names in another order number them anew.
    `splits` says which of its splits are "train" and "test"; default: `official_splits` of the first part of their
    names (validation_matched is a validation split). Rows whose label is hidden (−1 or none) are left out, and splits
    that have only such; what is "test" is decided after that. Raises InvalidInputError if the columns are not clear.
    """
    parts = _all_splits(source, config)
    label = _label_column(next(iter(parts.values())))
    parts = {split: labelled for split, rows in parts.items() if len(labelled := _labelled(rows, label))}
    roles = dict(splits) if splits is not None else _roles(list(parts))
    if missing := [split for split in roles or ["train or test"] if split not in parts]:
        raise DataFileError(f"{source}: expected labelled rows in split {missing[0]!r}, got splits {', '.join(parts)}.")
    return _assembled(name or Path(str(source)).name, parts, roles, label, inputs, class_names)


def _all_splits(source: str | Path, config: str | None) -> dict[str, Any]:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MissingDependencyError("Hugging Face data needs datasets: pip install 'nml_kit[hub]'.") from error
    path = Path(source)
    try:
        saved = is_saved_to_disk(path)
        data = datasets.load_from_disk(str(path)) if saved else datasets.load_dataset(str(source), config)
    except (*_TABLE_ERRORS, datasets.exceptions.DatasetsError) as error:
        where = "the directory" if path.is_dir() else "the hub (is it reachable, the name right, access granted?)"
        raise DataFileError(f"Expected data set {source} in {where}, got {type(error).__name__}: {error}") from error
    return dict(data) if isinstance(data, dict) else {str(data.split or "all"): data}


def _label_column(rows: Any) -> str:
    classes = [name for name, kind in rows.features.items() if type(kind).__name__ == "ClassLabel"]
    columns = [name for name in ("label", "labels") if name in rows.features] or classes
    if len(columns) != 1:
        raise InvalidInputError(f"Expected one column of labels, got {', '.join(rows.features)}; name it label.")
    return columns[0]


def _labelled(rows: Any, label: str) -> Any:
    """The rows with a label that is not hidden."""
    keep = [value is not None and value != -1 for value in rows[label][:]]
    return rows if all(keep) else rows.select(np.flatnonzero(keep))


def _roles(names: list[str]) -> dict[str, str]:
    if names == ["all"]:
        return {"all": ""}
    families = {name: name.partition("_")[0] for name in names}
    roles = official_splits(sorted(set(families.values())))
    return {name: roles[family] for name, family in families.items() if family in roles}


def _assembled(
    name: str,
    parts: dict[str, Any],
    roles: dict[str, str],
    label: str,
    inputs: Sequence[str],
    class_names: Sequence[str],
) -> Task:
    import datasets

    chosen = [parts[split] for split in roles]
    columns = list(inputs) or _input_columns(chosen[0], label)
    is_image = isinstance(chosen[0].features[columns[0]], datasets.Image)
    try:
        rows = datasets.concatenate_datasets(chosen)
        written = getattr(rows.features[label], "names", None)
        labels, names = classes_of(rows[label][:], written or class_names)
        texts = [rows[column][:] for column in (["caption"] if is_image else columns) if column in rows.features]
        captions = as_objects([PAIR_SEPARATOR.join(pair) for pair in zip(*texts, strict=True)])
        domains = as_objects(rows["domain"][:]) if "domain" in rows.features else None
        encoded = rows.select_columns(columns)
        if is_image:
            encoded = encoded.cast_column(columns[0], datasets.Image(decode=False))
    except _TABLE_ERRORS as error:
        raise DataFileError(f"{name}: expected columns of images or texts, and of labels, got {error}.") from error
    if class_names and sorted(class_names) == sorted(names):  # the same in another order
        labels = np.array([list(class_names).index(class_name) for class_name in names])[labels]
    elif class_names and (len(names) > len(class_names) or (written and len(written) < len(class_names))):
        raise DataFileError(f"{name}: expected the classes {', '.join(class_names)}, got {', '.join(names)}.")
    return Task(
        name,
        ids=np.concatenate([numbered_ids(len(parts[split]), f"{split}/") for split in roles]),
        labels=labels,
        class_names=tuple(class_names or names),
        captions=captions if texts else None,
        domains=domains,
        splits=np.repeat(list(roles.values()), list(map(len, chosen))) if all(roles.values()) else None,
        image_data=LazyImages(HubImages(encoded, columns[0]), np.arange(len(rows))) if is_image else None,
    )


def _input_columns(rows: Any, label: str) -> list[str]:
    import datasets

    images = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    kinds = {name: getattr(kind, "dtype", "") for name, kind in rows.features.items()}
    strings = [name for name, kind in kinds.items() if kind in ("string", "large_string")]
    texts = [name for name in strings if name not in (*_NO_INPUTS, label)]
    if len(images) > 1 or (not images and not 1 <= len(texts) <= 2):
        raise InvalidInputError(
            f"Expected one column of images, or one or two of texts, got {', '.join(rows.features)}; name them: "
            "read_hub(…, inputs=[…])."
        )
    return images or texts
