"""Contrastive pre-training on shards that are streamed, by a `ShardRecipe` and open_clip's own parts.

Tests run it on miniatures, on a CPU. At full size, and on GPUs, it was never run here.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nml_kit.backbones import (
    PRETRAINED_KIND,
    Backbone,
    ImageTransform,
    build_clip,
    freeze_image_tower,
    load_backbone,
    open_clip_library,
)
from nml_kit.errors import InvalidInputError
from nml_kit.pretraining.contrastive import LARGEST_LOGIT_SCALE, make_optimizer
from nml_kit.pretraining.distributed import Processes, launched_processes
from nml_kit.pretraining.large_recipes import ShardRecipe
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
from nml_kit.pretraining.streams import PairStreams, Shards, batches_of_streams, survey_shards
from nml_kit.store import Store

# Raised whenever the same request would give other weights, so that stored ones are not taken for new ones.
SHARDS_VERSION = 1


@dataclass
class _Run:
    """One pre-training in progress; `history` has one row per finished epoch."""

    recipe: ShardRecipe
    seed: int
    processes: Processes
    shards: Shards
    clip: Any
    optimizer: torch.optim.Optimizer
    adjust_rate: Any
    augment: Any
    history: History = field(default_factory=list)

    @property
    def steps(self) -> int:
        return sum(self.shards.counts) // self.recipe.batch_size


def pretrain_on_shards(
    pattern: str | Path,
    *,
    recipe: ShardRecipe,
    seed: int,
    noise: Mapping[str, Any] | None = None,
    store: Store | None = None,
    progress: bool = True,
) -> Backbone:
    """The backbone of a CLIP model trained on the WebDataset shards of a brace pattern: from the store, or trained.

    Noise is in the shards; `noise` is what the card shall say about it and counts for nothing. Found again by the bytes
    of the shards, in the pattern's order, never by their paths: all are read for that, once, and streamed in each
    epoch. The card's history has, per epoch, the mean loss (nats) and how many pairs were skipped, because their image
    does not decode. Killed at any moment and called again, it goes on from the last whole epoch and gives the same
    weights, to the bit on a CPU. Processes that `torchrun` or `accelerate launch` started share each batch, which is
    compared as a whole, and give what one gives up to rounding.
    Raises DataFileError for shards that are missing, cut short or without captions, InvalidInputError if there are
    fewer shards than streams, fewer pairs than one batch, or streams that the processes cannot share evenly.

    >>> pretrain_on_shards("none-{0..1}.tar", recipe=ShardRecipe(), seed=0)
    Traceback (most recent call last):
    nml_kit.errors.DataFileError: Expected 2 shards none-{0..1}.tar, but 2 are missing, as none-0.tar; restore them or \
change the pattern.
    """
    processes = launched_processes()
    shards = survey_shards(pattern, processes)
    _require_full_streams(shards, recipe, processes)

    def build(work: Path) -> dict[str, Any]:
        run, transform = _train(shards, recipe, seed, work, processes, progress)
        return {
            "objective": "contrastive", "task": Path(pattern).name, "pairs": sum(shards.counts),
            "recipe": recipe.model_dump(), "seed": seed, "noise": dict(noise or {}), "transform": asdict(transform),
            "history": run.history,
        }  # fmt: skip

    store = store or Store()
    entry = processes.get_or_build(store, PRETRAINED_KIND, _key(shards, recipe, seed), build)
    return load_backbone(f"nml:{entry.digest}", store=store)


def is_pretrained_on_shards(pattern: str | Path, *, recipe: ShardRecipe, seed: int, store: Store) -> bool:
    """Whether `pretrain_on_shards` would find its result in the store."""
    key = _key(survey_shards(pattern, launched_processes()), recipe, seed)
    return store.find(PRETRAINED_KIND, key) is not None


def untrained_on_shards(recipe: ShardRecipe, *, seed: int) -> Backbone:
    """The network that `pretrain_on_shards` starts from, frozen: the baseline of what training adds."""
    clip = build_clip(recipe.architecture, seed=seed)
    return freeze_image_tower(recipe.architecture, clip, _evaluation_transform(clip))


def _evaluation_transform(clip: Any) -> ImageTransform:
    """What images of downstream tasks go through: open_clip's for the model, resize the short side, crop the centre."""
    from open_clip.transform import PreprocessCfg

    settings = PreprocessCfg(**open_clip_library().get_model_preprocess_cfg(clip))
    size = settings.size if isinstance(settings.size, int) else max(settings.size)
    return ImageTransform(tuple(settings.mean), tuple(settings.std), resize=size, crop=size,
                          interpolation=settings.interpolation)  # fmt: skip


def _key(shards: Shards, recipe: ShardRecipe, seed: int) -> dict[str, Any]:
    return {"arrow": "pretrain", "objective": "contrastive", "version": SHARDS_VERSION, "shards": shards.digests,
            "recipe": recipe.model_dump(), "seed": seed}  # fmt: skip


def _require_full_streams(shards: Shards, recipe: ShardRecipe, processes: Processes) -> None:
    pairs, streams = sum(shards.counts), recipe.streams
    if len(shards.paths) < streams or pairs < recipe.batch_size or streams % processes.count:
        raise InvalidInputError(
            f"Expected a shard for each of {streams} streams, a batch of {recipe.batch_size} pairs, and streams that "
            f"{processes.count} processes share evenly, got {len(shards.paths)} shards of {pairs} pairs; set other "
            "streams or another batch_size."
        )


def _train(
    shards: Shards, recipe: ShardRecipe, seed: int, work: Path, processes: Processes, progress: bool
) -> tuple[_Run, ImageTransform]:
    """Train from the checkpoint in `work`, if there is one, and leave the weights in `work / "entry"`."""
    checkpoint = work / "checkpoint.safetensors"
    with processes.agreed():
        run = _start(shards, recipe, seed, processes)
        if checkpoint.exists():
            parts, run.history[:] = read_checkpoint(checkpoint)
            run.clip.load_state_dict(parts["network"])
            restore_optimizer(run.clip, run.optimizer, parts["optimizer"])
    with processes.lockstep():
        parallel = processes.data_parallel(run.clip)
    train_epochs(
        processes, run.history, recipe.epochs,
        lambda epoch: _train_epoch(run, parallel, epoch), lambda: _save(run, checkpoint),
        title=f"pretrain on shards seed={seed}", progress=progress,
    )  # fmt: skip
    if processes.leads:
        write_weights(work / "entry" / WEIGHTS, run.clip.state_dict())
    return run, _evaluation_transform(run.clip)


def _start(shards: Shards, recipe: ShardRecipe, seed: int, processes: Processes) -> _Run:
    clip = build_clip(recipe.architecture, seed=seed).to(processes.device).to(memory_format=torch.channels_last)
    library = open_clip_library()
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from open_clip_train.scheduler import cosine_lr

    optimizer = make_optimizer(clip, recipe)
    steps = recipe.epochs * (sum(shards.counts) // recipe.batch_size)
    rate = cosine_lr(optimizer, recipe.learning_rate, min(recipe.warmup_steps, steps // 2), steps)
    augment = image_transform_v2(PreprocessCfg(**library.get_model_preprocess_cfg(clip)), is_train=True)
    return _Run(recipe, seed, processes, shards, clip, optimizer, rate, augment)


def _save(run: _Run, checkpoint: Path) -> None:
    parts = {"network": run.clip.state_dict(), "optimizer": optimizer_state(run.clip, run.optimizer)}
    write_checkpoint(checkpoint, parts, run.history)


def _train_epoch(run: _Run, parallel: nn.Module, epoch: int) -> dict[str, float]:
    """Train one epoch, whose random choices depend on (seed, epoch) alone; its mean loss and what it had to skip."""
    recipe, processes = run.recipe, run.processes
    device = processes.device
    # Each process compares its pairs with those of all, with gradients to all: the mean is the loss of the whole batch.
    loss_of = open_clip_library().ClipLoss(local_loss=True, gather_with_grad=True, rank=processes.index,
                                           world_size=processes.count)  # fmt: skip
    own = np.array_split(np.arange(recipe.streams), processes.count)[processes.index].tolist()
    pairs = PairStreams(run.shards.paths, own, run.steps, recipe, (run.seed, epoch), run.augment,
                        run.clip.context_length)  # fmt: skip
    run.clip.train()
    total, skipped = torch.zeros((), dtype=torch.float64, device=device), 0
    for step, (images, tokens, bad) in enumerate(batches_of_streams(pairs, processes)):
        run.adjust_rate(epoch * run.steps + step)
        run.optimizer.zero_grad()
        with (
            torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.precision == "bfloat16"),
            processes.batch_statistics(),
        ):
            images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
            loss = loss_of(*parallel(images, tokens.to(device, non_blocking=True)))
        loss.backward()
        run.optimizer.step()
        with torch.no_grad():
            run.clip.logit_scale.clamp_(0, LARGEST_LOGIT_SCALE)
        total += loss.detach().double()
        skipped += bad
    return {"loss": processes.sum(total.item()) / processes.count / run.steps, "skipped": processes.sum(skipped)}
