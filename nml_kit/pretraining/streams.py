"""Image-text pairs streamed from shards, in the same batches however many processes and workers there are.

The shards of an epoch, in an order drawn from (seed, epoch), are dealt to a fixed number of streams; every batch takes
as many pairs from each stream. A stream has each of its pairs once, and then begins again until the epoch is over; what
a large stream has left then is left out.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from nml_kit.backbones import tokenize
from nml_kit.data import decode_images, remembered, shard_paths, shard_samples, stamp_files
from nml_kit.errors import DataFileError
from nml_kit.pretraining.distributed import Processes
from nml_kit.pretraining.large_images import loader_workers, seeded_libraries
from nml_kit.pretraining.large_recipes import ShardRecipe

# Raised when pairs are counted otherwise; part of the stamp, which thus differs from that of other digests of a file.
_COUNTING = np.array([1])


class Part(NamedTuple):
    """Part of a batch: images (n, 3, H, W), tokens (n, L), and how many pairs were skipped to get them."""

    images: Tensor
    tokens: Tensor
    skipped: int


class _Pair(NamedTuple):
    key: str
    image: bytes
    caption: str


@dataclass(frozen=True)
class Shards:
    """Shards in order: where they lie, the sha256 of each, and how many pairs it has."""

    paths: tuple[Path, ...]
    digests: tuple[str, ...]
    counts: tuple[int, ...]


def survey_shards(pattern: str | Path, processes: Processes) -> Shards:
    """Read all shards of a brace pattern; processes share them, and what was read is remembered (`remembered`).

    Raises DataFileError if one is missing, cut short or has a sample without caption.
    """
    with processes.agreed():
        paths = shard_paths(pattern)
        own = [_surveyed(path) for path in paths[processes.index :: processes.count]]
    parts = processes.gather(own)
    found = [parts[number % processes.count][number // processes.count] for number in range(len(paths))]
    return Shards(tuple(paths), tuple(digest for digest, _ in found), tuple(count for _, count in found))


def _surveyed(path: Path) -> tuple[str, int]:
    """The sha256 of a shard and its number of pairs."""
    absolute = str(path.absolute())
    digest, count = remembered(lambda: stamp_files([absolute], _COUNTING), lambda: _read(path)).split()
    return digest, int(count)


def _read(path: Path) -> str:
    count = 0
    for sample in shard_samples(path):
        if sample.caption is None:
            raise DataFileError(f"{path}: expected a caption for every image, got none for {sample.key!r}; add it.")
        count += 1
    if count == 0:
        raise DataFileError(f"{path}: expected pairs of an image and a caption, got none; leave it out.")
    with path.open("rb") as file:
        return f"{hashlib.file_digest(file, 'sha256').hexdigest()} {count}"


class PairStreams(IterableDataset[Part]):
    """The parts of `steps` batches that some of the streams of an epoch give.

    In a worker of a DataLoader, those of its part of the streams. A pair whose image does not decode is skipped: one in
    millions shall not end the work of days. Raises DataFileError if none of a stream decodes.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        streams: Sequence[int],
        steps: int,
        recipe: ShardRecipe,
        words: tuple[int, int],
        augment: Any,
        length: int,
    ) -> None:
        self.paths, self.streams, self.steps, self.recipe = paths, streams, steps, recipe
        self.words, self.augment, self.length = words, augment, length
        self.skipped = 0

    def __iter__(self) -> Iterator[Part]:
        worker = get_worker_info()
        parts = np.array_split(self.streams, 1 if worker is None else worker.num_workers)
        own = [self._stream(number) for number in parts[0 if worker is None else worker.id].tolist()]
        share = self.recipe.batch_size // self.recipe.streams
        for _ in range(self.steps):
            self.skipped = 0
            pairs = [pair for stream in own for pair in islice(stream, share)]
            tokens = tokenize([text for _, text in pairs], self.length)
            yield Part(torch.stack([image for image, _ in pairs]), tokens, self.skipped)

    def _stream(self, number: int) -> Iterator[tuple[Tensor, str]]:
        order = np.random.default_rng(self.words).permutation(len(self.paths))
        own = [self.paths[place] for place in order[number :: self.recipe.streams]]
        generator = np.random.default_rng([*self.words, number])
        place = 0
        while True:
            before = place
            for pair in _shuffled(_pairs(own), self.recipe.shuffle, generator):
                try:
                    pixels = decode_images([pair.image], np.array([pair.key]), "shards")[0]
                except DataFileError as error:
                    problem = error
                    self.skipped += 1
                    continue
                with seeded_libraries(*self.words, number, place):
                    yield self.augment(Image.fromarray(pixels)), pair.caption
                place += 1
            if place == before:
                raise DataFileError(f"{own[0]} and others: expected images, but none decodes: {problem}") from problem


def batches_of_streams(dataset: PairStreams, processes: Processes) -> Iterator[Part]:
    """This process's part of each batch; loaded by workers where a GPU trains meanwhile."""
    on_gpu = processes.device.type == "cuda"
    workers = min(loader_workers(), len(dataset.streams)) if on_gpu else 0
    chunks = iter(DataLoader(dataset, batch_size=None, num_workers=workers, pin_memory=on_gpu,
                             generator=torch.Generator()))  # fmt: skip
    while parts := list(islice(chunks, max(1, workers))):  # workers take turns, in order
        images, tokens, skipped = zip(*parts, strict=True)
        yield Part(torch.cat(images), torch.cat(tokens), sum(skipped))


def _pairs(paths: Sequence[Path]) -> Iterator[_Pair]:
    for path in paths:
        with path.open("rb") as content:
            for sample in shard_samples(path):
                content.seek(sample.offset)
                yield _Pair(sample.key, content.read(sample.size), str(sample.caption))


def _shuffled(pairs: Iterator[_Pair], size: int, generator: np.random.Generator) -> Iterator[_Pair]:
    """All pairs, each drawn from `size` that are held."""
    held: list[_Pair] = []
    for pair in pairs:
        if len(held) < size:
            held.append(pair)
            continue
        place = int(generator.integers(size))
        yield held[place]
        held[place] = pair
    for place in generator.permutation(len(held)).tolist():
        yield held[place]
