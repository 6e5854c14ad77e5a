"""One epoch of supervised training: batches of uint8 images in memory, shifted, standardised and fitted."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nml_kit.backbones import ImageTransform
from nml_kit.pretraining.distributed import Processes
from nml_kit.pretraining.recipes import ContrastiveRecipe, Recipe

EVALUATION_BATCH = 512


@dataclass(frozen=True)
class PreparedImages:
    """Images (N, H, W, 3) uint8, their labels (N,) int64, and the transform into network input."""

    images: Tensor
    labels: Tensor
    transform: ImageTransform


def make_optimizer(network: nn.Module, learning_rate: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """Nesterov SGD that decays weight matrices only, not biases and normalisation gains."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    spared = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=True, fused=True)


def momentum_buffers(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's momentum by parameter name."""
    return {name: optimizer.state[p]["momentum_buffer"] for name, p in network.named_parameters()}


def restore_momentum(network: nn.Module, optimizer: torch.optim.Optimizer, buffers: dict[str, Tensor]) -> None:
    """Set the optimiser's momentum from `momentum_buffers`, in the memory layout of the parameters."""
    for name, parameter in network.named_parameters():
        buffer = torch.empty_like(parameter, requires_grad=False).copy_(buffers[name])
        optimizer.state[parameter] = {"momentum_buffer": buffer}


def train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: PreparedImages,
    recipe: Recipe,
    epoch: int,
    seed: int,
    processes: Processes,
) -> float:
    """Train one epoch, whose random choices depend on (seed, epoch) alone, and return the mean loss.

    Each process draws the same order and shifts and takes its share of every pass, so that the result does not depend
    on their number. `network` is the one of `Processes.data_parallel`.
    """
    generator = np.random.default_rng([seed, epoch])
    order = torch.from_numpy(generator.permutation(len(data.labels)))
    # The last batch may be small; one of a single sample is left out, batch normalisation cannot use it.
    batches = [rows for rows in order.split(recipe.batch_size) if len(rows) > 1]
    network.train()
    total = 0.0
    for step, rows in enumerate(batches):
        shifts = draw_shifts(len(rows), recipe.max_shift, generator)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(epoch + step / len(batches), recipe)
        optimizer.zero_grad(set_to_none=False)
        passes = torch.arange(len(rows)).tensor_split(min(recipe.accumulate, len(rows) // 2))
        for places in passes:
            with processes.gradients(network, averaged=places is passes[-1]):
                own = processes.share(places)
                images = shift_images(data.images[rows[own]], shifts[:, own])
                loss = _loss_sum(network, images, data, rows[own], recipe, processes) / len(rows)
                # Gradients are averaged over the processes, but the loss is their sum.
                (loss * processes.count).backward()
            total += loss.item() * len(rows)
        optimizer.step()
    return processes.sum(total) / sum(map(len, batches))


def _loss_sum(
    network: nn.Module, images: Tensor, data: PreparedImages, rows: Tensor, recipe: Recipe, processes: Processes
) -> Tensor:
    device = processes.device
    precision = torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.precision == "bfloat16")
    with precision, processes.batch_statistics():
        scores = network(data.transform(images.to(device)))
        return F.cross_entropy(scores, data.labels[rows].to(device), reduction="sum")


def learning_rate_at(epoch: float, recipe: Recipe | ContrastiveRecipe) -> float:
    """Linear warm-up from a tenth of the rate, then half a cosine to zero; `epoch` counts fractions of epochs."""
    warmup = min(recipe.warmup_epochs, recipe.epochs / 2)
    if epoch < warmup:
        return recipe.learning_rate * (0.1 + 0.9 * epoch / warmup)
    done = (epoch - warmup) / (recipe.epochs - warmup)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def draw_shifts(count: int, max_shift: int, generator: np.random.Generator) -> Tensor:
    """How far to move each image down and right, (2, count), in pixels up to `max_shift` each way."""
    if max_shift == 0:
        return torch.zeros((2, count), dtype=torch.int64)
    return torch.from_numpy(generator.integers(-max_shift, max_shift + 1, size=(2, count)))


def shift_images(images: Tensor, shifts: Tensor) -> Tensor:
    """Move the content of each image (B, H, W, 3) by the pixels of `draw_shifts`; edge pixels fill the gap.

    >>> shift_images(torch.arange(4).view(1, 2, 2, 1), torch.tensor([[0], [1]])).flatten().tolist()
    [1, 1, 3, 3]
    """
    if not shifts.any():
        return images
    count, height, width, _ = images.shape
    rows = (torch.arange(height) + shifts[0][:, None]).clamp_(0, height - 1)
    columns = (torch.arange(width) + shifts[1][:, None]).clamp_(0, width - 1)
    return images[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


@torch.inference_mode()
def accuracy(network: nn.Module, data: PreparedImages, processes: Processes) -> float:
    """Share of the images that the network, in eval mode, classifies as their label; processes share the batches."""
    network.eval()
    batches = list(zip(data.images.split(EVALUATION_BATCH), data.labels.split(EVALUATION_BATCH), strict=True))
    hits = 0.0
    for images, labels in batches[processes.index :: processes.count]:
        predicted = network(data.transform(images.to(processes.device))).argmax(1)
        hits += float((predicted.cpu() == labels).sum())
    return processes.sum(hits) / len(data.labels)
