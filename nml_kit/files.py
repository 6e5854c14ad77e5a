"""Files that are written whole or not at all: named tensors (safetensors) and JSON."""

import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from nml_kit.errors import DataFileError, InvalidInputError, StoreError


def write_tensors(
    path: Path | str, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named arrays of bool, integers or floats as safetensors; equal content gives equal bytes.

    `metadata` is kept as one JSON text named "nml_kit", because safetensors writes several in a random order.
    Raises InvalidInputError for another dtype and StoreError when the file cannot be written.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise InvalidInputError(f"Expected numbers in tensor {name!r}, got dtype {array.dtype}; convert it.")
    notes = {"nml_kit": json.dumps(dict(metadata), sort_keys=True)} if metadata else None
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
    except (OSError, SafetensorError) as error:
        raise DataFileError(f"Expected a safetensors file at {path}, got: {error}; make it again.") from error
    return {n: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for n, t in tensors.items()}


def write_json(path: Path | str, content: Any) -> None:
    """Write plain `content` as JSON with sorted keys; raises InvalidInputError and StoreError."""
    text = json_text(content)
    with replacing(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file; raises DataFileError when it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataFileError(f"Expected a JSON file at {path}, got: {error}; make it again.") from error


def json_text(content: Any) -> str:
    """Return the one JSON text of `content`; raises InvalidInputError when it is not plain data."""
    try:
        return json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"Expected plain JSON data, got: {error}; convert it, as with `.item()`.") from error


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
