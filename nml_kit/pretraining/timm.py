"""Supervised pre-training by a `TimmRecipe`, with timm's own augmentation, mixing, losses, optimisers and schedules.

Tests run it on miniatures, on a CPU. At full size, and on GPUs, it was never run here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nml_kit.backbones import ImageTransform, missing_models_extra, seeded, timm_network
from nml_kit.data import Task
from nml_kit.errors import InvalidInputError
from nml_kit.noise import LabelNoise
from nml_kit.pretraining.distributed import Processes
from nml_kit.pretraining.large_images import (
    EpochImages,
    EvaluationImages,
    in_batches,
    seeded_libraries,
    seeded_network,
    shared_pairs,
)
from nml_kit.pretraining.large_recipes import TimmRecipe
from nml_kit.pretraining.loop import (
    WEIGHTS,
    History,
    optimizer_state,
    read_checkpoint,
    restore_optimizer,
    train_epochs,
    write_checkpoint,
    write_weights,
)

_EVALUATION_BATCH = 128
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, timm's default
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass
class _Run:
    """One pre-training in progress; `history` has one row per finished epoch."""

    recipe: TimmRecipe
    seed: int
    processes: Processes
    network: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    mix: Mix
    loss: nn.Module
    augment: Callable[[Any], Tensor]
    train: Task
    labels: NDArray[np.int64]
    test: EvaluationImages
    flipped: EvaluationImages
    history: History = field(default_factory=list)

    @property
    def steps(self) -> int:
        return len(self.train) // self.recipe.batch_size


def evaluation_transform(recipe: TimmRecipe) -> ImageTransform:
    """What test images, and those of downstream tasks, go through: resize the short side, crop the centre."""
    return ImageTransform(_MEAN, _STD, resize=int(recipe.test_size / recipe.test_crop), crop=recipe.test_size,
                          interpolation=recipe.interpolation)  # fmt: skip


def train_timm(
    task: Task, noise: LabelNoise, recipe: TimmRecipe, seed: int, work: Path, processes: Processes, progress: bool
) -> tuple[ImageTransform, History]:
    """Train from the checkpoint in `work`, if there is one, and leave the weights in `work / "entry"`.

    Raises InvalidInputError if there are fewer train images than one batch, or fewer pairs in a pass than processes.
    """
    checkpoint = work / "checkpoint.safetensors"
    with processes.agreed():
        run = _start(task, noise, recipe, seed, processes)
        if checkpoint.exists():
            parts, run.history[:] = read_checkpoint(checkpoint)
            run.network.load_state_dict(parts["network"])
            restore_optimizer(run.network, run.optimizer, parts["optimizer"])
    _train(run, checkpoint, f"pretrain γ={noise.requested_ratio:g} seed={seed}", progress)
    if processes.leads:
        write_weights(work / "entry" / WEIGHTS, run.network.state_dict())
    return evaluation_transform(recipe), run.history


def _start(task: Task, noise: LabelNoise, recipe: TimmRecipe, seed: int, processes: Processes) -> _Run:
    try:
        from timm.data import create_transform
        from timm.optim import create_optimizer_v2
        from timm.scheduler import create_scheduler_v2
    except ImportError as error:
        raise missing_models_extra("timm") from error
    train, test, transform = task.select(split="train"), task.select(split="test"), evaluation_transform(recipe)
    _require_whole_batches(len(train), recipe, processes)
    with seeded(seed):
        network = timm_network(recipe.architecture.removeprefix("timm:"), pretrained=False,
                               num_classes=task.num_classes, drop_path_rate=recipe.drop_path)  # fmt: skip
    network = network.to(processes.device).to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(network, recipe.optimizer, lr=recipe.learning_rate,
                                    weight_decay=recipe.weight_decay, momentum=0.9)  # fmt: skip
    scheduler, _ = create_scheduler_v2(
        optimizer, "cosine", num_epochs=recipe.epochs, warmup_epochs=min(recipe.warmup_epochs, recipe.epochs // 2),
        warmup_lr=min(recipe.warmup_from, recipe.learning_rate), min_lr=min(recipe.floor, recipe.learning_rate),
        step_on_epochs=False, updates_per_epoch=len(train) // recipe.batch_size,
    )  # fmt: skip
    augment = create_transform(
        recipe.train_size, is_training=True, auto_augment=recipe.randaugment, color_jitter=0.0,
        interpolation=recipe.interpolation, mean=_MEAN, std=_STD, re_prob=recipe.erasing, re_mode="pixel",
    )  # fmt: skip
    mix, loss = _targets(recipe, task.num_classes)
    return _Run(
        recipe, seed, processes, network, optimizer, scheduler, mix, loss.to(processes.device), augment, train,
        noise.noisy, test=EvaluationImages(test, test.labels, transform),
        flipped=EvaluationImages(train.take(noise.mask), noise.noisy[noise.mask], transform),
    )  # fmt: skip


def _require_whole_batches(count: int, recipe: TimmRecipe, processes: Processes) -> None:
    pairs = recipe.batch_size // recipe.accumulate // 2
    if count < recipe.batch_size or pairs < processes.count:
        raise InvalidInputError(
            f"Expected at least one batch of {recipe.batch_size} train images, and a pair of images for each process "
            f"in a pass, got {count} images and {pairs} pairs for {processes.count} processes; set another batch_size."
        )


def _targets(recipe: TimmRecipe, num_classes: int) -> tuple[Mix, nn.Module]:
    """How images and labels of a pass become input and targets, and the mean loss of these."""
    from timm.data import Mixup
    from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy

    mixes = recipe.mixup > 0 or recipe.cutmix > 0
    mix: Mix = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.smoothing, num_classes=num_classes) if mixes \
        else lambda images, labels: (images, labels)  # fmt: skip
    if recipe.loss == "bce":
        return mix, BinaryCrossEntropy(recipe.smoothing, target_threshold=recipe.bce_threshold)
    return mix, SoftTargetCrossEntropy() if mixes else nn.CrossEntropyLoss(label_smoothing=recipe.smoothing)


def _train(run: _Run, checkpoint: Path, title: str, progress: bool) -> None:
    with run.processes.lockstep():
        parallel = run.processes.data_parallel(run.network)

    def one_epoch(epoch: int) -> dict[str, float]:
        row = {"loss": _train_epoch(run, parallel, epoch), "test_accuracy": _accuracy(run, run.test)}
        return row | ({"memorised": _accuracy(run, run.flipped)} if len(run.flipped) else {})

    train_epochs(run.processes, run.history, run.recipe.epochs, one_epoch, lambda: _save(run, checkpoint),
                 title=title, progress=progress)  # fmt: skip


def _save(run: _Run, checkpoint: Path) -> None:
    parts = {"network": run.network.state_dict(), "optimizer": optimizer_state(run.network, run.optimizer)}
    write_checkpoint(checkpoint, parts, run.history)


def _train_epoch(run: _Run, parallel: nn.Module, epoch: int) -> float:
    """Train one epoch, whose random choices depend on (seed, epoch) alone, and return the mean loss.

    Stochastic depth apart, which each process draws for its own images, they do not depend on the number of processes.
    """
    recipe, processes = run.recipe, run.processes
    images = EpochImages(run.train, run.labels, _order(run, epoch), run.augment, (run.seed, epoch))
    used = np.arange(run.steps * recipe.batch_size)
    passes = [shared_pairs(places, processes) for places in np.split(used, run.steps * recipe.accumulate)]
    share = len(passes[0]) * processes.count / recipe.batch_size  # gradients are averaged over the processes
    run.network.train()
    total = torch.zeros((), dtype=torch.float64, device=processes.device)
    for number, batch in enumerate(in_batches(images, passes, processes)):
        step, part = divmod(number, recipe.accumulate)
        if part == 0:
            run.scheduler.step_update(epoch * run.steps + step)
            run.optimizer.zero_grad()
        last = part == recipe.accumulate - 1
        with processes.gradients(parallel, averaged=last):
            loss = _mean_loss(run, parallel, batch, (run.seed, epoch, number))
            (loss * share).backward()
        if last:
            run.optimizer.step()
        total += loss.detach().double() * len(batch[1])
    return processes.sum(total.item()) / len(used)


def _mean_loss(run: _Run, parallel: nn.Module, batch: tuple[Tensor, Tensor], words: tuple[int, ...]) -> Tensor:
    processes, (images, labels) = run.processes, batch
    device = processes.device
    images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
    with seeded_libraries(*words):  # the same in all processes
        mixed, targets = run.mix(images, labels.to(device))
    precision = torch.autocast(device.type, dtype=torch.bfloat16, enabled=run.recipe.precision == "bfloat16")
    with precision, processes.batch_statistics(), seeded_network(device, *words, processes.index):
        scores = parallel(mixed)
    return run.loss(scores.float(), targets)


def _order(run: _Run, epoch: int) -> NDArray[np.int64]:
    """The sample at each place of an epoch: all shuffled, or a part of them, each `repeats` times in a row."""
    from timm.data.distributed_sampler import RepeatAugSampler

    sampler = RepeatAugSampler(run.train, num_replicas=1, rank=0, num_repeats=run.recipe.repeats, selected_round=0)
    sampler.set_epoch(int(np.random.SeedSequence([run.seed, epoch]).generate_state(1, np.uint64)[0] >> 1))
    return np.fromiter(sampler, np.int64)


@torch.inference_mode()
def _accuracy(run: _Run, images: EvaluationImages) -> float:
    """The share of images that the network, in eval mode, classifies as their label; processes share the batches."""
    run.network.eval()
    device = run.processes.device
    batches = np.array_split(np.arange(len(images)), -(-len(images) // _EVALUATION_BATCH))
    own = [rows.tolist() for rows in batches[run.processes.index :: run.processes.count]]
    hits = 0
    for inputs, labels in in_batches(images, own, run.processes):
        precision = torch.autocast(device.type, dtype=torch.bfloat16, enabled=run.recipe.precision == "bfloat16")
        with precision:
            predicted = run.network(inputs.to(device, memory_format=torch.channels_last)).argmax(1)
        hits += int((predicted.cpu() == labels).sum())
    return run.processes.sum(float(hits)) / len(images)
