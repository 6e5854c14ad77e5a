"""Images that stay encoded, in files or parts of files, until their pixels are asked for; and their digests."""

import hashlib
import io
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, Shaped
from numpy.typing import NDArray
from PIL import Image

from nml_kit.errors import DataFileError, StoreError
from nml_kit.store import Store, fingerprint, plain_of_bytes, read_json, write_json

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # none that another program decodes, as Pillow does with EPS
_PILLOW_ERRORS = (OSError, SyntaxError, EOFError, NotImplementedError, struct.error, Image.DecompressionBombError)
_IMAGE_ERRORS = (*_PILLOW_ERRORS, TypeError, ValueError, LookupError, ArithmeticError)  # a full memory breaks no image
_SETTLED_SECONDS = 60.0


class Stamp(NamedTuple):
    """Tells files that were written to from files that were not: their paths, sizes and times, and the last change."""

    digest: str
    changed: int  # in nanoseconds since 1970


class ImageSource:
    """Where images lie: each has a number, its content, the size of that in bytes, and a place to name in errors."""

    def read(self, number: int) -> Any:
        """Encoded bytes, or pixels (h, w, 3) uint8."""
        raise NotImplementedError

    def place(self, number: int) -> str:
        """Where an image lies, for messages."""
        raise NotImplementedError

    def size(self, number: int) -> int:
        return len(_as_bytes(self.read(number)))

    def stamp(self, numbers: Int64[np.ndarray, " n"]) -> Stamp | None:
        """None where there is no way to tell whether content changed but to read it."""
        return None


@dataclass(frozen=True, eq=False)
class LazyImages:
    """Images (N,) of a source, read when asked for: it stands where an object array (N,) of encoded bytes may stand.

    An integer index reads one; a slice, a boolean mask or integer positions choose some and read none; iteration reads
    one after the other. Raises DataFileError if a file cannot be read.
    """

    source: ImageSource
    numbers: Int64[np.ndarray, " n"]

    dtype = np.dtype(object)  # that of an array of bytes objects

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: Any) -> Any:
        chosen = self.numbers[rows]
        return replace(self, numbers=chosen) if isinstance(chosen, np.ndarray) else self.source.read(int(chosen))

    def __iter__(self) -> Iterator[Any]:
        return map(self.source.read, self.numbers.tolist())

    def place(self, row: int) -> str:
        return self.source.place(int(self.numbers[row]))

    def stamp(self) -> Stamp | None:
        return self.source.stamp(self.numbers)

    def digest(self) -> str:
        """What `plain` gives for an array of the same bytes; the files are read only if they were written to."""
        return remembered(self.stamp, self._read_digest)

    def _read_digest(self) -> str:
        sizes = [self.source.size(number) for number in self.numbers.tolist()]
        try:
            return plain_of_bytes(sizes, map(_as_bytes, self))
        except ValueError as error:
            raise DataFileError(f"{self.place(0)} and others: {error}; they changed meanwhile, read again.") from error


@dataclass(frozen=True, eq=False)
class FileParts(ImageSource):
    """Image i is `sizes[i]` bytes from `offsets[i]` of the file `paths[path_of[i]]`; size −1: the rest of the file."""

    paths: Sequence[str]
    path_of: Int64[np.ndarray, " n"]
    offsets: Int64[np.ndarray, " n"]
    sizes: Int64[np.ndarray, " n"]

    def read(self, number: int) -> bytes:
        size = int(self.sizes[number])
        with _explained(path := self.paths[self.path_of[number]]), Path(path).open("rb") as file:
            file.seek(self.offsets[number])
            content = file.read(size)
        if 0 <= size != len(content):
            raise DataFileError(f"{self.place(number)}: expected {size} bytes, got {len(content)}: it was cut short.")
        return content

    def place(self, number: int) -> str:
        path = self.paths[self.path_of[number]]
        return path if self.sizes[number] < 0 else f"{path}, byte {self.offsets[number]}"

    def size(self, number: int) -> int:
        size, path = int(self.sizes[number]), self.paths[self.path_of[number]]
        with _explained(path):
            return size if size >= 0 else Path(path).stat().st_size

    def stamp(self, numbers: Int64[np.ndarray, " n"]) -> Stamp | None:
        path_of = self.path_of[numbers]
        paths = [self.paths[number] for number in np.unique(path_of)]
        return stamp_files(paths, path_of, self.offsets[numbers], self.sizes[numbers])


@dataclass(frozen=True, eq=False)
class JoinedImages(ImageSource):
    """Images of several tasks: image i is row `row_of[i]` of part `part_of[i]`, an array or lazy."""

    parts: Sequence[Any]
    part_of: Int64[np.ndarray, " n"]
    row_of: Int64[np.ndarray, " n"]

    def read(self, number: int) -> Any:
        return self.parts[self.part_of[number]][self.row_of[number]]

    def place(self, number: int) -> str:
        part, row = self.parts[self.part_of[number]], int(self.row_of[number])
        return part.place(row) if isinstance(part, LazyImages) else f"row {row} of a task"

    def size(self, number: int) -> int:
        part, row = self.parts[self.part_of[number]], self.row_of[number]
        return part.source.size(int(part.numbers[row])) if isinstance(part, LazyImages) else super().size(number)

    def stamp(self, numbers: Int64[np.ndarray, " n"]) -> Stamp | None:
        stamps = [part.stamp() if isinstance(part, LazyImages) else None for part in self.parts]
        known = [stamp for stamp in stamps if stamp is not None]
        if len(known) < len(stamps):
            return None
        places = {"rows": self.row_of[numbers], "parts": self.part_of[numbers]}
        digest = fingerprint({"stamps": [stamp.digest for stamp in known], **places})
        return Stamp(digest, max(stamp.changed for stamp in known))


@contextmanager
def _explained(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise DataFileError(f"Expected an image in {path}, got {error}; restore it.") from error


def image_files(paths: Sequence[str | Path]) -> LazyImages:
    """The images in `paths`, (N,); a path may be relative to the present directory, the result is not."""
    numbers = np.arange(len(paths))
    absolute = [str(Path(path).absolute()) for path in paths]
    return LazyImages(FileParts(absolute, numbers, 0 * numbers, 0 * numbers - 1), numbers)


def stamp_files(paths: Sequence[str], *places: Int64[np.ndarray, " n"]) -> Stamp | None:
    """The stamp of files and of places in them; None if one is not there."""
    digest, changed = hashlib.sha256(), 0
    try:
        for path in paths:
            status = Path(path).stat()
            changed = max(changed, status.st_ctime_ns, status.st_mtime_ns)
            about = f"{path}\0{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n"
            digest.update(about.encode())
    except (OSError, ValueError):
        return None
    for numbers in places:
        digest.update(np.ascontiguousarray(numbers, dtype="<i8").tobytes())
    return Stamp(digest.hexdigest(), changed)


def remembered(stamp_of: Callable[[], Stamp | None], compute: Callable[[], str]) -> str:
    """`compute()`, the digest of files: read from $NML_HOME if it is there for the very same files, sizes and times.

    Only what was last changed a minute before is remembered: a change within one tick of a clock would not be seen.
    """
    stamp = stamp_of()
    if stamp is None:
        return compute()
    path = Store().root / "digests" / f"{stamp.digest}.json"
    with suppress(DataFileError):
        known = read_json(path)
        if isinstance(known, dict) and known.get("of") == stamp.digest and isinstance(known.get("digest"), str):
            return known["digest"]
    settled = stamp.changed < time.time_ns() - _SETTLED_SECONDS * 1e9
    digest = compute()
    if settled and stamp_of() == stamp:
        with suppress(StoreError):  # a home that cannot be written to costs time, nothing else
            write_json(path, {"of": stamp.digest, "digest": digest})
    return digest


def file_digest(path: Path) -> str:
    """The sha256 of a file, remembered."""
    with path.open("rb") as file:
        stamp = partial(stamp_files, [str(path.absolute())])
        return remembered(stamp, lambda: hashlib.file_digest(file, "sha256").hexdigest())


def decode_images(images: Any, ids: Shaped[np.ndarray, " n"], name: str) -> Shaped[np.ndarray, "n ..."]:
    """Pixels of encoded `images` (n,) with these ids: uint8 RGB (n, H, W, 3), or (n,) of (h, w, 3) if sizes differ.

    Of 16 bits a channel the upper 8 are taken. What is transparent lies on white.
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
    return np.stack(pixels) if len({image.shape for image in pixels}) == 1 else as_objects(pixels)


def as_objects(values: Sequence[Any]) -> NDArray[np.object_]:
    """An object array (N,) of any values: a long text does not pad all, arrays stay apart."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def _decoded(data: bytes) -> NDArray[np.uint8]:
    picture: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
    if picture.mode.startswith(("I", "F")):  # greys of more than 8 bits, which `convert` would clip at 255
        values = np.asarray(picture)
        if values.dtype.kind == "f" or values.min() < 0 or values.max() >= 1 << 16:
            raise ValueError("expected 8 or 16 bits a channel, got numbers of an unknown scale; save it as 8 bits")
        picture = Image.fromarray((values >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.asarray(picture.convert("RGB"))


def _as_bytes(image: bytes | NDArray[np.uint8]) -> bytes:
    return image if isinstance(image, bytes) else np.ascontiguousarray(image).tobytes()
