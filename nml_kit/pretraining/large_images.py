"""Batches of augmented images that are read when their turn comes, each seeded by its place in the epoch."""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from joblib import cpu_count
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nml_kit.backbones import ImageTransform
from nml_kit.data import Task
from nml_kit.pretraining.distributed import Processes

_MOST_WORKERS = 16


class EpochImages(Dataset[tuple[Tensor, int]]):
    """What is at each place of an epoch: sample `order[place]`, augmented, and its label.

    What the augmentation draws depends on `words`, such as a seed and the epoch, and on the place alone.
    """

    def __init__(
        self,
        task: Task,
        labels: NDArray[np.int64],
        order: NDArray[np.int64],
        augment: Callable[[Image.Image], Tensor],
        words: tuple[int, ...],
    ) -> None:
        self.task, self.labels, self.order, self.augment, self.words = task, labels, order, augment, words

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        row = self.order[place]
        image = Image.fromarray(self.task.inputs(self.order[place : place + 1])[0])
        with seeded_libraries(*self.words, place):
            return self.augment(image), int(self.labels[row])


class EvaluationImages(Dataset[tuple[Tensor, int]]):
    """Each sample of a task through the transform of evaluation, and its label."""

    def __init__(self, task: Task, labels: NDArray[np.int64], transform: ImageTransform) -> None:
        self.task, self.labels, self.transform = task, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        images = self.task.inputs(np.array([row]))
        return self.transform.prepare(images, torch.device("cpu"))[0], int(self.labels[row])


def in_batches(dataset: Dataset[Any], batches: list[list[int]], processes: Processes) -> DataLoader[Any]:
    """The given batches of a data set; loaded in processes beside this one where a GPU trains meanwhile."""
    on_gpu = processes.device.type == "cuda"
    # A generator of its own: else the loader draws from, and so changes, torch's global one.
    return DataLoader(dataset, batch_sampler=batches, num_workers=loader_workers() if on_gpu else 0, pin_memory=on_gpu,
                      generator=torch.Generator())  # fmt: skip


def loader_workers() -> int:
    """How many processes load data for this one: its share of the cores."""
    return max(1, min(_MOST_WORKERS, cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def shared_pairs(places: NDArray[np.int64], processes: Processes) -> list[int]:
    """This process's part of a pass: whole pairs of the first and the last place, the second and the last but one, ….

    timm mixes a batch with itself in reverse order: so the same images are mixed, however many processes there are.

    >>> shared_pairs(np.arange(8), Processes(2, 1, torch.device("cpu")))
    [2, 3, 4, 5]
    """
    first = np.array_split(np.arange(len(places) // 2), processes.count)[processes.index]
    return places[np.concatenate([first, len(places) - 1 - first[::-1]])].tolist()


@contextmanager
def seeded_libraries(*words: int) -> Iterator[None]:
    """A block on generators of Python, NumPy and torch (CPU) that `words` seed, which are then as they were."""
    numbers = np.random.SeedSequence(words).generate_state(3).tolist()
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 (timm draws from them)
    random.seed(numbers[0])
    np.random.seed(numbers[1])  # noqa: NPY002
    torch.default_generator.manual_seed(numbers[2])
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


@contextmanager
def seeded_network(device: torch.device, *words: int) -> Iterator[None]:
    """A block in which layers on `device` draw (stochastic depth) from generators that `words` seed, then as before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))
        yield
