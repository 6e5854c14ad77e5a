"""Supervised pre-training by a `TimmRecipe`, with timm's own augmentation, mixing, losses, optimisers and schedules.

Tests run it on miniatures, on a CPU. At full size, and on GPUs, it was never run here.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor, nn

from nml_kit.backbones import ImageTransform, seeded, timm_network
from nml_kit.data import Task
from nml_kit.errors import InvalidInputError
from nml_kit.noise import LabelNoise
from nml_kit.pretraining.distributed import Processes
from nml_kit.pretraining.loop import Training, accuracy, autocast, seeded_libraries
from nml_kit.pretraining.recipes import TimmRecipe
from nml_kit.pretraining.streams import TaskImages, augmented, loader, prepared

_EVALUATION_BATCH = 128
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, timm's default
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class TimmTraining(Training):
    """A timm network on images that are read when their turn comes.

    Raises InvalidInputError if there are fewer train images than one batch, or fewer pairs in a pass than processes.
    """

    def __init__(self, task: Task, noise: LabelNoise, recipe: TimmRecipe, seed: int, processes: Processes) -> None:
        self.recipe, self.seed, self.processes, self.labels = recipe, seed, processes, noise.noisy
        self.train, test = task.select(split="train"), task.select(split="test")
        _require_full_batches(len(self.train), recipe, processes)
        self.transform, self.epochs = evaluation_transform(recipe), recipe.epochs
        evaluated = partial(prepared, self.transform)
        self.test = TaskImages(test, test.labels, evaluated, np.arange(len(test)))
        self.flipped = TaskImages(self.train, noise.noisy, evaluated, np.flatnonzero(noise.mask))
        self.steps = len(self.train) // recipe.batch_size
        name, depth = recipe.architecture.removeprefix("timm:"), recipe.drop_path
        with seeded(seed):
            network = timm_network(name, pretrained=False, num_classes=task.num_classes, drop_path_rate=depth)
        self.network = network.to(processes.device).to(memory_format=torch.channels_last)
        self.optimizer, self.scheduler = _optimizer(self.network, recipe, self.steps)
        self.augment = _augmentation(recipe)
        self.mix, loss = _targets(recipe, task.num_classes)
        self.loss = loss.to(processes.device)

    def train_epoch(self, parallel: nn.Module, epoch: int) -> dict[str, float]:
        """Train one epoch; stochastic depth apart, its random choices do not depend on the number of processes."""
        recipe, processes = self.recipe, self.processes
        augment = partial(augmented, self.augment, (self.seed, epoch))
        images = TaskImages(self.train, self.labels, augment, epoch_order(len(self.train), recipe, self.seed, epoch))
        used = np.arange(self.steps * recipe.batch_size)
        passes = [shared_pairs(places, processes) for places in np.split(used, self.steps * recipe.accumulate)]
        share = len(passes[0]) * processes.count / recipe.batch_size  # gradients are averaged over the processes
        self.network.train()
        total = torch.zeros((), dtype=torch.float64, device=processes.device)
        for number, batch in enumerate(loader(images, processes, batch_sampler=passes)):
            step, part = divmod(number, recipe.accumulate)
            if part == 0:
                self.scheduler.step_update(epoch * self.steps + step)
                self.optimizer.zero_grad()
            last = part == recipe.accumulate - 1
            with processes.gradients(parallel, averaged=last):
                loss = self._mean_loss(parallel, batch, (self.seed, epoch, number))
                (loss * share).backward()
            if last:
                self.optimizer.step()
            total += loss.detach().double() * len(batch[1])
        return {"loss": processes.sum(total.item()) / len(used)}

    def measures(self) -> dict[str, float]:
        """As those of `SupervisedTraining`."""
        row = {"test_accuracy": self._accuracy(self.test)}
        return row | {"memorised": self._accuracy(self.flipped)} if len(self.flipped) else row

    def _mean_loss(self, parallel: nn.Module, batch: tuple[Tensor, Tensor], words: tuple[int, ...]) -> Tensor:
        processes, (images, labels) = self.processes, batch
        device = processes.device
        images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
        with seeded_libraries(*words):  # the same in all processes
            mixed, targets = self.mix(images, labels.to(device))
        depth = int(np.random.SeedSequence((*words, processes.index)).generate_state(1)[0])  # stochastic depth's own
        with autocast(device, self.recipe.precision), processes.batch_statistics(), seeded(depth, device):
            scores = parallel(mixed)
        return self.loss(scores.float(), targets)

    def _accuracy(self, images: TaskImages) -> float:
        batches = np.array_split(np.arange(len(images)), -(-len(images) // _EVALUATION_BATCH))
        own = [rows.tolist() for rows in batches[self.processes.index :: self.processes.count]]
        loaded = loader(images, self.processes, batch_sampler=own)
        return accuracy(self.network, loaded, len(images), self.processes, self.recipe.precision)


def evaluation_transform(recipe: TimmRecipe) -> ImageTransform:
    """What test images, and those of downstream tasks, go through: resize the short side, crop the centre."""
    resize = int(recipe.test_size / recipe.test_crop)
    return ImageTransform(_MEAN, _STD, resize, recipe.test_size, recipe.interpolation)


def epoch_order(count: int, recipe: TimmRecipe, seed: int, epoch: int) -> Int[np.ndarray, " n"]:
    """The sample at each place of an epoch: all shuffled, or a part of them, each `repeats` times in a row."""
    from timm.data.distributed_sampler import RepeatAugSampler

    samples = range(count)
    sampler = RepeatAugSampler(samples, num_replicas=1, rank=0, num_repeats=recipe.repeats, selected_round=0)
    sampler.set_epoch(int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1))
    return np.fromiter(sampler, np.int64)


def shared_pairs(places: NDArray[np.int64], processes: Processes) -> list[int]:
    """This process's part of a pass: whole pairs of the first and the last place, the second and the last but one, ….

    timm mixes a batch with itself in reverse order: so the same images are mixed, however many processes there are.

    >>> shared_pairs(np.arange(8), Processes(2, 1, torch.device("cpu")))
    [2, 3, 4, 5]
    """
    first = np.array_split(np.arange(len(places) // 2), processes.count)[processes.index]
    return places[np.concatenate([first, len(places) - 1 - first[::-1]])].tolist()


def _require_full_batches(count: int, recipe: TimmRecipe, processes: Processes) -> None:
    pairs = recipe.batch_size // recipe.accumulate // 2
    if count < recipe.batch_size or pairs < processes.count:
        raise InvalidInputError(
            f"Expected at least one batch of {recipe.batch_size} train images, and a pair of images for each process "
            f"in a pass, got {count} images and {pairs} pairs for {processes.count} processes; set another batch_size."
        )


def _optimizer(network: nn.Module, recipe: TimmRecipe, steps: int) -> tuple[torch.optim.Optimizer, Any]:
    """The optimiser and its schedule, which counts steps."""
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    rate, decay = recipe.learning_rate, recipe.weight_decay
    optimizer = create_optimizer_v2(network, recipe.optimizer, lr=rate, weight_decay=decay, momentum=0.9)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        "cosine",
        num_epochs=recipe.epochs,
        warmup_epochs=min(recipe.warmup_epochs, recipe.epochs // 2),
        warmup_lr=min(recipe.warmup_from, rate),
        min_lr=min(recipe.floor, rate),
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    return optimizer, scheduler


def _augmentation(recipe: TimmRecipe) -> Callable[[Any], Tensor]:
    from timm.data import create_transform

    return create_transform(
        recipe.train_size,
        is_training=True,
        auto_augment=recipe.randaugment,
        color_jitter=0.0,
        interpolation=recipe.interpolation,
        mean=_MEAN,
        std=_STD,
        re_prob=recipe.erasing,
        re_mode="pixel",
    )


def _targets(recipe: TimmRecipe, num_classes: int) -> tuple[Mix, nn.Module]:
    """How images and labels of a pass become input and targets, and the mean loss of these."""
    from timm.data import Mixup
    from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy

    mixes = recipe.mixup > 0 or recipe.cutmix > 0
    mix: Mix = lambda images, labels: (images, labels)  # noqa: E731
    if mixes:
        mix = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.smoothing, num_classes=num_classes)
    if recipe.loss == "bce":
        return mix, BinaryCrossEntropy(recipe.smoothing, target_threshold=recipe.bce_threshold)
    return mix, SoftTargetCrossEntropy() if mixes else nn.CrossEntropyLoss(label_smoothing=recipe.smoothing)
