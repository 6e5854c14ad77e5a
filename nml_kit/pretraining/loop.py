"""The one loop of pre-training: epochs, checkpoints, resumption; and what several trainers need inside an epoch."""

import math
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor, nn
from tqdm import tqdm

from nml_kit.backbones import PRETRAINED_KIND, Backbone, ImageTransform, load_backbone, seeded
from nml_kit.data import Task
from nml_kit.errors import InvalidInputError
from nml_kit.pretraining.distributed import Processes
from nml_kit.pretraining.recipes import ContrastiveRecipe, Recipe
from nml_kit.store import Store, replacing, write_tensors

CHECKPOINT = "checkpoint.pt"
History = list[dict[str, float]]


def plain_seed(seed: Any) -> int:
    """The seed as the int that keys and cards hold, NumPy's too; InvalidInputError unless it is one of at least 0."""
    if not isinstance(seed, Integral) or isinstance(seed, bool) or seed < 0:
        raise InvalidInputError(f"Expected seed to be an integer of at least 0, got {seed!r}.")
    return int(seed)


class Training:
    """What a trainer gives the loop: its state, as it is at the start, and how to train it for one epoch."""

    network: Any
    optimizer: torch.optim.Optimizer
    transform: ImageTransform
    epochs: int
    seed: int

    def train_epoch(self, parallel: nn.Module, epoch: int) -> dict[str, float]:
        """Train one epoch and return its mean loss, for the history.

        `parallel` is the network wrapped for several processes. Random choices depend on seed and epoch alone.
        """
        raise NotImplementedError

    def measures(self) -> dict[str, float]:
        """What else the history says about the network after an epoch."""
        return {}


def trained_backbone(
    key_now: Callable[[], dict[str, Any]],
    start: Callable[[], Training],
    card: dict[str, Any],
    title: str,
    processes: Processes,
    store: Store | None,
    progress: bool,
) -> Backbone:
    """The backbone of a key: from the store, or trained; its card is `card`, the transform and the history.

    `key_now` tells the key of the data as they are; it is asked again before the backbone is kept.
    """

    def build(work: Path) -> dict[str, Any]:
        with processes.agreed():
            training = start()
            history = _resumed(training, work / CHECKPOINT)
        _train_epochs(training, history, work / CHECKPOINT, title, processes, progress)
        with processes.agreed():
            key_now()  # raises if files have changed while they were read
        if processes.leads:
            state = training.network.state_dict()
            weights = {name: tensor.contiguous().cpu().numpy() for name, tensor in state.items()}
            write_tensors(work / "entry" / "weights.safetensors", weights)
        return card | {"transform": asdict(training.transform), "history": history}

    store = store or Store()
    entry = processes.get_or_build(store, PRETRAINED_KIND, key_now(), build)
    return load_backbone(f"nml:{entry.digest}", store=store)


def _train_epochs(
    training: Training, history: History, checkpoint: Path, title: str, processes: Processes, progress: bool
) -> None:
    """Train the epochs that `history` has no row of; after each, the leading process writes a checkpoint."""
    with processes.lockstep():
        parallel = processes.data_parallel(training.network)
    start, bar = len(history), {"unit": "epoch", "disable": not (progress and processes.leads), "leave": False}
    for epoch in tqdm(range(start, training.epochs), title, training.epochs, initial=start, **bar):
        # For what a network draws by itself, as dropout does: each process its own.
        words = np.random.SeedSequence((training.seed, epoch, processes.index)).generate_state(1)
        with processes.lockstep(), seeded(int(words[0]), processes.device):
            row = {"epoch": epoch + 1, **training.train_epoch(parallel, epoch), **training.measures()}
        history.append(row)
        with processes.agreed():
            if processes.leads:
                write_checkpoint(checkpoint, training, history)


def write_checkpoint(path: Path, training: Training, history: History) -> None:
    """Write the states of network and optimiser and the rows of the finished epochs, whole or not at all."""
    content = {
        "network": training.network.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "history": history,
    }
    with replacing(path) as temporary, temporary.open("wb") as file:  # to a path, torch hides why it cannot write
        torch.save(content, file)


def _resumed(training: Training, checkpoint: Path) -> History:
    """The rows of the finished epochs, after which the training goes on."""
    if not checkpoint.exists():
        return []
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    training.network.load_state_dict(content["network"])
    training.optimizer.load_state_dict(content["optimizer"])
    return content["history"]


def decay_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups of parameters for an optimiser that decays matrices only, neither gains and biases nor single numbers."""
    decayed = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    spared = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]


def set_learning_rate(optimizer: torch.optim.Optimizer, epoch: float, recipe: Recipe | ContrastiveRecipe) -> None:
    """Set the rate at `epoch`, which counts fractions: linear warm-up from a tenth, then half a cosine to zero."""
    warmup = min(recipe.warmup_epochs, recipe.epochs / 2)
    if epoch < warmup:
        rate = recipe.learning_rate * (0.1 + 0.9 * epoch / warmup)
    else:
        done = (epoch - warmup) / (recipe.epochs - warmup)
        rate = recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    for group in optimizer.param_groups:
        group["lr"] = rate


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A block that computes in the precision of a recipe."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


@torch.inference_mode()
def accuracy(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], count: int, processes: Processes, precision: str
) -> float:
    """Share of `count` images that the network, in eval mode, gives their label.

    `batches` are this process's prepared images (M, 3, H, W) and labels (M,).
    """
    network.eval()
    hits = 0
    for images, labels in batches:
        with autocast(processes.device, precision):
            predicted = network(images.to(processes.device, memory_format=torch.channels_last)).argmax(1)
        hits += int((predicted.cpu() == labels).sum())
    return processes.sum(float(hits)) / count


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


def standardising_transform(train: Task) -> ImageTransform:
    """Zero mean and unit variance per channel over the train images, rounded to be readable in the card."""
    pixels = np.asarray(train.images).reshape(-1, 3) / 255
    mean, std = pixels.mean(axis=0).round(4).tolist(), pixels.std(axis=0).round(4).tolist()
    return ImageTransform(mean=tuple(mean), std=tuple(max(value, 1e-3) for value in std))


def draw_shifts(count: int, max_shift: int, generator: np.random.Generator) -> Int[Tensor, "2 m"]:
    """How far to move each image down and right, in pixels up to `max_shift` each way.

    >>> draw_shifts(3, 0, np.random.default_rng(0)).tolist()
    [[0, 0, 0], [0, 0, 0]]
    """
    if max_shift == 0:
        return torch.zeros((2, count), dtype=torch.int64)
    return torch.from_numpy(generator.integers(-max_shift, max_shift + 1, size=(2, count)))


def shift_images(images: UInt8[Tensor, "m h w 3"], shifts: Int[Tensor, "2 m"]) -> UInt8[Tensor, "m h w 3"]:
    """Move the content of each image by the pixels of `draw_shifts`; edge pixels fill the gap.

    >>> shift_images(torch.arange(4).view(1, 2, 2, 1), torch.tensor([[0], [1]])).flatten().tolist()
    [1, 1, 3, 3]
    """
    if not shifts.any():
        return images
    count, height, width, _ = images.shape
    rows = (torch.arange(height) + shifts[0][:, None]).clamp_(0, height - 1)
    columns = (torch.arange(width) + shifts[1][:, None]).clamp_(0, width - 1)
    return images[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
