"""Content-addressed, immutable, verified entries on disk: key → lock → build aside → verify → rename."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import platformdirs

from nml_kit import __version__
from nml_kit.errors import CorruptEntryError, DataFileError, InvalidInputError, StoreError, unknown_name
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
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_REPAIR = "Delete it with `nml store prune --corrupt` and run again."


@dataclass(frozen=True)
class Entry:
    """A verified entry: the directory `path` holds the files that `manifest` names, every byte checked."""

    kind: str
    digest: str
    path: Path
    manifest: dict[str, Any]

    @property
    def card(self) -> dict[str, Any]:
        """What the builder said about the entry."""
        return self.manifest["card"]

    def tensors(self, name: str = "tensors.safetensors") -> dict[str, np.ndarray]:
        """Read the arrays of file `name`, memory-mapped; raises UnknownNameError when there is none."""
        if name not in self.manifest["files"]:
            raise unknown_name(f"file of {self.kind} entry {self.digest[:12]}", name, self.manifest["files"])
        return read_tensors(self.path / name)


@dataclass(frozen=True)
class EntryInfo:
    """One line of a listing: size in bytes, UTC time of creation, and the problem found ("" when none)."""

    kind: str
    digest: str
    path: Path
    bytes: int
    created: str
    problem: str = ""


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
        return _verified(path) if os.path.lexists(path) else None

    def open(self, kind: str, digest: str) -> Entry:
        """Return the entry with this whole `digest`; raises UnknownNameError and CorruptEntryError."""
        path = self.root / "entries" / _safe(kind) / _safe(digest)
        if not os.path.lexists(path):
            raise unknown_name(f"{kind} entry", digest, (info.digest for info in self.entries(kind)))
        return _verified(path)

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
        return _verified(target)

    def entries(self, kind: str | None = None) -> Iterator[EntryInfo]:
        """List the entries, of one `kind` or all, by their manifests alone (`verify` checks the bytes)."""
        for path in sorted((self.root / "entries").glob(f"{_safe(kind) if kind else '*'}/*")):
            size, created, problem = 0, "", ""
            try:
                manifest = _manifest(path)
                size, created = sum(file["bytes"] for file in manifest["files"].values()), manifest["created"]
            except StoreError as error:
                problem = str(error)
            yield EntryInfo(path.parent.name, path.name, path, size, created, problem)

    def verify(self) -> list[EntryInfo]:
        """Check every byte of every entry and return the corrupt ones, each with its problem."""
        checked = (replace(info, problem=_problem(info.path)) for info in self.entries())
        return [info for info in checked if info.problem]

    def prune(self, *, corrupt_only: bool = False) -> list[Path]:
        """Delete corrupt entries and, unless `corrupt_only`, work that no process holds; return the paths."""
        removed = []
        for info in self.verify():
            with self._lock(f"{info.kind}-{info.digest}"), explained(info.path):
                if not os.path.lexists(info.path) or not _problem(info.path):
                    continue  # repaired by another process in the meantime
                # Renamed before it is deleted: no reader sees a part of an entry.
                aside = temporary_beside(self.root / "work" / info.digest)
                aside.parent.mkdir(parents=True, exist_ok=True)
                info.path.rename(aside)
                _delete(aside)
                removed.append(info.path)
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


def _publish(staged: Path, target: Path, content: dict[str, Any]) -> None:
    """Complete `staged` with its manifest, make it durable and rename it to `target`."""
    delete_temporaries(staged)
    (staged / MANIFEST).unlink(missing_ok=True)  # of a process that was killed just before the rename
    files = {}
    for path in sorted(staged.iterdir()):
        fsync(path)
        files[_safe(path.name)] = {"sha256": _sha256(path), "bytes": path.stat().st_size}
    manifest = content | {"format": FORMAT_VERSION, "digest": target.name, "files": files}
    manifest["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    manifest["versions"] = {"nml_kit": __version__, "numpy": np.__version__, "torch": version("torch")}
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


def _verified(path: Path) -> Entry:
    manifest = _manifest(path)
    for name, expected in manifest["files"].items():
        try:
            found = _sha256(path / _safe(name))
        except OSError as error:
            found = f"nothing ({error})"
        if found != expected["sha256"]:
            raise CorruptEntryError(f"Expected {path / name} with sha256 {expected['sha256']}, got {found}. {_REPAIR}")
    return Entry(path.parent.name, path.name, path, manifest)


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = read_json(path / MANIFEST)
        found = fingerprint({name: value for name, value in manifest.items() if name != "checksum"})
        expected = manifest.get("checksum")
        complete = _is_complete(manifest)
    except (DataFileError, AttributeError) as error:
        raise CorruptEntryError(f"Expected a manifest {path / MANIFEST}, got: {error} {_REPAIR}") from error
    if found != expected or not complete or manifest.get("digest") != path.name:
        raise CorruptEntryError(
            f"Expected {path / MANIFEST} with checksum {expected} and digest {path.name}, "
            f"got checksum {found} and digest {manifest.get('digest')}{'' if complete else ', incomplete'}. {_REPAIR}"
        )
    return manifest


def _is_complete(manifest: dict[str, Any]) -> bool:
    """Whether a manifest has all that is read from it, the checksum apart."""
    files = manifest.get("files")
    plain_files = isinstance(files, dict) and all(
        _SAFE_NAME.fullmatch(name) and isinstance(about, dict) and type(about.get("bytes")) is int and "sha256" in about
        for name, about in files.items()
    )
    return plain_files and isinstance(manifest.get("card"), dict) and isinstance(manifest.get("created"), str)


def _problem(path: Path) -> str:
    try:
        _verified(path)
    except StoreError as error:
        return str(error)
    return ""


def _sha256(path: Path) -> str:
    if path.is_fifo():  # it would never end
        raise OSError(errno.EINVAL, "Is a pipe", str(path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _delete(path: Path) -> None:
    path.unlink() if path.is_symlink() or not path.is_dir() else shutil.rmtree(path)


def _safe(name: str) -> str:
    if not _SAFE_NAME.fullmatch(name):
        raise InvalidInputError(
            "Expected a name of letters, digits, '_', '-' and '.' that starts with a letter or digit, got "
            f"{name!r}; it becomes the name of a file in the store."
        )
    return name
