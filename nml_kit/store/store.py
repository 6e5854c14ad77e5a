"""Content-addressed, immutable, verified entries on disk: key → lock → build aside → verify → rename."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import platformdirs

from nml_kit import __version__
from nml_kit.errors import CorruptEntryError, DataFileError, InvalidInputError, unknown_name
from nml_kit.store.files import (
    delete_temporaries,
    explained,
    fsync,
    json_text,
    read_json,
    read_tensors,
    temporary_beside,
    write_json,
)
from nml_kit.store.hashing import fingerprint, plain

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_REPAIR = "Delete it with `nml store prune --corrupt` and run again."


@dataclass(frozen=True)
class Entry:
    """The directory `path` with the files that `manifest` names; of a corrupt one, `problem` and no manifest."""

    kind: str
    digest: str
    path: Path
    manifest: dict[str, Any]
    problem: str = ""

    @property
    def card(self) -> dict[str, Any]:
        """What the builder said about the entry."""
        return self.manifest["card"]

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(about["bytes"] for about in self.manifest.get("files", {}).values())

    @property
    def created(self) -> str:
        """Time of creation in UTC."""
        return self.manifest.get("created", "")

    def tensors(self, name: str = "tensors.safetensors") -> dict[str, np.ndarray]:
        """Read the arrays of file `name`, memory-mapped; raises UnknownNameError when there is none."""
        files = self.manifest["files"]
        if name not in files:
            raise unknown_name(f"file of {self.kind} entry {self.digest[:12]}", name, files)
        return read_tensors(self.path / name)


class Store:
    """Entries under `root` (default $NML_HOME, else the user's cache directory), created at the first write.

    >>> import tempfile
    >>> from nml_kit.store.files import write_tensors
    >>> store = Store(tempfile.mkdtemp())
    >>> def build(work):
    ...     write_tensors(work / "entry" / "tensors.safetensors", {"x": np.arange(3)})
    ...     return {"rows": 3}
    >>> entry = store.get_or_build("demo", {"rows": 3}, build)
    >>> entry.card, entry.tensors()["x"].tolist()
    ({'rows': 3}, [0, 1, 2])
    """

    def __init__(self, root: Path | str | None = None) -> None:
        chosen = root or os.environ.get("NML_HOME") or platformdirs.user_cache_dir("nml_kit", appauthor=False)
        self.root = Path(chosen).expanduser().absolute()

    def find(self, kind: str, key: dict[str, Any]) -> Entry | None:
        """Return the entry of `key` after checking every byte, or None when there is none.

        Raises CorruptEntryError when a file is missing, unreadable or differs from the manifest.
        """
        path = self.root / "entries" / _safe(kind) / fingerprint(key)
        return _entry(path) if os.path.lexists(path) else None

    def open(self, kind: str, digest: str) -> Entry:
        """Return the entry with this whole `digest`; raises UnknownNameError and CorruptEntryError."""
        path = self.root / "entries" / _safe(kind) / _safe(digest)
        if not os.path.lexists(path):
            raise unknown_name(f"{kind} entry", digest, (entry.digest for entry in self.entries(kind)))
        return _entry(path)

    def get_or_build(self, kind: str, key: dict[str, Any], build: Callable[[Path], dict[str, Any]]) -> Entry:
        """Return the entry of `key`, building it when it is missing; of several processes only one builds.

        `build(work)` puts the entry's files into `work / "entry"` and returns the card (plain JSON data).
        `work` survives a kill or an error, so a builder can continue with what it finds there; then it is
        deleted. Raises StoreError when the disk is full or read-only, and CorruptEntryError like `find`.
        """
        if (entry := self.find(kind, key)) is not None:
            return entry
        digest = fingerprint(key)
        work, target = self.root / "work" / f"{kind}-{digest}", self.root / "entries" / kind / digest
        with self._lock(work.name):
            if (entry := self.find(kind, key)) is not None:
                return entry
            with explained(work):
                (work / "entry").mkdir(parents=True, exist_ok=True)
                delete_temporaries(work)
            with explained(work, only=_DISK_FULL):
                card = build(work)
            with explained(target):
                _publish(work / "entry", target, {"kind": kind, "key": plain(key), "card": card})
            shutil.rmtree(work, ignore_errors=True)
        return _entry(target)

    def entries(self, kind: str | None = None) -> Iterator[Entry]:
        """List the entries, of one `kind` or all, by their manifests alone (`verify` checks the bytes)."""
        for path in sorted((self.root / "entries").glob(f"{_safe(kind) if kind else '*'}/*")):
            yield _listed(path, check_bytes=False)

    def verify(self) -> list[Entry]:
        """Check every byte of every entry and return the corrupt ones, each with its problem."""
        return [entry for listed in self.entries() if (entry := _listed(listed.path)).problem]

    def prune(self, *, corrupt_only: bool = False) -> list[Path]:
        """Delete corrupt entries and, unless `corrupt_only`, work that no process holds; return the paths."""
        removed = []
        for entry in self.verify():
            with self._lock(f"{entry.kind}-{entry.digest}"), explained(entry.path):
                if not os.path.lexists(entry.path) or not _listed(entry.path).problem:
                    continue  # repaired by another process in the meantime
                # Renamed before it is deleted: no reader sees a part of an entry.
                aside = temporary_beside(self.root / "work" / entry.digest)
                aside.parent.mkdir(parents=True, exist_ok=True)
                entry.path.rename(aside)
                _delete(aside)
                removed.append(entry.path)
        for work in [] if corrupt_only else sorted((self.root / "work").glob("*")):
            with suppress(filelock.Timeout), self._lock(work.name, timeout=0), explained(work):
                _delete(work)
                removed.append(work)
        return removed

    @contextmanager
    def _lock(self, name: str, timeout: float = -1) -> Iterator[None]:
        path = self.root / "locks" / f"{name}.lock"
        lock = filelock.FileLock(path, timeout=timeout)
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


@cache
def _versions() -> dict[str, str]:
    """Remembered: to read torch's from its metadata takes as long as to write a small entry."""
    return {"nml_kit": __version__, "numpy": np.__version__, "torch": version("torch")}


def _publish(staged: Path, target: Path, content: dict[str, Any]) -> None:
    """Complete `staged` with its manifest, make it durable and rename it to `target`."""
    delete_temporaries(staged)
    (staged / MANIFEST).unlink(missing_ok=True)  # of a process that was killed just before the rename
    files = {}
    for path in sorted(staged.iterdir()):
        fsync(path)
        files[_safe(path.name)] = {"sha256": _sha256(path), "bytes": path.stat().st_size}
    manifest = content | {
        "format": FORMAT_VERSION,
        "digest": target.name,
        "files": files,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": _versions(),
    }
    manifest = json.loads(json_text(manifest))
    write_json(staged / MANIFEST, manifest | {"checksum": fingerprint(manifest)})
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        staged.rename(target)
    except OSError as error:
        # Where locks do not hold (some NFS) another writer may have been first: its content is as good.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    fsync(target.parent)


def _entry(path: Path, *, check_bytes: bool = True) -> Entry:
    """The entry at `path`, its manifest checked and, with `check_bytes`, its files too; raises CorruptEntryError."""
    entry = Entry(path.parent.name, path.name, path, _manifest(path))
    for name, about in entry.manifest["files"].items() if check_bytes else ():
        try:
            digest = _sha256(path / name)
        except OSError as error:
            digest = f"nothing ({error})"
        if digest != about["sha256"]:
            raise CorruptEntryError(f"Expected {path / name} with sha256 {about['sha256']}, got {digest}. {_REPAIR}")
    return entry


def _listed(path: Path, *, check_bytes: bool = True) -> Entry:
    """As `_entry`, but one that is corrupt comes with its problem."""
    try:
        return _entry(path, check_bytes=check_bytes)
    except CorruptEntryError as error:
        return Entry(path.parent.name, path.name, path, {}, str(error))


def _manifest(path: Path) -> dict[str, Any]:
    """Read a manifest and check all that is read from it, for a checksum may fit a forged one."""
    try:
        manifest = read_json(path / MANIFEST)
        files, checksum = manifest["files"], manifest.pop("checksum")
        if (fingerprint(manifest), manifest["digest"]) != (checksum, path.name):
            raise ValueError(f"digest {manifest['digest']} or a checksum that is not that of its content")
        kinds = (type(files), type(manifest["card"]), type(manifest["created"]))
        sizes = [about["bytes"] for name, about in files.items() if _safe(name) and about["sha256"]]
        if kinds != (dict, dict, str) or not all(type(size) is int for size in sizes):
            raise ValueError("other kinds of values")
        return manifest
    except (DataFileError, LookupError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise CorruptEntryError(
            f"Expected the manifest {path / MANIFEST} of an entry with digest {path.name}, got: {error!r} {_REPAIR}"
        ) from error


def _sha256(path: Path) -> str:
    if path.is_fifo():  # it would never end
        raise OSError(errno.EINVAL, "Is a pipe", str(path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _delete(path: Path) -> None:
    path.unlink() if path.is_symlink() or not path.is_dir() else shutil.rmtree(path)


def _safe(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise InvalidInputError(
            "Expected a name of letters, digits, '_', '-' and '.' that starts with a letter or digit, got "
            f"{name!r}; it becomes the name of a file in the store."
        )
    return name
