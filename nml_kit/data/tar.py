"""Members of uncompressed tars, one after the other, in memory that does not grow with their number."""

import io
import re
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from nml_kit.errors import DataFileError

_CHUNK = 1 << 20  # bytes


def tar_members(path: Path) -> Iterator[tarfile.TarInfo]:
    """Each regular file in a tar: `member.size` bytes from `member.offset_data`.

    To be used in a block of `whole_tar`, which explains what is wrong with a tar.
    """
    with tarfile.open(path, "r:") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined] # it would keep them all
            if member.isreg():
                yield member
        _require_end(path, tar.offset)


def content_of(member: tarfile.TarInfo, source: IO[bytes]) -> bytes:
    """The bytes of a member of the tar `source`."""
    source.seek(member.offset_data)
    return source.read(member.size)


def copy_with(source: IO[bytes], copy: IO[bytes], changed: Iterable[tuple[int, bytes]]) -> None:
    """Copy a tar byte by byte, but with other contents for the members at some offsets, which grow."""
    copied = 0
    for offset, content in changed:
        source.seek(offset)
        with tarfile.open(fileobj=source, mode="r:") as tar:  # it begins where `source` is
            member = tar.next()
        if member is None:
            raise tarfile.ReadError(f"no file at byte {offset}")
        source.seek(copied)
        _copy(source, copy, offset - copied)
        copied = member.offset_data + _whole_blocks(member.size)
        member.size = len(content)
        member.pax_headers = {name: text for name, text in member.pax_headers.items() if name != "size"}  # it would win
        copy.write(member.tobuf(tarfile.PAX_FORMAT, tarfile.ENCODING, "surrogateescape"))
        copy.write(content.ljust(_whole_blocks(len(content)), tarfile.NUL))
    rest = source.seek(0, io.SEEK_END) - copied
    source.seek(copied)
    _copy(source, copy, rest)


@contextmanager
def whole_tar(path: Path) -> Iterator[None]:
    """Reading a tar; DataFileError if it is missing, compressed, or cut short."""
    try:
        yield
    except (tarfile.TarError, FileNotFoundError) as error:
        size = f"{path.stat().st_size} bytes" if path.exists() else "missing"
        raise DataFileError(
            f"{path} ({size}): expected a whole, uncompressed tar, got {error}. It may have been "
            "cut short; restore it, or unpack it if it is compressed."
        ) from error


def sample_key(name: str) -> tuple[str, str]:
    """The key and the suffix in a member's name by WebDataset's convention, parted at the file's first dot.

    Both are empty if the file is of no sample: without a suffix, hidden, or in a folder such as "__meta__".

    >>> sample_key("a/b.c/0001.seg.PNG"), sample_key("README"), sample_key("__meta__/a.txt")
    (('a/b.c/0001', 'seg.png'), ('', ''), ('', ''))
    """
    folder, _, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    if not stem or not suffix or re.match("__[^/]*__/", name):
        return "", ""
    return f"{folder}/{stem}" if folder else stem, suffix.lower()


def _whole_blocks(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _copy(source: IO[bytes], copy: IO[bytes], length: int) -> None:
    while length:
        chunk = source.read(min(length, _CHUNK))
        if not chunk:
            raise tarfile.ReadError(f"{length} bytes less than before")
        copy.write(chunk)
        length -= len(chunk)


def _require_end(path: Path, offset: int) -> None:
    """A whole tar ends in zeros; tarfile takes any torn header for the end."""
    with path.open("rb") as content:
        content.seek(offset)
        if content.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"no end of archive at byte {offset}")
