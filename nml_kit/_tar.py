"""Members of uncompressed tars, one after the other, in memory that does not grow with their number."""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from nml_kit.errors import DataFileError


def tar_members(path: Path) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """Each regular file in a tar, with a reader of its content that is good until the next.

    To be used in a block of `whole_tar`, which explains what is wrong with a tar.
    """
    with tarfile.open(path, "r:") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined] # it would keep them all
            if member.isreg():
                yield member, cast(IO[bytes], tar.extractfile(member))
        _require_end(path, tar.offset)


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

    >>> sample_key("a/b.c/0001.seg.PNG")
    ('a/b.c/0001', 'seg.png')
    """
    folder, _, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return f"{folder}/{stem}" if folder else stem, suffix.lower()


def _require_end(path: Path, offset: int) -> None:
    """A whole tar ends in zeros; tarfile takes any torn header for the end."""
    with path.open("rb") as content:
        content.seek(offset)
        if content.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"no end of archive at byte {offset}")
