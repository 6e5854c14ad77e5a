"""Contrastive pre-training on images and captions, some of them exchanged: seeded, checkpointed, resumable.

N pairs, M pairs of a batch, K classes, E dimensions of the space that images and texts share.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from nml_kit.backbones import ImageTransform, build_clip, class_embeddings, clip_loss, text_embeddings, tokenize
from nml_kit.data import Task, noise_fingerprint
from nml_kit.errors import InvalidInputError
from nml_kit.noise import CaptionNoise
from nml_kit.pretraining.distributed import Processes
from nml_kit.pretraining.large_recipes import ShardRecipe
from nml_kit.pretraining.loop import (
    WEIGHTS,
    History,
    optimizer_state,
    read_checkpoint,
    restore_optimizer,
    standardising_transform,
    write_checkpoint,
    write_weights,
)
from nml_kit.pretraining.recipes import ContrastiveRecipe
from nml_kit.pretraining.sgd import EVALUATION_BATCH, draw_shifts, learning_rate_at, shift_images

# Raised whenever the same request would give other weights, so that stored ones are not taken for new ones.
CONTRASTIVE_VERSION = 1
# How captions of the pre-training task name a class: alone, and in each style; chosen from train captions.
CAPTION_TEMPLATES = ("{}", "{}, outline icon", "{}, filled icon", "{}, duotone icon", "{}, colour icon")
LARGEST_LOGIT_SCALE = math.log(100)


@dataclass
class _Run:
    """One pre-training in progress; `history` has one row per finished epoch."""

    device: torch.device
    clip: Any
    optimizer: torch.optim.AdamW
    transform: ImageTransform
    images: Tensor
    tokens: Tensor
    test: Task
    exchanged: Tensor
    own_tokens: Tensor
    history: History = field(default_factory=list)


def contrastive_key(task: Task, noise: CaptionNoise, recipe: ContrastiveRecipe, seed: int) -> dict[str, Any]:
    """Everything that determines the weights and the history.

    Raises InvalidInputError if the noise record is not that of the captions of the task's train split.
    """
    train, test = task.select(split="train"), task.select(split="test")
    if task.image_data is None or not np.array_equal(noise.clean, train.captions.astype(object)):
        came = "a text task" if task.image_data is None else f"a noise record of {len(noise.clean)} other captions"
        raise InvalidInputError(
            f"Task {task.name!r}: expected images and a noise record made from its {len(train)} train captions, but "
            f"got {came}; make it by inject_caption_noise(task.select(split='train').captions, …)."
        )
    return {"arrow": "pretrain", "objective": "contrastive", "version": CONTRASTIVE_VERSION,
            "train": train.fingerprint, "test": test.fingerprint, "test_labels": test.labels,
            "class_names": list(task.class_names), "noise": noise_fingerprint(noise),
            "recipe": recipe.model_dump(), "seed": seed}  # fmt: skip


def train_contrastive(
    task: Task,
    noise: CaptionNoise,
    recipe: ContrastiveRecipe,
    seed: int,
    work: Path,
    processes: Processes,
    progress: bool,
) -> tuple[ImageTransform, History]:
    """Train from the checkpoint in `work`, if there is one, and leave the weights in `work / "entry"`."""
    if processes.count > 1:
        raise InvalidInputError(
            f"Expected one process, got {processes.count}: contrastive pre-training runs in one process; start this "
            "script without a launcher, then features can be extracted in several."
        )
    checkpoint = work / "checkpoint.safetensors"
    run = _start(task, noise, recipe, seed, processes.device)
    if checkpoint.exists():
        _restore(run, checkpoint)
    done = len(run.history)
    title = f"pretrain γ={noise.requested_ratio:g} seed={seed}"
    for epoch in tqdm(range(done, recipe.epochs), title, recipe.epochs, initial=done, unit="epoch",
                      disable=not progress, leave=False):  # fmt: skip
        loss = _train_epoch(run, recipe, epoch, seed)
        run.history.append({"epoch": epoch + 1, "loss": loss, **_measures(run)})
        parts = {"network": run.clip.state_dict(), "optimizer": optimizer_state(run.clip, run.optimizer)}
        write_checkpoint(checkpoint, parts, run.history)
    write_weights(work / "entry" / WEIGHTS, run.clip.state_dict())
    return run.transform, run.history


def _start(task: Task, noise: CaptionNoise, recipe: ContrastiveRecipe, seed: int, device: torch.device) -> _Run:
    train = task.select(split="train")
    clip = build_clip(recipe.architecture, seed=seed).to(device).to(memory_format=torch.channels_last)
    return _Run(
        device,
        clip,
        make_optimizer(clip, recipe),
        standardising_transform(train),
        images=torch.from_numpy(train.images),
        tokens=tokenize(noise.noisy.tolist()),
        test=task.select(split="test"),
        exchanged=torch.from_numpy(np.flatnonzero(noise.mask)),
        own_tokens=tokenize(noise.clean[noise.mask].tolist()),
    )


def make_optimizer(clip: nn.Module, recipe: ContrastiveRecipe | ShardRecipe) -> torch.optim.AdamW:
    """AdamW that decays matrices only, neither gains and biases nor the logit scale."""
    decayed = [p for p in clip.parameters() if p.ndim > 1]
    spared = [p for p in clip.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.eps, fused=True)


def _train_epoch(run: _Run, recipe: ContrastiveRecipe, epoch: int, seed: int) -> float:
    """Train one epoch, whose random choices depend on (seed, epoch) alone, and return the mean loss."""
    generator = np.random.default_rng([seed, epoch])
    order = torch.from_numpy(generator.permutation(len(run.images)))
    batches = [rows for rows in order.split(recipe.batch_size) if len(rows) == recipe.batch_size] or [order]
    run.clip.train()
    total = 0.0
    for step, rows in enumerate(batches):
        images = shift_images(run.images[rows], draw_shifts(len(rows), recipe.max_shift, generator))
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate_at(epoch + step / len(batches), recipe)
        run.optimizer.zero_grad(set_to_none=False)
        with torch.autocast(run.device.type, dtype=torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            loss = clip_loss(run.clip, run.transform(images.to(run.device)), run.tokens[rows].to(run.device))
        loss.backward()
        run.optimizer.step()
        with torch.no_grad():
            run.clip.logit_scale.clamp_(0, LARGEST_LOGIT_SCALE)
        total += loss.item()
    return total / len(batches)


@torch.inference_mode()
def _measures(run: _Run) -> dict[str, float]:
    """Zero-shot accuracy on the clean test split, and the share of the exchanged pairs that are memorised.

    A pair is memorised if the image is nearer (cosine) to the wrong caption that it was given than to its own: half
    of them for a network that knows nothing, none for one that learned what captions mean.
    """
    run.clip.eval()
    classes = class_embeddings(run.clip, run.test.class_names, CAPTION_TEMPLATES)
    predicted = (_image_embeddings(run, torch.from_numpy(run.test.images)) @ classes.T).argmax(1).cpu().numpy()
    row = {"test_accuracy": float((predicted == run.test.labels).mean())}
    if len(run.exchanged):
        images = _image_embeddings(run, run.images[run.exchanged])
        given = text_embeddings(run.clip, run.tokens[run.exchanged])
        own = text_embeddings(run.clip, run.own_tokens)
        row["memorised"] = ((images * given).sum(1) > (images * own).sum(1)).double().mean().item()
    return row


def _image_embeddings(run: _Run, images: Tensor) -> Tensor:
    batches = [run.transform(part.to(run.device)) for part in images.split(EVALUATION_BATCH)]
    return torch.cat([F.normalize(run.clip.encode_image(batch), dim=-1) for batch in batches])


def _restore(run: _Run, checkpoint: Path) -> None:
    """Continue after the last whole epoch."""
    parts, run.history[:] = read_checkpoint(checkpoint)
    run.clip.load_state_dict(parts["network"])
    restore_optimizer(run.clip, run.optimizer, parts["optimizer"])
