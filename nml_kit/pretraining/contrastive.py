"""Contrastive pre-training on images and captions, some of them exchanged: in memory, or streamed from shards.

N pairs, M pairs of a batch, K classes, E dimensions of the space that images and texts share.
On shards it is open_clip's own parts that train. Tests run them on miniatures; at full size it was never run here.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nml_kit.backbones import (
    PRETRAINED_KIND,
    Backbone,
    ImageTransform,
    build_clip,
    class_embeddings,
    clip_loss,
    open_clip_library,
    text_embeddings,
    tokenize,
)
from nml_kit.data import Task
from nml_kit.errors import InvalidInputError
from nml_kit.noise import CaptionNoise
from nml_kit.pretraining import loop
from nml_kit.pretraining.distributed import Processes, launched_processes
from nml_kit.pretraining.recipes import ContrastiveRecipe, ShardRecipe
from nml_kit.pretraining.streams import PairStreams, Shard, batches_of_streams, survey_shards
from nml_kit.store import Store

# Raised whenever the same request would give other weights, so that stored ones are not taken for new ones.
SHARDS_VERSION = 1
# What `caption_templates` gives for the shipped icons, whose networks in data/reference do not say.
CAPTION_TEMPLATES = ("{}", "{}, outline icon", "{}, filled icon", "{}, duotone icon", "{}, colour icon")
_EVALUATION_BATCH = 512
_COMMON = 0.02  # the least share of captions of a form that class texts are made in


def caption_templates(task: Task) -> list[str]:
    """The forms in which captions name their class, with "{}" for its name: alone, then the most common ones.

    >>> from nml_kit import load_task
    >>> caption_templates(load_task("icons-pretrain").select(split="train"))
    ['{}', '{}, outline icon', '{}, filled icon', '{}, duotone icon', '{}, colour icon']
    """
    names = [name.replace("_", " ") for name in task.class_names]
    forms = Counter(
        text.replace(names[label], "{}") for text, label in zip(task.captions.tolist(), task.labels, strict=True)
    )
    least = _COMMON * len(task)
    common = [form for form, count in forms.most_common() if count >= least and re.fullmatch(r"[^{}]*{}[^{}]*", form)]
    return list(dict.fromkeys(["{}", *common]))


class _ClipTraining(loop.Training):
    """A CLIP model, AdamW for it, and its step."""

    def __init__(self, recipe: ContrastiveRecipe | ShardRecipe, seed: int, processes: Processes) -> None:
        self.seed, self.processes, self.epochs = seed, processes, recipe.epochs
        network = build_clip(recipe.architecture, seed=seed)
        self.network = network.to(processes.device).to(memory_format=torch.channels_last)
        groups = loop.decay_groups(network, recipe.weight_decay)
        self.optimizer = torch.optim.AdamW(
            groups, lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.eps, fused=True
        )

    def _step(self, loss: Tensor) -> None:
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.network.logit_scale.clamp_(0, math.log(100))


class ContrastiveTraining(_ClipTraining):
    """A CLIP model on pairs in memory, in one process."""

    def __init__(
        self, task: Task, noise: CaptionNoise, recipe: ContrastiveRecipe, seed: int, processes: Processes
    ) -> None:
        if processes.count > 1:
            raise InvalidInputError(
                f"Expected one process, got {processes.count}: contrastive pre-training runs in one process; start "
                "this script without a launcher, then features can be extracted in several."
            )
        super().__init__(recipe, seed, processes)
        train = task.select(split="train")
        self.recipe, self.test = recipe, task.select(split="test")
        self.transform = loop.standardising_transform(train)
        self.images, self.tokens = torch.from_numpy(train.images), tokenize(noise.noisy.tolist())
        self.exchanged = torch.from_numpy(np.flatnonzero(noise.mask))
        self.own_tokens = tokenize(noise.clean[noise.mask].tolist())
        self.templates = caption_templates(train)

    def train_epoch(self, parallel: nn.Module, epoch: int) -> dict[str, float]:
        """Train one epoch on all batches that are full."""
        recipe, device = self.recipe, self.processes.device
        generator = np.random.default_rng([self.seed, epoch])
        order = torch.from_numpy(generator.permutation(len(self.images)))
        batches = [rows for rows in order.split(recipe.batch_size) if len(rows) == recipe.batch_size] or [order]
        self.network.train()
        total = 0.0
        for step, rows in enumerate(batches):
            images = loop.shift_images(self.images[rows], loop.draw_shifts(len(rows), recipe.max_shift, generator))
            loop.set_learning_rate(self.optimizer, epoch + step / len(batches), recipe)
            self.optimizer.zero_grad(set_to_none=False)
            with loop.autocast(device, recipe.precision):
                loss = clip_loss(self.network, self.transform(images.to(device)), self.tokens[rows].to(device))
            self._step(loss)
            total += loss.item()
        return {"loss": total / len(batches)}

    @torch.inference_mode()
    def measures(self) -> dict[str, float]:
        """Zero-shot accuracy on the clean test split, and the share of the exchanged pairs that are memorised.

        A pair is memorised if the image is nearer (cosine) to the wrong caption that it has than to its own.
        """
        self.network.eval()
        classes = class_embeddings(self.network, self.test.class_names, self.templates)
        predicted = (self._embedded(torch.from_numpy(self.test.images)) @ classes.T).argmax(1).cpu().numpy()
        row = {"test_accuracy": float((predicted == self.test.labels).mean())}
        if len(self.exchanged):
            images = self._embedded(self.images[self.exchanged])
            wrong = text_embeddings(self.network, self.tokens[self.exchanged])
            own = text_embeddings(self.network, self.own_tokens)
            row["memorised"] = ((images * wrong).sum(1) > (images * own).sum(1)).double().mean().item()
        return row

    def _embedded(self, images: Tensor) -> Tensor:
        batches = [self.transform(part.to(self.processes.device)) for part in images.split(_EVALUATION_BATCH)]
        return torch.cat([F.normalize(self.network.encode_image(batch), dim=-1) for batch in batches])


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

    Noise is in the shards; `noise` is what the card shall say about it. Stored by the bytes of the shards, in the
    pattern's order, never by their paths. The card's history has, per epoch, the mean loss (nats) and how many pairs
    were skipped, because their image does not decode. It resumes as `pretrain` does. Processes that `torchrun` or
    `accelerate launch` started share each batch, and give what one gives up to rounding. Raises DataFileError for
    shards that are missing, cut short or without captions, InvalidInputError if there are fewer shards than streams,
    fewer pairs than one batch, or streams that the processes cannot share evenly.

    >>> pretrain_on_shards("none-{0..1}.tar", recipe=ShardRecipe(), seed=0)
    Traceback (most recent call last):
    nml_kit.errors.DataFileError: Expected 2 shards none-{0..1}.tar, but 2 are missing, as none-0.tar; restore them or \
change the pattern.
    """
    processes, seed = launched_processes(), loop.plain_seed(seed)
    shards = survey_shards(pattern, processes)
    _require_full_streams(shards, recipe, processes)
    card = {"objective": "contrastive", "task": Path(pattern).name, "pairs": _count(shards)}
    card |= {"recipe": recipe.model_dump(), "seed": seed, "noise": dict(noise or {})}
    start = partial(ShardTraining, shards, recipe, seed, processes)
    title = f"pretrain on shards seed={seed}"
    key_now = partial(_shards_key, shards, recipe, seed)
    return loop.trained_backbone(key_now, start, card, title, processes, store, progress)


def is_pretrained_on_shards(pattern: str | Path, *, recipe: ShardRecipe, seed: int, store: Store) -> bool:
    """Whether `pretrain_on_shards` would find its result in the store."""
    key = _shards_key(survey_shards(pattern, launched_processes()), recipe, loop.plain_seed(seed))
    return store.find(PRETRAINED_KIND, key) is not None


def _shards_key(shards: list[Shard], recipe: ShardRecipe, seed: int) -> dict[str, Any]:
    request = {"shards": tuple(shard.digest for shard in shards), "recipe": recipe.model_dump(), "seed": seed}
    return {"arrow": "pretrain", "objective": "contrastive", "version": SHARDS_VERSION} | request


def _preprocessing(clip: Any) -> Any:
    """open_clip's settings for the images of a model."""
    from open_clip.transform import PreprocessCfg

    return PreprocessCfg(**open_clip_library().get_model_preprocess_cfg(clip))


def evaluation_transform(clip: Any) -> ImageTransform:
    """What images of downstream tasks go through: open_clip's for the model, resize the short side, crop the centre."""
    settings = _preprocessing(clip)
    size = settings.size if isinstance(settings.size, int) else max(settings.size)
    return ImageTransform(tuple(settings.mean), tuple(settings.std), size, size, settings.interpolation)


def _count(shards: list[Shard]) -> int:
    return sum(shard.pairs for shard in shards)


def _require_full_streams(shards: list[Shard], recipe: ShardRecipe, processes: Processes) -> None:
    pairs, streams = _count(shards), recipe.streams
    if len(shards) < streams or pairs < recipe.batch_size or streams % processes.count:
        raise InvalidInputError(
            f"Expected a shard for each of {streams} streams, a batch of {recipe.batch_size} pairs, and streams that "
            f"{processes.count} processes share evenly, got {len(shards)} shards of {pairs} pairs; set other "
            "streams or another batch_size."
        )


class ShardTraining(_ClipTraining):
    """A CLIP model on streams of shards, with open_clip's augmentation, schedule and loss."""

    def __init__(self, shards: list[Shard], recipe: ShardRecipe, seed: int, processes: Processes) -> None:
        super().__init__(recipe, seed, processes)
        from open_clip.transform import image_transform_v2
        from open_clip_train.scheduler import cosine_lr

        self.recipe, self.paths = recipe, [shard.path for shard in shards]
        self.transform = evaluation_transform(self.network)
        self.steps = _count(shards) // recipe.batch_size
        steps = recipe.epochs * self.steps
        self.set_rate = cosine_lr(self.optimizer, recipe.learning_rate, min(recipe.warmup_steps, steps // 2), steps)
        self.augment = image_transform_v2(_preprocessing(self.network), is_train=True)

    def train_epoch(self, parallel: nn.Module, epoch: int) -> dict[str, float]:
        """Train one epoch; its mean loss and how many pairs it had to skip."""
        processes, device = self.processes, self.processes.device
        # Each process compares its pairs with those of all, with gradients to all: the mean is that of the whole batch.
        loss_of = open_clip_library().ClipLoss(
            local_loss=True, gather_with_grad=True, rank=processes.index, world_size=processes.count
        )
        self.network.train()
        total, skipped = torch.zeros((), dtype=torch.float64, device=device), 0
        for step, (images, tokens, bad) in enumerate(batches_of_streams(self._pairs(epoch), processes)):
            self.set_rate(epoch * self.steps + step)
            self.optimizer.zero_grad()
            with loop.autocast(device, self.recipe.precision), processes.batch_statistics():
                images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
                loss = loss_of(*parallel(images, tokens.to(device, non_blocking=True)))
            self._step(loss)
            total += loss.detach().double()
            skipped += bad
        loss = processes.sum(total.item()) / processes.count / self.steps
        return {"loss": loss, "skipped": processes.sum(skipped)}

    def _pairs(self, epoch: int) -> PairStreams:
        streams = np.array_split(np.arange(self.recipe.streams), self.processes.count)[self.processes.index].tolist()
        words, length = (self.seed, epoch), self.network.context_length
        return PairStreams(self.paths, streams, self.steps, self.recipe, words, self.augment, length)
