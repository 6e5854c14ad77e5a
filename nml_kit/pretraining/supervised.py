"""Pre-training on noisy labels or captions: seeded, checkpointed every epoch, resumable to the bit on a CPU."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nml_kit.backbones import PRETRAINED_KIND, Backbone, ImageTransform, build_network, load_backbone
from nml_kit.data import Task, noise_fingerprint
from nml_kit.errors import InvalidInputError
from nml_kit.noise import CaptionNoise, LabelNoise
from nml_kit.pretraining.contrastive import contrastive_key, train_contrastive
from nml_kit.pretraining.distributed import Processes, launched_processes
from nml_kit.pretraining.large_recipes import TimmRecipe
from nml_kit.pretraining.loop import (
    WEIGHTS,
    History,
    pretraining_card,
    read_checkpoint,
    standardising_transform,
    train_epochs,
    write_checkpoint,
    write_weights,
)
from nml_kit.pretraining.recipes import ContrastiveRecipe, Recipe, resolve_contrastive_recipe, resolve_recipe
from nml_kit.pretraining.sgd import (
    PreparedImages,
    accuracy,
    make_optimizer,
    momentum_buffers,
    restore_momentum,
    train_epoch,
)
from nml_kit.pretraining.timm import train_timm
from nml_kit.store import Store

# Raised whenever the same request would give other weights, so that stored ones are not taken for new ones.
PRETRAIN_VERSION = 1
Trainer = Callable[[Path, Processes, bool], tuple[ImageTransform, History]]


@dataclass
class _Run:
    """One pre-training in progress; `history` has one row per finished epoch."""

    processes: Processes
    network: nn.Module
    optimizer: torch.optim.Optimizer
    train: PreparedImages
    test: PreparedImages
    flipped: PreparedImages
    history: History = field(default_factory=list)


def pretrain(
    task: Task,
    noise: LabelNoise | CaptionNoise,
    *,
    recipe: str | Recipe | TimmRecipe | ContrastiveRecipe = "light",
    seed: int,
    store: Store | None = None,
    progress: bool = True,
) -> Backbone:
    """The backbone pre-trained on noisy labels or captions of the task's train split: from the store, or trained.

    Label noise: supervised pre-training by a `Recipe`, or by a `TimmRecipe` of images of any size that are read when
    their turn comes; `noise.clean` must equal the train labels (n,), in order.
    Caption noise: contrastive pre-training on pairs of image and caption by a `ContrastiveRecipe`; `noise.clean` must
    equal the train captions (n,). The result's `card` holds the objective, the recipe, the fingerprint of the noise
    record and, per epoch, the loss, the accuracy on the clean test split (contrastive: zero-shot) and what is
    memorised: the share of flipped labels that the network predicts, or of the exchanged captions, the share that is
    nearer to the image than its own one; all are fractions. Killed at any moment and called again, it goes on from the
    last whole epoch and gives the same weights, to the bit on a CPU.
    Several processes that `torchrun` or `accelerate launch` started divide each batch of a supervised recipe,
    statistics of batch normalisation included, and give what one gives up to rounding; the device is a GPU if there is
    one. Contrastive pre-training runs in one process.
    Raises InvalidInputError if the noise record belongs to other labels or captions, the recipe to the other objective,
    UnknownNameError for an unknown recipe, ProcessFailedError for an error in another process.
    Source: the paper's section 2 (one network from scratch per noise ratio).

    >>> from nml_kit import Recipe, inject_label_noise, load_task
    >>> task = load_task("digits").limit(train_per_class=20, seed=0)
    >>> noise = inject_label_noise(task.select(split="train").labels, 0.1, num_classes=10, seed=0)
    >>> backbone = pretrain(task, noise, recipe=Recipe(epochs=1), seed=0, progress=False)
    >>> backbone.card["noise"]["requested_ratio"], len(backbone.card["history"])
    (0.1, 1)
    """
    key, chosen, train = _arrow(task, noise, recipe, seed)
    processes = launched_processes()

    def build(work: Path) -> dict[str, Any]:
        transform, history = train(work, processes, progress)
        return pretraining_card(task, noise, chosen, seed, transform) | {"history": history}

    store = store or Store()
    entry = processes.get_or_build(store, PRETRAINED_KIND, key, build)
    return load_backbone(f"nml:{entry.digest}", store=store)


def is_pretrained(
    task: Task,
    noise: LabelNoise | CaptionNoise,
    *,
    recipe: str | Recipe | TimmRecipe | ContrastiveRecipe,
    seed: int,
    store: Store,
) -> bool:
    """Whether `pretrain` would find its result in the store."""
    key, *_ = _arrow(task, noise, recipe, seed)
    return store.find(PRETRAINED_KIND, key) is not None


def _arrow(
    task: Task, noise: LabelNoise | CaptionNoise, recipe: str | Recipe | TimmRecipe | ContrastiveRecipe, seed: int
) -> tuple[dict[str, Any], Recipe | TimmRecipe | ContrastiveRecipe, Trainer]:
    """The key, the recipe and the training that the kind of noise asks for."""
    if isinstance(noise, CaptionNoise):
        pairs = resolve_contrastive_recipe(recipe)
        return contrastive_key(task, noise, pairs, seed), pairs, partial(train_contrastive, task, noise, pairs, seed)
    if isinstance(recipe, TimmRecipe):
        return _supervised_key(task, noise, recipe, seed), recipe, partial(train_timm, task, noise, recipe, seed)
    labels = resolve_recipe(recipe)
    return _supervised_key(task, noise, labels, seed), labels, partial(_train_supervised, task, noise, labels, seed)


def _supervised_key(task: Task, noise: LabelNoise, recipe: Recipe | TimmRecipe, seed: int) -> dict[str, Any]:
    train, test = _splits(task)
    if task.image_data is None or not np.array_equal(noise.clean, train.labels):
        came = "a text task" if task.image_data is None else f"a noise record of {len(noise.clean)} other labels"
        raise InvalidInputError(
            f"Task {task.name!r}: expected images and a noise record made from its {len(train)} train labels, but got "
            f"{came}; make it by inject_label_noise(task.select(split='train').labels, …)."
        )
    return {"arrow": "pretrain", "version": PRETRAIN_VERSION, "train": train.fingerprint, "test": test.fingerprint,
            "test_labels": test.labels, "num_classes": task.num_classes, "noise": noise_fingerprint(noise),
            "recipe": recipe.model_dump(), "seed": seed}  # fmt: skip


@lru_cache(maxsize=4)
def _splits(task: Task) -> tuple[Task, Task]:
    """Kept for each task object, with their fingerprints: to read all files of a large one again takes long."""
    return task.select(split="train"), task.select(split="test")


def _train_supervised(
    task: Task, noise: LabelNoise, recipe: Recipe, seed: int, work: Path, processes: Processes, progress: bool
) -> tuple[ImageTransform, History]:
    """Train from the checkpoint in `work`, if there is one, and leave the weights in `work / "entry"`."""
    checkpoint = work / "checkpoint.safetensors"
    with processes.agreed():
        train, test = task.select(split="train"), task.select(split="test")
        run, transform = _start(train, test, noise, recipe, seed, processes)
        if checkpoint.exists():
            _restore(run, checkpoint)
    _train(run, recipe, seed, checkpoint, f"γ={noise.requested_ratio:g}", progress)
    if processes.leads:
        write_weights(work / "entry" / WEIGHTS, run.network.state_dict())
    return transform, run.history


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
    processes = run.processes
    with processes.lockstep():
        parallel = processes.data_parallel(run.network)

    def one_epoch(epoch: int) -> dict[str, float]:
        loss = train_epoch(parallel, run.optimizer, run.train, recipe, epoch, seed, processes)
        row = {"loss": loss, "test_accuracy": accuracy(run.network, run.test, processes)}
        return row | ({"memorised": accuracy(run.network, run.flipped, processes)} if len(run.flipped.labels) else {})

    train_epochs(processes, run.history, recipe.epochs, one_epoch, lambda: _save(run, checkpoint),
                 title=f"pretrain {label} seed={seed}", progress=progress)  # fmt: skip


def _save(run: _Run, checkpoint: Path) -> None:
    parts = {"network": run.network.state_dict(), "momentum": momentum_buffers(run.network, run.optimizer)}
    write_checkpoint(checkpoint, parts, run.history)


def _restore(run: _Run, checkpoint: Path) -> None:
    parts, run.history[:] = read_checkpoint(checkpoint)
    run.network.load_state_dict(parts["network"])
    restore_momentum(run.network, run.optimizer, parts["momentum"])
