"""Feature extraction into the store and reading it back, against the bare loops."""

import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import Row, compare, exponent, in_turn
from nml_kit import LinearProbe, extract_features, load_backbone, load_task
from nml_kit.backbones import Backbone
from nml_kit.data import Task
from nml_kit.features import BATCH_ROWS
from nml_kit.pretraining import draw_shifts, shift_images
from nml_kit.store import Store, read_tensors, write_tensors


def repeated(task: Task, times: int) -> Task:
    """The task's decoded images `times` over, under new ids."""
    ids = np.char.add(np.tile(task.ids, times), [f"-{i}" for i in np.repeat(np.arange(times), len(task))])
    text = [np.tile(column, times) for column in (task.captions, task.domains, task.splits)]
    return Task(
        "repeated", ids, np.tile(task.labels, times), task.class_names, *text, np.tile(task.images, (times, 1, 1, 1))
    )


def stored_extraction(task: Task, backbone: Backbone, root: Path) -> Callable[[], None]:
    fresh = count()

    def run() -> None:
        extract_features(task, backbone, store=Store(root / f"store-{next(fresh)}"), progress=False)

    return run


def extraction_rows(root: Path) -> Iterator[Row]:
    backbone, small = load_backbone("compact-resnet"), load_task("fashion")
    task = repeated(small, 2)

    def bare() -> None:
        for start in range(0, len(task), BATCH_ROWS):
            backbone(task.images[start : start + BATCH_ROWS])

    yield compare(
        f"feature extraction into the store, {len(task):,} images",
        "the bare forward loop of the same backbone",
        stored_extraction(task, backbone, root),
        bare,
        target=0.95,
    )
    sizes = [1, 2, 4, 8]
    tasks = [repeated(small.take(np.arange(1000)), size) for size in sizes]
    times = in_turn(*(stored_extraction(one, backbone, root) for one in tasks), repeats=3)
    medians = [float(np.median(samples)) for samples in times]
    growth = exponent(sizes, medians)
    seconds = ", ".join(f"{1000 * size:,}: {second:.2f} s" for size, second in zip(sizes, medians, strict=True))
    yield Row(
        f"extraction of N = {sizes[-1] * 1000:,} images, per image",
        "of N = 1,000, per image",
        medians[-1] / sizes[-1],
        medians[0],
        note=f"{seconds}; exponent {growth:.2f} (≤ 1.05 aimed at)",
    )


def reading_row(root: Path) -> Row:
    resident = np.random.default_rng(0).standard_normal((100_000, 512)).astype(np.float32)
    y = np.arange(100_000) % 10
    write_tensors(root / "features.safetensors", {"values": resident})
    mapped = read_tensors(root / "features.safetensors")["values"]
    probe = LinearProbe(epochs=1)
    return compare(
        "one epoch of a linear probe on resident features (100,000 × 512)",
        "on memory-mapped features, once warm",
        lambda: probe.fit(resident, y),
        lambda: probe.fit(mapped, y),
        note="at most 1.1 aimed at: here a small ratio is good",
    )


def shift_row() -> Row:
    images = torch.randint(0, 256, (128, 32, 32, 3), dtype=torch.uint8)
    generator = np.random.default_rng(0)
    return compare(
        "shifting a batch of 128 images (augmentation)",
        "one image at a time",
        lambda: shift_images(images, draw_shifts(len(images), 2, generator)),
        lambda: [shift_images(image[None], draw_shifts(1, 2, generator)) for image in images],
    )


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as directory:
        yield from extraction_rows(Path(directory))
        yield reading_row(Path(directory))
    yield shift_row()
