"""WebDataset shards: tars of images with captions or labels beside them, read by the offset of each image."""

import json
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nml_kit.data.folders import IMAGE_SUFFIXES, official_splits
from nml_kit.data.images import FileParts, LazyImages, as_objects
from nml_kit.data.task import Task, classes_of
from nml_kit.errors import DataFileError, InvalidInputError, MissingDependencyError
from nml_kit.noise import random_words
from nml_kit.store import replacing

UNLABELLED = ("unlabelled",)
_CHUNK = 1 << 20  # bytes


class ShardSample(NamedTuple):
    """A sample of a shard: where the bytes of its image lie, and what is written beside it (None: nothing)."""

    key: str
    offset: int
    size: int
    caption: str | None
    label: int | str | None


class Caption(NamedTuple):
    """A sample's key and caption, and the byte of its shard where the caption's header begins."""

    key: str
    text: str
    byte: int


def shard_paths(pattern: str | Path) -> list[Path]:
    """The shards that a brace pattern such as "in-{000..005}.tar" names, in its order.

    Raises MissingDependencyError without braceexpand, DataFileError if one is missing.
    """
    try:
        from braceexpand import braceexpand
    except ModuleNotFoundError as error:
        raise MissingDependencyError("Shards need braceexpand: pip install 'nml_kit[shards]'.") from error
    try:
        paths = [Path(path) for path in braceexpand(str(pattern))]
    except ValueError as error:
        raise DataFileError(f"Expected a pattern as 'in-{{000..005}}.tar', got {str(pattern)!r}: {error}.") from error
    if missing := [path for path in paths if not path.is_file()]:
        raise DataFileError(
            f"Expected {len(paths)} shards {pattern}, but {len(missing)} are missing, as {missing[0]}; restore them or "
            "change the pattern."
        )
    return paths


def read_shards(pattern: str | Path) -> Task:
    """A Task from WebDataset shards: images (.jpg, .png, .webp, …) with .txt captions and .cls or .json labels.

    A .json may hold "label" and "caption". Ids are the samples' keys, whatever shards they are in. Without labels
    there is the one class "unlabelled". A shard with train, val or test as a word of its name, or as its folder, is of
    that split (see `official_splits`); otherwise all is "train". Images are read when asked for.
    Raises DataFileError naming the shard if it is missing, cut short or no tar, a sample lacks what others have, or its
    files are not side by side; InvalidInputError naming both shards if two have one key.
    """
    shards = shard_paths(pattern)
    samples_of = [list(shard_samples(path)) for path in shards]
    samples = [sample for samples in samples_of for sample in samples]
    if not samples:
        raise DataFileError(f"{pattern}: expected samples with an image ({', '.join(IMAGE_SUFFIXES)}), got none.")
    require_unique_keys(shards, list(map(key_words, samples_of)))
    shard_of = np.repeat(np.arange(len(shards)), list(map(len, samples_of)))
    parts = FileParts(
        [str(path.absolute()) for path in shards],
        shard_of,
        np.array([sample.offset for sample in samples], dtype=np.int64),
        np.array([sample.size for sample in samples], dtype=np.int64),
    )
    captions = _column(samples, "caption", shards, shard_of)
    written_labels = _column(samples, "label", shards, shard_of)
    try:
        none = np.zeros(len(samples), dtype=np.int64), UNLABELLED
        labels, class_names = none if written_labels is None else classes_of(written_labels.tolist())
    except ValueError as error:
        raise DataFileError(f"{pattern}: expected labels as whole numbers or texts, got {error}.") from error
    return Task(
        Path(pattern).name.removesuffix(".tar"),
        ids=np.array([sample.key for sample in samples]),
        labels=labels,
        class_names=class_names,
        captions=captions,
        splits=np.array(_splits(shards))[shard_of],
        image_data=LazyImages(parts, np.arange(len(samples))),
    )


def shard_samples(path: Path) -> Iterator[ShardSample]:
    """The samples of one shard that have an image, in order: members of one key follow each other.

    Raises DataFileError if the shard is no whole tar, or if members of one key do not, or are two of a kind: what
    trains on shards elsewhere would make two samples of them, or drop one.
    """
    keys: set[str] = set()
    with whole_tar(path), path.open("rb") as content:
        for key, members in groupby(sample_members(path), itemgetter(0)):
            found: dict[str, tarfile.TarInfo] = {}
            for _, suffix, member in members:
                kind = "image" if f".{suffix}" in IMAGE_SUFFIXES else suffix
                if key in keys or kind in found:
                    raise DataFileError(
                        f"{path}: expected the files of {key!r} side by side, and one {kind} among them, got "
                        f"{member.name!r} after others; order the shard by name, as `tar --sort=name` does, and give "
                        "each sample a key of its own."
                    )
                found[kind] = member
            keys.add(key)
            if "image" not in found:
                continue
            notes: dict[str, Any] = {}
            for kind in sorted(found.keys() & {"txt", "cls", "json"}):
                content.seek(found[kind].offset_data)
                text = content.read(found[kind].size)
                notes[kind] = _note(text, f"{path}: expected text in {key}.{kind}", kind)
            beside = notes.get("json") or {}
            label = notes.get("cls", beside.get("label"))
            caption = notes.get("txt", beside.get("caption"))
            yield ShardSample(key, found["image"].offset_data, found["image"].size, caption, label)


def key_words(samples: Iterable[ShardSample]) -> NDArray[np.uint64]:
    """64 bits (N,) that stand for the keys of samples, so that those of millions can be held and compared."""
    return random_words((sample.key for sample in samples), 0, "key")[0]


def require_unique_keys(paths: Sequence[Path], words_of: Sequence[NDArray[np.uint64]]) -> None:
    """Raise InvalidInputError naming a key that two shards have; `words_of` are the `key_words` of each shard."""
    shard_of = np.repeat(np.arange(len(paths)), [len(words) for words in words_of])
    words = np.concatenate(words_of)
    order = np.argsort(words, kind="stable")
    for place in np.flatnonzero(words[order[1:]] == words[order[:-1]]):
        first, second = shard_of[order[place : place + 2]]
        if first != second:  # two keys of one shard have the same bits by chance, as those of two shards may have
            one, other = ({sample.key for sample in shard_samples(paths[number])} for number in (first, second))
            for key in sorted(one & other):
                raise repeated_key(key, paths[first], paths[second])


def repeated_key(key: str, first: Path | str, second: Path | str) -> InvalidInputError:
    return InvalidInputError(
        f"Expected unique keys in all shards, got {key!r} twice, in {first} and {second}; rename samples."
    )


def shard_captions(path: Path, suffix: str) -> Iterator[Caption]:
    """The caption of each sample of a shard, the member with this suffix; raises DataFileError if one has none."""
    with whole_tar(path), path.open("rb") as source:
        for key, members in groupby(sample_members(path), itemgetter(0)):
            captions = [member for _, kind, member in members if kind == suffix]
            if len(captions) != 1:
                raise DataFileError(
                    f"{path}: expected one caption (.{suffix}) for every sample, its members side by side, got "
                    f"{len(captions)} for {key!r}; add it or leave that sample out."
                )
            source.seek(captions[0].offset_data)
            try:
                key.encode()
                yield Caption(key, source.read(captions[0].size).decode(), captions[0].offset)
            except UnicodeError as error:
                raise DataFileError(
                    f"{path}: expected the name and the caption of {key!r} as UTF-8, got {error}; convert it."
                ) from error


def sample_members(path: Path) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Key, suffix and place of each file of a sample in a tar, in memory that does not grow with their number.

    By WebDataset's convention a name is parted at its file's first dot; a file without a suffix, a hidden one, or one
    in a folder such as "__meta__" is of no sample. To be used in a block of `whole_tar`, which explains what is wrong.
    """
    with tarfile.open(path, "r:") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined] # it would keep them all
            folder, _, file = member.name.rpartition("/")
            stem, _, suffix = file.partition(".")
            if member.isreg() and stem and suffix and not re.match("__[^/]*__/", member.name):
                yield f"{folder}/{stem}" if folder else stem, suffix.lower(), member
        with path.open("rb") as content:  # a whole tar ends in zeros; tarfile takes any torn header for the end
            content.seek(tar.offset)
            if content.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError(f"no end of archive at byte {tar.offset}")


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


def write_shard(path: Path, target: Path, texts: Iterable[tuple[int, str]]) -> None:
    """Copy a shard byte by byte, but with other texts for the members whose headers begin at some bytes."""
    with replacing(target) as temporary, whole_tar(path), path.open("rb") as source, temporary.open("wb") as copy:
        for byte, text in texts:
            _copy(source, copy, byte - source.tell())
            with tarfile.open(fileobj=source, mode="r:") as tar:  # it begins where `source` is
                member = tar.next()
            if member is None:
                raise tarfile.ReadError(f"no file at byte {byte}")
            source.seek(member.offset_data + _whole_blocks(member.size))
            content = text.encode()
            member.size = len(content)
            member.pax_headers = {name: text for name, text in member.pax_headers.items() if name != "size"}  # it wins
            copy.write(member.tobuf(tarfile.PAX_FORMAT, tarfile.ENCODING, "surrogateescape"))
            copy.write(content.ljust(_whole_blocks(len(content)), tarfile.NUL))
        shutil.copyfileobj(source, copy, _CHUNK)


def _note(content: bytes, expected: str, suffix: str) -> Any:
    """What a member beside an image says: a caption, a label, or a JSON object."""
    try:
        text = content.decode().strip()
        if suffix == "cls":
            return int(text) if text.isdecimal() else text
        if suffix == "txt":
            return text
        notes = json.loads(text)
        if not isinstance(notes, dict) or not isinstance(notes.get("caption", ""), str | None):
            raise ValueError("no JSON object, or a caption that is no text")
        return notes
    except (ValueError, RecursionError) as error:
        raise DataFileError(f"{expected}, got {error}; write it anew.") from error


def _column(
    samples: Sequence[ShardSample], field: str, shards: Sequence[Path], shard_of: NDArray[np.int64]
) -> NDArray[np.object_] | None:
    """One value a sample, or None if no sample has one; as objects, so that a long text does not pad all."""
    column = as_objects([getattr(sample, field) for sample in samples])
    missing = np.array([value is None for value in column])
    if missing.all():
        return None
    if missing.any():
        row = int(missing.argmax())
        raise DataFileError(
            f"{shards[shard_of[row]]}: expected a {field} for every sample, got none for {samples[row].key!r} "
            f"({missing.sum()} of {len(samples)} lack one); add them or leave those samples out."
        )
    return column


def _splits(shards: Sequence[Path]) -> list[str]:
    words_of = [[path.parent.name.lower(), *re.split(r"[^a-z]+", path.name.lower())] for path in shards]
    roles = official_splits(sorted({word for words in words_of for word in words}))
    return [next((roles[word] for word in reversed(words) if word in roles), "train") for words in words_of]


def _whole_blocks(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _copy(source: IO[bytes], copy: IO[bytes], length: int) -> None:
    while length:
        chunk = source.read(min(length, _CHUNK))
        if not chunk:
            raise tarfile.ReadError(f"{length} bytes less than before")
        copy.write(chunk)
        length -= len(chunk)
