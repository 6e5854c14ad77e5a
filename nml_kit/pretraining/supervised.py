"""Pre-training on noisy labels or captions: the request and its key; supervised training of images in memory."""

from contextlib import nullcontext
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nml_kit.backbones import (
    PRETRAINED_KIND,
    Backbone,
    ImageTower,
    build_clip,
    build_network,
    freeze,
    load_backbone,
)
from nml_kit.data import Task, noise_fingerprint
from nml_kit.errors import InvalidInputError
from nml_kit.noise import CaptionNoise, LabelNoise
from nml_kit.pretraining import contrastive, loop
from nml_kit.pretraining.distributed import Processes, launched_processes, one_thread
from nml_kit.pretraining.recipes import AnyRecipe, ContrastiveRecipe, Recipe, ShardRecipe, TimmRecipe, resolve_recipe
from nml_kit.pretraining.timm import TimmTraining, evaluation_transform
from nml_kit.store import Store

# Raised whenever the same request would give other weights, so that stored ones are not taken for new ones.
PRETRAIN_VERSION = 3
_EVALUATION_BATCH = 512


def pretrain(
    task: Task,
    noise: LabelNoise | CaptionNoise,
    *,
    recipe: str | AnyRecipe = "light",
    seed: int,
    store: Store | None = None,
    progress: bool = True,
) -> Backbone:
    """The backbone pre-trained on noisy labels or captions of the task's train split: from the store, or trained.

    Label noise: supervised pre-training by a `Recipe`, or by a `TimmRecipe` of images of any size that are read when
    their turn comes; `noise.clean` must equal the train labels (n,), in order. Caption noise: contrastive pre-training
    by a `ContrastiveRecipe`; `noise.clean` must equal the train captions (n,). The `card` holds objective, recipe,
    noise and, per epoch, the loss, the accuracy on the clean test split (contrastive: zero-shot) and what is memorised:
    the share of flipped labels that the network predicts, or of exchanged captions that are nearer to the image than
    its own one; all are fractions. Killed at any moment and called again, it goes on from the last whole epoch and
    gives the same weights, to the bit on a CPU, where networks of images in memory train on one thread. Processes that
    `torchrun` or `accelerate launch` started divide each batch of a supervised recipe, batch normalisation included,
    and give what one gives up to rounding; the device is a GPU if there is one. Contrastive pre-training runs in one
    process. Raises InvalidInputError if the noise record belongs to other labels or captions, the recipe to the other
    objective, UnknownNameError for an unknown recipe, ProcessFailedError for an error in another process. Source: the
    paper's section 2.

    >>> from nml_kit import Recipe, inject_label_noise, load_task
    >>> task = load_task("digits").limit(train_per_class=20, seed=0)
    >>> noise = inject_label_noise(task.select(split="train").labels, 0.1, num_classes=10, seed=0)
    >>> backbone = pretrain(task, noise, recipe=Recipe(epochs=1), seed=0, progress=False)
    >>> backbone.card["noise"]["requested_ratio"], len(backbone.card["history"])
    (0.1, 1)
    """
    recipe, processes = resolve_recipe(recipe, contrastive=isinstance(noise, CaptionNoise)), launched_processes()
    seed = loop.plain_seed(seed)
    start = partial(_TRAININGS[type(recipe)], task, noise, recipe, seed, processes)
    key_now, card = partial(_key, task, noise, recipe, seed), _card(task, noise, recipe, seed)
    title = f"pretrain γ={noise.requested_ratio:g} seed={seed}"
    # Networks in memory are small, and a study trains them side by side, one a thread: by hand the same bytes.
    with nullcontext() if isinstance(recipe, TimmRecipe) else one_thread():
        return loop.trained_backbone(key_now, start, card, title, processes, store, progress)


def is_pretrained(
    task: Task, noise: LabelNoise | CaptionNoise, *, recipe: str | AnyRecipe, seed: int, store: Store
) -> bool:
    """Whether `pretrain` would find its result in the store."""
    recipe = resolve_recipe(recipe, contrastive=isinstance(noise, CaptionNoise))
    return store.find(PRETRAINED_KIND, _key(task, noise, recipe, loop.plain_seed(seed))) is not None


def untrained(recipe: AnyRecipe | ShardRecipe, task: Task, *, seed: int) -> Backbone:
    """The network that pre-training by this recipe starts from, frozen: the baseline of what training adds."""
    if isinstance(recipe, ShardRecipe):
        clip = build_clip(recipe.architecture, seed=seed)
        return freeze(recipe.architecture, ImageTower(clip), contrastive.evaluation_transform(clip))
    of_library = recipe.architecture.partition(":")[0] in ("torchvision", "timm")
    name = f"{recipe.architecture}/random" if of_library else recipe.architecture
    if isinstance(recipe, TimmRecipe):
        return load_backbone(name, seed=seed, transform=evaluation_transform(recipe))
    return load_backbone(name, seed=seed, transform=loop.standardising_transform(task.select(split="train")))


def _key(task: Task, noise: LabelNoise | CaptionNoise, recipe: AnyRecipe, seed: int) -> dict[str, Any]:
    """Everything that determines the weights and the history."""
    train, test = _splits(task)
    of_captions = isinstance(noise, CaptionNoise)
    kind, clean = ("caption", train.captions.astype(object)) if of_captions else ("label", train.labels)
    if task.image_data is None or not np.array_equal(noise.clean, clean):
        came = "a text task" if task.image_data is None else f"a noise record of {len(noise.clean)} other {kind}s"
        raise InvalidInputError(
            f"Task {task.name!r}: expected images and a noise record made from its {len(train)} train {kind}s, but got "
            f"{came}; make it by inject_{kind}_noise(task.select(split='train').{kind}s, …)."
        )
    return {
        "arrow": "pretrain",
        "version": PRETRAIN_VERSION,
        "train": train.fingerprint,
        "test": test.fingerprint,
        "test_labels": test.labels,
        "classes": list(task.class_names) if of_captions else task.num_classes,
        "noise": noise_fingerprint(noise),
        "recipe": recipe.model_dump(),
        "seed": seed,
    }


@lru_cache(maxsize=4)
def _splits(task: Task) -> tuple[Task, Task]:
    """Kept for each task object, with their fingerprints: to read all files of a large one again takes long."""
    return task.select(split="train"), task.select(split="test")


def _card(task: Task, noise: LabelNoise | CaptionNoise, recipe: AnyRecipe, seed: int) -> dict[str, Any]:
    """What one needs to know about the network, its transform and history apart."""
    objective, kind = ("supervised", noise.kind) if isinstance(noise, LabelNoise) else ("contrastive", "exchange")
    record = {name: getattr(noise, name) for name in ("seed", "requested_ratio", "realised_ratio")}
    card = {"objective": objective, "task": task.name, "num_classes": task.num_classes, "recipe": recipe.model_dump()}
    if objective == "contrastive":
        card["templates"] = contrastive.caption_templates(_splits(task)[0])
    return card | {"seed": seed, "noise": {"fingerprint": noise_fingerprint(noise), "kind": kind, **record}}


class SupervisedTraining(loop.Training):
    """A network on images (N, H, W, 3) and labels (N,) in memory."""

    def __init__(self, task: Task, noise: LabelNoise, recipe: Recipe, seed: int, processes: Processes) -> None:
        self.recipe, self.seed, self.processes, self.epochs = recipe, seed, processes, recipe.epochs
        train, test = task.select(split="train"), task.select(split="test")
        self.transform = loop.standardising_transform(train)
        self.images, self.labels = torch.from_numpy(train.images), torch.from_numpy(noise.noisy)
        self.test = torch.from_numpy(test.images), torch.from_numpy(test.labels)
        flipped = torch.from_numpy(noise.mask)
        self.flipped = self.images[flipped], self.labels[flipped]
        network = build_network(recipe.architecture, num_classes=train.num_classes, seed=seed)
        self.use(network.to(processes.device).to(memory_format=torch.channels_last))

    def use(self, network: nn.Module) -> None:
        """Train this network, by Nesterov SGD that decays weight matrices only."""
        recipe, self.network = self.recipe, network
        groups = loop.decay_groups(network, recipe.weight_decay)
        rate, momentum = recipe.learning_rate, recipe.momentum
        self.optimizer = torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=True, fused=True)

    def train_epoch(self, parallel: nn.Module, epoch: int) -> dict[str, float]:
        """Train one epoch.

        Each process draws the same order and shifts and takes its share of every pass, so that the result does not
        depend on their number.
        """
        recipe, processes = self.recipe, self.processes
        generator = np.random.default_rng([self.seed, epoch])
        order = torch.from_numpy(generator.permutation(len(self.labels)))
        # The last batch may be small; one of a single sample is left out, batch normalisation cannot use it.
        batches = [rows for rows in order.split(recipe.batch_size) if len(rows) > 1]
        self.network.train()
        total = 0.0
        for step, rows in enumerate(batches):
            shifts = loop.draw_shifts(len(rows), recipe.max_shift, generator)
            loop.set_learning_rate(self.optimizer, epoch + step / len(batches), recipe)
            self.optimizer.zero_grad(set_to_none=False)
            passes = torch.arange(len(rows)).tensor_split(min(recipe.accumulate, len(rows) // 2))
            for places in passes:
                with processes.gradients(parallel, averaged=places is passes[-1]):
                    own = processes.share(places)
                    loss = self._loss_sum(parallel, rows[own], shifts[:, own]) / len(rows)
                    # Gradients are averaged over the processes, but the loss is their sum.
                    (loss * processes.count).backward()
                total += loss.item() * len(rows)
            self.optimizer.step()
        return {"loss": processes.sum(total) / sum(map(len, batches))}

    def measures(self) -> dict[str, float]:
        """Accuracy on the clean test split, and the share of flipped labels that the network predicts."""
        row = {"test_accuracy": self._accuracy(*self.test)}
        return row | {"memorised": self._accuracy(*self.flipped)} if len(self.flipped[0]) else row

    def _loss_sum(self, parallel: nn.Module, rows: Tensor, shifts: Tensor) -> Tensor:
        device = self.processes.device
        images = loop.shift_images(self.images[rows], shifts)
        with loop.autocast(device, self.recipe.precision), self.processes.batch_statistics():
            scores = parallel(self.transform(images.to(device)))
            return F.cross_entropy(scores, self.labels[rows].to(device), reduction="sum")

    def _accuracy(self, images: Tensor, labels: Tensor) -> float:
        processes = self.processes
        parts = list(zip(images.split(_EVALUATION_BATCH), labels.split(_EVALUATION_BATCH), strict=True))
        own = parts[processes.index :: processes.count]
        batches = ((self.transform(part.to(processes.device)), wanted) for part, wanted in own)
        return loop.accuracy(self.network, batches, len(labels), processes, "float32")


_TRAININGS = {Recipe: SupervisedTraining, TimmRecipe: TimmTraining, ContrastiveRecipe: contrastive.ContrastiveTraining}
