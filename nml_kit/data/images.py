"""Images that stay encoded, in files or parts of files, until their pixels are asked for."""

import hashlib
import io
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nml_kit.errors import DataFileError
from nml_kit.store import plain_of_bytes

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # none that another program decodes, as Pillow does with EPS
_IMAGE_ERRORS = (OSError, TypeError, ValueError, SyntaxError, LookupError, ArithmeticError, EOFError, struct.error,
                 NotImplementedError, MemoryError, Image.DecompressionBombError)  # fmt: skip


class Stamp(NamedTuple):
    """Tells files that were written to from files that were not: their paths, sizes and times, and the last change."""

    digest: str
    changed: int  # in nanoseconds since 1970


class ImageSource(Protocol):
    """Where images lie: each has a number, its content, the size of that in bytes, and a place to name in errors.

    A stamp is None where there is no way to tell whether content changed but to read it.
    """

    def read(self, number: int) -> bytes | NDArray[np.uint8]: ...
    def size(self, number: int) -> int: ...
    def place(self, number: int) -> str: ...
    def stamp(self, numbers: NDArray[np.int64]) -> Stamp | None: ...


@dataclass(frozen=True, eq=False)
class LazyImages:
    """Images (N,) of a source, read when asked for: it stands where an object array (N,) of encoded bytes may stand.

    An integer index reads one; a slice, a boolean mask or integer positions choose some and read none; iteration reads
    one after the other. Raises DataFileError if a file cannot be read.
    """

    source: ImageSource
    numbers: NDArray[np.int64]

    @property
    def dtype(self) -> np.dtype[np.object_]:
        """That of an array of bytes objects."""
        return np.dtype(object)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: Any) -> Any:
        chosen = self.numbers[rows]
        return replace(self, numbers=chosen) if isinstance(chosen, np.ndarray) else self.source.read(int(chosen))

    def __iter__(self) -> Iterator[bytes | NDArray[np.uint8]]:
        return map(self.source.read, self.numbers.tolist())

    def place(self, row: int) -> str:
        """Where the image of a row lies, for messages."""
        return self.source.place(int(self.numbers[row]))

    def stamp(self) -> Stamp | None:
        """That of the files of all images."""
        return self.source.stamp(self.numbers)

    def digest(self) -> str:
        """What `plain` gives for an array of the same bytes, read one after the other."""
        numbers = self.numbers.tolist()
        contents = (_as_bytes(image) for image in self)
        try:
            return plain_of_bytes([self.source.size(number) for number in numbers], contents)
        except ValueError as error:
            raise DataFileError(f"{self.place(0)} and others: {error}; they changed meanwhile, read again.") from error


@dataclass(frozen=True)
class WholeFiles:
    """Each image is a file."""

    paths: Sequence[str]

    def read(self, number: int) -> bytes:
        """The bytes of a file."""
        return _read_part(self.paths[number])

    def size(self, number: int) -> int:
        """Its size."""
        try:
            return Path(self.paths[number]).stat().st_size
        except (OSError, ValueError) as error:
            raise _unreadable(self.paths[number], error) from error

    def place(self, number: int) -> str:
        """Its path."""
        return self.paths[number]

    def stamp(self, numbers: NDArray[np.int64]) -> Stamp | None:
        """That of the files."""
        return stamp_files([self.paths[number] for number in numbers.tolist()])


@dataclass(frozen=True, eq=False)
class FileParts:
    """Each image is `sizes[i]` bytes from `offsets[i]` of the file `paths[path_of[i]]`, as the members of a tar are."""

    paths: Sequence[str]
    path_of: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def read(self, number: int) -> bytes:
        """The bytes of a part; DataFileError if the file ends before them."""
        path, size = self.paths[self.path_of[number]], self.size(number)
        content = _read_part(path, int(self.offsets[number]), size)
        if len(content) != size:
            raise DataFileError(f"{self.place(number)}: expected {size} bytes, got {len(content)}: it was cut short.")
        return content

    def size(self, number: int) -> int:
        """Its size."""
        return int(self.sizes[number])

    def place(self, number: int) -> str:
        """The file and the byte where it starts."""
        return f"{self.paths[self.path_of[number]]}, byte {self.offsets[number]}"

    def stamp(self, numbers: NDArray[np.int64]) -> Stamp | None:
        """That of the files, with the places in them."""
        return stamp_files(self.paths, self.path_of[numbers], self.offsets[numbers], self.sizes[numbers])


def stamp_files(paths: Sequence[str], *places: NDArray[np.int64]) -> Stamp | None:
    """The stamp of files and of places in them; None if one is not there."""
    digest, changed = hashlib.sha256(), 0
    try:
        for path in paths:
            found = Path(path).stat()
            changed = max(changed, found.st_ctime_ns, found.st_mtime_ns)
            digest.update(f"{path}\0{found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}\n".encode())
    except (OSError, ValueError):
        return None
    for numbers in places:
        digest.update(np.ascontiguousarray(numbers, dtype="<i8").tobytes())
    return Stamp(digest.hexdigest(), changed)


def image_files(paths: Sequence[str | Path]) -> LazyImages:
    """The images in `paths`, (N,); a path may be relative to the present directory, the result is not."""
    return LazyImages(WholeFiles([str(Path(path).absolute()) for path in paths]), np.arange(len(paths)))


def decode_images(images: Any, ids: NDArray[np.str_], name: str) -> NDArray[Any]:
    """Pixels of encoded `images` (n,) with these ids: uint8 RGB (n, H, W, 3), or (n,) of (h, w, 3) if sizes differ.

    Raises DataFileError naming the task, the sample and its file if one does not decode.
    """
    pixels = []
    for row, (sample_id, data) in enumerate(zip(ids.tolist(), images, strict=True)):
        try:
            pixels.append(data if isinstance(data, np.ndarray) else _decoded(data))
        except _IMAGE_ERRORS as error:
            place = f" ({images.place(row)})" if isinstance(images, LazyImages) else ""
            raise DataFileError(
                f"Task {name!r}: the image of sample {sample_id!r}{place} does not decode: {error}."
            ) from error
    if not pixels:
        return np.empty((0, 0, 0, 3), dtype=np.uint8)
    if len({image.shape for image in pixels}) == 1:
        return np.stack(pixels)
    return as_objects(pixels)


def as_objects(values: Sequence[Any]) -> NDArray[np.object_]:
    """An object array (N,) of any values: a long text does not pad all, arrays stay apart."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def _decoded(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data), formats=_FORMATS).convert("RGB"))


def _as_bytes(image: bytes | NDArray[np.uint8]) -> bytes:
    return image if isinstance(image, bytes) else np.ascontiguousarray(image).tobytes()


def _read_part(path: str, offset: int = 0, size: int = -1) -> bytes:
    try:
        with Path(path).open("rb") as file:
            file.seek(offset)
            return file.read(size)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> DataFileError:
    return DataFileError(f"Expected an image in {path}, got {error}; restore it, or load the task anew.")
