"""Supervised pre-training on noisy labels: seeded, checkpointed every epoch, resumable to the bit on a CPU."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from nml_kit._processes import Processes, launched_processes
from nml_kit._sgd import (
    PreparedImages,
    accuracy,
    make_optimizer,
    momentum_buffers,
    restore_momentum,
    train_epoch,
)
from nml_kit.backbones import PRETRAINED_KIND, Backbone, ImageTransform, load_backbone
from nml_kit.datasets import Task
from nml_kit.errors import InvalidInputError
from nml_kit.files import read_tensors, write_tensors
from nml_kit.networks import build_network
from nml_kit.noise import LabelNoise
from nml_kit.recipes import Recipe, resolve_recipe
from nml_kit.records import noise_fingerprint
from nml_kit.store import Store

# Raised whenever the same request would give other weights, so that stored ones are not taken for new ones.
PRETRAIN_VERSION = 1


@dataclass
class _Run:
    """One pre-training in progress; `history` has one row per finished epoch."""

    processes: Processes
    network: nn.Module
    optimizer: torch.optim.Optimizer
    train: PreparedImages
    test: PreparedImages
    flipped: PreparedImages
    history: list[dict[str, float]] = field(default_factory=list)


def pretrain(
    task: Task,
    noise: LabelNoise,
    *,
    recipe: str | Recipe = "light",
    seed: int,
    store: Store | None = None,
    progress: bool = True,
) -> Backbone:
    """The backbone pre-trained on the noisy labels of the task's train split: read from the store, or trained.

    `noise.clean` must equal the train labels (n,), in order. The result's `card` holds the recipe, the fingerprint
    of the noise record and, per epoch, the loss, the accuracy on the clean test split and the share of flipped
    labels that the network predicts (memorised); all are fractions. Killed at any moment and called again, it goes
    on from the last whole epoch and gives the same weights, to the bit on a CPU.
    Several processes that `torchrun` or `accelerate launch` started divide each batch of the recipe, statistics of
    batch normalisation included, and give what one gives up to rounding; the device is a GPU if there is one.
    Raises InvalidInputError if the noise record belongs to other labels, UnknownNameError for an unknown recipe,
    ProcessFailedError for an error in another process.
    Source: the paper's section 2 (one network from scratch per noise ratio).

    >>> from nml_kit import Recipe, inject_label_noise, load_task
    >>> task = load_task("digits").limit(train_per_class=20, seed=0)
    >>> noise = inject_label_noise(task.select(split="train").labels, 0.1, num_classes=10, seed=0)
    >>> backbone = pretrain(task, noise, recipe=Recipe(epochs=1), seed=0, progress=False)
    >>> backbone.card["noise"]["requested_ratio"], len(backbone.card["history"])
    (0.1, 1)
    """
    recipe, processes = resolve_recipe(recipe), launched_processes()
    train, test = task.select(split="train"), task.select(split="test")

    def build(work: Path) -> dict[str, Any]:
        checkpoint = work / "checkpoint.safetensors"
        with processes.agreed():
            run, transform = _start(train, test, noise, recipe, seed, processes)
            if checkpoint.exists():
                _restore(run, checkpoint)
        _train(run, recipe, seed, checkpoint, f"γ={noise.requested_ratio:g}", progress)
        if processes.leads:
            write_tensors(work / "entry" / "weights.safetensors", _arrays(run.network.state_dict()))
        return _card(task, noise, recipe, seed, transform) | {"history": run.history}

    store = store or Store()
    entry = processes.get_or_build(store, PRETRAINED_KIND, _pretraining_key(task, noise, recipe, seed), build)
    return load_backbone(f"nml:{entry.digest}", store=store)


def is_pretrained(task: Task, noise: LabelNoise, *, recipe: str | Recipe, seed: int, store: Store) -> bool:
    """Whether `pretrain` would find its result in the store."""
    return store.find(PRETRAINED_KIND, _pretraining_key(task, noise, resolve_recipe(recipe), seed)) is not None


def _pretraining_key(task: Task, noise: LabelNoise, recipe: Recipe, seed: int) -> dict[str, Any]:
    train, test = task.select(split="train"), task.select(split="test")
    if task.image_data is None or not np.array_equal(noise.clean, train.labels):
        came = "a text task" if task.image_data is None else f"a noise record of {len(noise.clean)} other labels"
        raise InvalidInputError(
            f"Task {task.name!r}: expected images and a noise record made from its {len(train)} train labels, but got "
            f"{came}; make it by inject_label_noise(task.select(split='train').labels, …)."
        )
    return {"arrow": "pretrain", "version": PRETRAIN_VERSION, "train": train.fingerprint, "test": test.fingerprint,
            "test_labels": test.labels, "num_classes": task.num_classes, "noise": noise_fingerprint(noise),
            "recipe": recipe.model_dump(), "seed": seed}  # fmt: skip


def _start(
    train: Task, test: Task, noise: LabelNoise, recipe: Recipe, seed: int, processes: Processes
) -> tuple[_Run, ImageTransform]:
    transform = standardising_transform(train)

    def prepare(part: Task, labels: NDArray[np.int64]) -> PreparedImages:
        return PreparedImages(torch.from_numpy(part.images), torch.from_numpy(labels), transform)

    network = build_network(recipe.architecture, num_classes=train.num_classes, seed=seed)
    network = network.to(processes.device).to(memory_format=torch.channels_last)
    run = _Run(
        processes,
        network,
        make_optimizer(network, recipe.learning_rate, recipe.momentum, recipe.weight_decay),
        train=prepare(train, noise.noisy),
        test=prepare(test, test.labels),
        flipped=prepare(train.take(noise.mask), noise.noisy[noise.mask]),
    )
    return run, transform


def _train(run: _Run, recipe: Recipe, seed: int, checkpoint: Path, label: str, progress: bool) -> None:
    processes, start = run.processes, len(run.history)
    with processes.lockstep():
        parallel = processes.data_parallel(run.network)
    epochs = range(start, recipe.epochs)
    for epoch in tqdm(epochs, f"pretrain {label} seed={seed}", recipe.epochs, initial=start, unit="epoch",
                      disable=not (progress and processes.leads), leave=False):  # fmt: skip
        with processes.lockstep():
            loss = train_epoch(parallel, run.optimizer, run.train, recipe, epoch, seed, processes)
            row = {"epoch": epoch + 1, "loss": loss, "test_accuracy": accuracy(run.network, run.test, processes)}
            if len(run.flipped.labels):
                row["memorised"] = accuracy(run.network, run.flipped, processes)
        run.history.append(row)
        with processes.agreed():
            if processes.leads:
                _save(run, checkpoint)


def _save(run: _Run, checkpoint: Path) -> None:
    arrays = _arrays(run.network.state_dict(), "network.")
    arrays |= _arrays(momentum_buffers(run.network, run.optimizer), "momentum.")
    history = np.frombuffer(json.dumps(run.history).encode(), dtype=np.uint8)
    write_tensors(checkpoint, arrays | {"history": history})


def _restore(run: _Run, checkpoint: Path) -> None:
    arrays = read_tensors(checkpoint)
    run.history[:] = json.loads(arrays.pop("history").tobytes())
    parts: dict[str, dict[str, Tensor]] = {"network": {}, "momentum": {}}
    for name, values in arrays.items():
        part, _, parameter = name.partition(".")
        parts[part][parameter] = torch.from_numpy(values)
    run.network.load_state_dict(parts["network"])
    restore_momentum(run.network, run.optimizer, parts["momentum"])


def _arrays(tensors: dict[str, Tensor], prefix: str = "") -> dict[str, np.ndarray]:
    return {prefix + name: tensor.detach().contiguous().cpu().numpy() for name, tensor in tensors.items()}


def standardising_transform(train: Task) -> ImageTransform:
    """Zero mean and unit variance per channel over the train images, rounded to be readable in the card."""
    pixels = np.asarray(train.images).reshape(-1, 3) / 255
    mean, std = pixels.mean(axis=0).round(4).tolist(), pixels.std(axis=0).round(4).tolist()
    return ImageTransform(mean=tuple(mean), std=tuple(max(value, 1e-3) for value in std))


def _card(task: Task, noise: LabelNoise, recipe: Recipe, seed: int, transform: ImageTransform) -> dict[str, Any]:
    return {
        "task": task.name,
        "num_classes": task.num_classes,
        "recipe": recipe.model_dump(),
        "seed": seed,
        "noise": {"fingerprint": noise_fingerprint(noise), "kind": noise.kind, "seed": noise.seed,
                  "requested_ratio": noise.requested_ratio, "realised_ratio": noise.realised_ratio},
        "transform": asdict(transform),
    }  # fmt: skip
