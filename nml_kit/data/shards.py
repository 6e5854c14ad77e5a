"""WebDataset shards: tars of images with captions or labels beside them, read by the offset of each image."""

import json
import re
from collections.abc import Iterator
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nml_kit.data.folders import IMAGE_SUFFIXES, official_splits
from nml_kit.data.images import FileParts, LazyImages, as_objects
from nml_kit.data.tar import sample_key, tar_members, whole_tar
from nml_kit.data.task import Task, classes_of, make_task
from nml_kit.errors import DataFileError, MissingDependencyError

UNLABELLED = ("unlabelled",)


class ShardSample(NamedTuple):
    """A sample of a shard: where the bytes of its image lie, and what is written beside it (None: nothing)."""

    key: str
    offset: int
    size: int
    caption: str | None
    label: int | str | None


class _Member(NamedTuple):
    key: str
    suffix: str
    offset: int
    size: int


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
    Raises DataFileError naming the shard if it is missing, cut short or no tar, or a sample lacks what others have.
    """
    shards = shard_paths(pattern)
    samples: list[ShardSample] = []
    counts = []
    for path in shards:
        before = len(samples)
        samples += shard_samples(path)
        counts.append(len(samples) - before)
    if not samples:
        raise DataFileError(f"{pattern}: expected samples with an image ({', '.join(IMAGE_SUFFIXES)}), got none.")
    shard_of = np.repeat(np.arange(len(shards)), counts)
    parts = FileParts(
        [str(path.absolute()) for path in shards],
        shard_of,
        np.fromiter((sample.offset for sample in samples), np.int64, len(samples)),
        np.fromiter((sample.size for sample in samples), np.int64, len(samples)),
    )
    captions = _column(samples, "caption", shards, shard_of)
    labels, class_names = _labels(_column(samples, "label", shards, shard_of), len(samples), pattern)
    return make_task(
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

    Raises DataFileError if the shard is no whole tar.
    """
    with path.open("rb") as content:
        for key, members in groupby(_members(path), attrgetter("key")):
            notes: dict[str, Any] = {}
            image = None
            for member in members:
                if f".{member.suffix}" in IMAGE_SUFFIXES:
                    image = member
                elif member.suffix in ("txt", "cls", "json"):
                    content.seek(member.offset)
                    notes[member.suffix] = _note(content.read(member.size), member, path)
            if image is not None:
                beside = notes.get("json") or {}
                label = notes.get("cls", beside.get("label"))
                caption = notes.get("txt", beside.get("caption"))
                yield ShardSample(key, image.offset, image.size, caption, label)


def _members(path: Path) -> Iterator[_Member]:
    with whole_tar(path):
        for member in tar_members(path):
            key, suffix = sample_key(member.name)
            if key:
                yield _Member(key, suffix, member.offset_data, member.size)


def _note(content: bytes, member: _Member, path: Path) -> Any:
    """What a member beside an image says: a caption, a label, or a JSON object."""
    try:
        text = content.decode().strip()
        if member.suffix == "cls":
            return int(text) if text.isdecimal() else text
        if member.suffix == "txt":
            return text
        found = json.loads(text)
        if not isinstance(found, dict) or not isinstance(found.get("caption", ""), str | None):
            raise ValueError("no JSON object, or a caption that is no text")
        return found
    except (ValueError, RecursionError) as error:
        raise DataFileError(
            f"{path}: expected text in {member.key}.{member.suffix}, got {error}; write it anew."
        ) from error


def _column(
    samples: list[ShardSample], field: str, shards: list[Path], shard_of: NDArray[np.int64]
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


def _labels(
    found: NDArray[np.object_] | None, count: int, pattern: str | Path
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    if found is None:
        return np.zeros(count, dtype=np.int64), UNLABELLED
    try:
        return classes_of(found.tolist())
    except ValueError as error:
        raise DataFileError(f"{pattern}: expected labels as whole numbers or texts, got {error}.") from error


def _splits(shards: list[Path]) -> list[str]:
    words = [[path.parent.name.lower(), *re.split(r"[^a-z]+", path.name.lower())] for path in shards]
    uses = official_splits(sorted({word for found in words for word in found}))
    return [next((uses[word] for word in reversed(found) if word in uses), "train") for found in words]
