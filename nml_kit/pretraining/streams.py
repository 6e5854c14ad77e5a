"""What is read when its turn comes: images of a task, image-text pairs of shards; the same for any number of workers.

The shards of an epoch, in an order drawn from (seed, epoch), are dealt to a fixed number of streams; every batch takes
as many pairs from each stream. A stream has each of its pairs once, and then begins again until the epoch is over; what
a large stream has left then is left out. So batches do not depend on the number of processes either.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from joblib import cpu_count
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from nml_kit.backbones import ImageTransform, tokenize
from nml_kit.data import (
    Task,
    decode_images,
    key_words,
    remembered,
    require_unique_keys,
    shard_paths,
    shard_samples,
    stamp_files,
)
from nml_kit.errors import DataFileError
from nml_kit.pretraining.distributed import Processes
from nml_kit.pretraining.loop import seeded_libraries
from nml_kit.pretraining.recipes import ShardRecipe

_MOST_WORKERS = 16
# Raised when a shard is read otherwise; part of the stamp, which thus differs from that of other digests of a file.
_READING = np.array([2])


@dataclass(eq=False)
class TaskImages(Dataset[tuple[Tensor, int]]):
    """Images of a task, prepared by `prepare(pixels, place)`, and their labels; `order` has the row at each place."""

    task: Task
    labels: NDArray[np.int64]
    prepare: Callable[[NDArray[np.uint8], int], Tensor]
    order: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        rows = self.order[place : place + 1]
        return self.prepare(self.task.inputs(rows)[0], place), int(self.labels[rows[0]])


def augmented(
    augment: Callable[[Image.Image], Tensor], words: tuple[int, ...], pixels: NDArray[np.uint8], place: int
) -> Tensor:
    """The image as `augment` draws it, from `words`, such as a seed and the epoch, and its place alone."""
    with seeded_libraries(*words, place):
        return augment(Image.fromarray(pixels))


def prepared(transform: ImageTransform, pixels: NDArray[np.uint8], _: int) -> Tensor:
    """The image through the transform of evaluation."""
    return transform.prepare(pixels[None], torch.device("cpu"))[0]


def loader(data: Dataset[Any], processes: Processes, *, most: int = _MOST_WORKERS, **batching: Any) -> DataLoader[Any]:
    """A loader; where a GPU trains meanwhile, its workers take this process's share of the cores."""
    on_gpu = processes.device.type == "cuda"
    share = cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    workers = max(1, min(most, share)) if on_gpu else 0
    # With a generator of its own: else it draws from, and so changes, torch's global one.
    return DataLoader(data, num_workers=workers, pin_memory=on_gpu, generator=torch.Generator(), **batching)


class Shard(NamedTuple):
    """Where a shard lies, its sha256, and how many pairs it has."""

    path: Path
    digest: str
    pairs: int


def survey_shards(pattern: str | Path, processes: Processes) -> list[Shard]:
    """Read all shards of a brace pattern; processes share them, and what was read is remembered (`remembered`).

    Raises DataFileError if one is missing, cut short or has a sample without caption, or with files that are not
    side by side; InvalidInputError if two have one key.
    """
    count = processes.count
    with processes.agreed():
        paths = shard_paths(pattern)
        own = [_digest_and_keys(path) for path in paths[processes.index :: count]]
    parts = processes.gather(own)
    surveyed = [parts[number % count][number // count] for number in range(len(paths))]
    require_unique_keys(paths, [keys for _, keys in surveyed])
    return [Shard(path, digest, len(keys)) for path, (digest, keys) in zip(paths, surveyed, strict=True)]


def _digest_and_keys(path: Path) -> tuple[str, NDArray[np.uint64]]:
    def read() -> str:
        samples = list(shard_samples(path))
        bare = [sample.key for sample in samples if sample.caption is None]
        if bare:
            raise DataFileError(f"{path}: expected a caption for every image, got none for {bare[0]!r}; add it.")
        if not samples:
            raise DataFileError(f"{path}: expected pairs of an image and a caption, got none; leave it out.")
        with path.open("rb") as file:
            return f"{hashlib.file_digest(file, 'sha256').hexdigest()} {key_words(samples).tobytes().hex()}"

    absolute = str(path.absolute())
    digest, keys = remembered(lambda: stamp_files([absolute], _READING), read).split()
    return digest, np.frombuffer(bytes.fromhex(keys), dtype="<u8")


class Part(NamedTuple):
    """Part of a batch: images (n, 3, H, W), tokens (n, L), and how many pairs were skipped to get them."""

    images: Tensor
    tokens: Tensor
    skipped: int


@dataclass(eq=False)
class PairStreams(IterableDataset[Part]):
    """The parts of `steps` batches that some of the streams of an epoch give.

    In a worker of a DataLoader, those of its part of the streams. A pair whose image does not decode is skipped: one in
    millions shall not end the work of days. Raises DataFileError if none of a stream decodes.
    """

    paths: Sequence[Path]
    streams: Sequence[int]
    steps: int
    recipe: ShardRecipe
    words: tuple[int, int]
    augment: Callable[[Image.Image], Tensor]
    length: int
    skipped: int = 0

    def __iter__(self) -> Iterator[Part]:
        worker = get_worker_info()
        parts = np.array_split(self.streams, worker.num_workers if worker else 1)
        own = [self._stream(number) for number in parts[worker.id if worker else 0].tolist()]
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
            for key, image, caption in _shuffled(_pairs(own), self.recipe.shuffle, generator):
                try:
                    pixels = decode_images([image], np.array([key]), "shards")[0]
                except DataFileError as error:
                    problem = error
                    self.skipped += 1
                    continue
                yield augmented(self.augment, (*self.words, number), pixels, place), caption
                place += 1
            if place == before:
                raise DataFileError(f"{own[0]} and others: expected images, but none decodes: {problem}") from problem


def batches_of_streams(streams: PairStreams, processes: Processes) -> Iterator[Part]:
    """This process's part of each batch."""
    chunks = loader(streams, processes, most=len(streams.streams), batch_size=None)
    turns = iter(chunks)
    while parts := list(islice(turns, max(1, chunks.num_workers))):  # workers take turns, in order
        images, tokens, skipped = zip(*parts, strict=True)
        yield Part(torch.cat(images), torch.cat(tokens), sum(skipped))


def _pairs(paths: Sequence[Path]) -> Iterator[tuple[str, bytes, str]]:
    """Key, encoded image and caption of each pair."""
    for path in paths:
        with path.open("rb") as content:
            for sample in shard_samples(path):
                content.seek(sample.offset)
                yield sample.key, content.read(sample.size), str(sample.caption)


def _shuffled(pairs: Iterator[Any], size: int, generator: np.random.Generator) -> Iterator[Any]:
    """All pairs, each drawn from `size` that are held."""
    held: list[Any] = []
    for pair in pairs:
        if len(held) < size:
            held.append(pair)
            continue
        place = int(generator.integers(size))
        yield held[place]
        held[place] = pair
    for place in generator.permutation(len(held)).tolist():
        yield held[place]
