"""Files written whole or not at all (tensors as safetensors, JSON), and readers that refuse all else by our errors."""

import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from nml_kit.errors import DataFileError, InvalidInputError, StoreError

if TYPE_CHECKING:
    import pyarrow as pa

_LONGEST_YAML = 50_000  # characters
_LARGEST_YAML = 100_000  # values, with each alias counted as what it stands for


def write_tensors(path: Path | str, tensors: Mapping[str, np.ndarray], metadata: Any = None) -> None:
    """Write named arrays of bool, integers or floats as safetensors; equal content gives equal bytes.

    `metadata`, plain data, is kept as one JSON text "nml_kit", because safetensors writes several in a random order.
    Raises InvalidInputError for another dtype and StoreError when the file cannot be written.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise InvalidInputError(f"Expected numbers in tensor {name!r}, got dtype {array.dtype}; convert it.")
    notes = {"nml_kit": json.dumps(metadata, sort_keys=True)} if metadata else None
    with replacing(Path(path)) as temporary:
        mode = temporary.stat().st_mode
        save_file(arrays, temporary, metadata=notes)
        temporary.chmod(mode)  # safetensors leaves 0600, which locks colleagues out of a shared store


def read_tensors(path: Path | str) -> dict[str, np.ndarray]:
    """Read a safetensors file as memory-mapped arrays (copy on write), bfloat16 as float32.

    Raises DataFileError when the file is missing, cut short or not safetensors.
    """
    import torch  # late, to stay light; it maps the file where safetensors' numpy reader would copy it

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        return {n: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for n, t in tensors.items()}
    except (OSError, SafetensorError, TypeError, ValueError, RuntimeError) as error:  # such as dtypes numpy has not
        raise DataFileError(f"Expected a safetensors file at {path}, got: {error}; make it again.") from error


def read_table(path: Path | str, columns: Sequence[str]) -> "pa.Table":
    """Read a Parquet file; raises DataFileError if it is missing, cut short or lacks one of `columns`."""
    import pyarrow as pa  # late, to stay light
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, partitioning=None)
        missing = [name for name in columns if table.column_names.count(name) != 1]
        if missing:
            raise ValueError(f"not one column of each name: {', '.join(missing)}")
        table.validate(full=True)
    except (OSError, pa.ArrowException, ValueError, TypeError, LookupError, RuntimeError, MemoryError) as error:
        raise DataFileError(f"Expected a Parquet file at {path}, got: {error}; make it again.") from error
    return table


def write_json(path: Path | str, content: Any) -> None:
    """Write plain `content` as JSON with sorted keys; raises InvalidInputError if it is not plain, and StoreError."""
    text = json_text(content)
    with replacing(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file; raises DataFileError when it is missing, not JSON, or nothing that `write_json` can write."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        json_text(content)  # refuses half a surrogate pair, and lists in lists without end
        return content
    except (OSError, ValueError, RecursionError) as error:
        raise DataFileError(f"Expected a JSON file at {path}, got: {error}; make it again.") from error


def json_text(content: Any) -> str:
    """Return the one JSON text of `content`; raises InvalidInputError when it is not plain data."""
    try:
        text = json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
        text.encode()  # half a surrogate pair cannot be written
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"Expected plain JSON data, got: {error}; convert it, as with `.item()`.") from error
    return text


def read_yaml(path: Path | str) -> Any:
    """Read a YAML file; raises DataFileError if it cannot be read, InvalidInputError if it is not plain YAML."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(_LONGEST_YAML + 1).decode("utf-8")
    except FileNotFoundError as error:
        raise DataFileError(f"Expected a YAML file at {path}, got no such file; check the path.") from error
    except (OSError, ValueError) as error:  # also a path with a NUL, or bytes that are no UTF-8
        raise DataFileError(f"Expected a YAML file at {path}, got: {error}.") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, origin: str) -> Any:
    """Read plain YAML 1.2 without repeated keys; raises InvalidInputError that names `origin` for anything else."""
    from ruamel.yaml import YAML, YAMLError  # late, to stay light

    try:
        if len(text) > _LONGEST_YAML:
            raise ValueError(f"more than {_LONGEST_YAML:,} characters")
        if _expanded_size(YAML(typ="safe").compose(text), {}) > _LARGEST_YAML:
            raise ValueError(f"more than {_LARGEST_YAML:,} values, or an alias inside what it stands for")
        return YAML(typ="safe").load(text)
    except (YAMLError, RecursionError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        # The constructors of ruamel.yaml raise whatever int(), datetime() and their like raise.
        raise InvalidInputError(f"Expected YAML in {origin}, got: {str(error) or type(error).__name__}") from error


def _expanded_size(node: Any, sizes: dict[int, float]) -> float:
    """The number of YAML nodes with aliases written out; infinite if one stands for what it is in."""
    if id(node) not in sizes:
        sizes[id(node)] = float("inf")  # while its parts are counted
        parts = node.value if isinstance(getattr(node, "value", None), list) else []
        pairs_apart = [part for pair in parts for part in (pair if isinstance(pair, tuple) else [pair])]
        sizes[id(node)] = 1 + sum(_expanded_size(part, sizes) for part in pairs_apart)
    return sizes[id(node)]


def stays_inside(name: str) -> bool:
    """Whether a path that a data file names can be one, and stays in the directory that it is joined to.

    >>> stays_inside("a/b"), stays_inside("../b"), stays_inside("/b")
    (True, False, False)
    """
    path = PurePath(name)
    lengths = [len(part.encode("utf-8", "surrogatepass")) for part in path.parts]
    possible = "\0" not in name and max(lengths, default=0) <= 255 and sum(lengths) <= 1000
    return possible and not path.anchor and ".." not in path.parts


def temporary_beside(path: Path) -> Path:
    """Return a name beside `path` that no other process on any host will choose."""
    return path.with_name(f".tmp-{socket.gethostname()[:40]}-{os.getpid()}-{uuid.uuid4().hex}")


def delete_temporaries(directory: Path) -> None:
    """Delete the temporary files that killed writers, safetensors' own too, left anywhere under `directory`."""
    for path in directory.rglob(".tmp*"):
        path.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Make the bytes of a file, or the names in a directory, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file to fill; on success it durably becomes `path`, on an error it vanishes."""
    temporary = temporary_beside(path)
    with explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()
            yield temporary
            fsync(temporary)
            temporary.replace(path)
            fsync(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def explained(path: Path, only: frozenset[int] | None = None) -> Iterator[None]:
    """Turn a failed write to `path` into a StoreError that says what to do; `only` these errno when given."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        not_the_system = isinstance(error, OSError) and number is None  # such as a lock's Timeout
        if not_the_system or (only is not None and number not in only):
            raise
        existing = next(parent for parent in (path, *path.absolute().parents) if os.path.lexists(parent))
        raise StoreError(
            f"Expected to write {path}, got: {error}; {shutil.disk_usage(existing).free} bytes are free. Make room "
            "(`nml store list` shows what is stored) or set NML_HOME to a directory that is writable and large enough, "
            "then run again: finished pieces are kept."
        ) from error
