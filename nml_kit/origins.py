"""Where features come from: the pre-training task and its noise, the backbone of a ratio and seed, the tasks."""

from functools import lru_cache
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from nml_kit._pretraining import standardising_transform
from nml_kit.backbones import Backbone, untrained_backbone
from nml_kit.class_similarity import similarity_transition
from nml_kit.datasets import Task, load_task
from nml_kit.errors import InvalidInputError, unknown_name
from nml_kit.noise import CaptionNoise, LabelNoise, inject_caption_noise, inject_label_noise
from nml_kit.pretrain import is_pretrained, pretrain
from nml_kit.profiles import Objective, Profile
from nml_kit.recipes import ContrastiveRecipe, Recipe
from nml_kit.store import Store

RANDOM_BASELINE = float("nan")


class Origin(NamedTuple):
    """Which pre-training features come from; ratio NaN is the randomly initialised baseline."""

    ratio: float
    seed: int
    objective: Objective = "supervised"


def study_origins(profile: Profile, objective: Objective) -> list[Origin]:
    """The random baseline, once (enough to tell what pre-training adds), then every ratio and seed of the profile."""
    trained = [Origin(ratio, seed, objective) for ratio in profile.ratios for seed in profile.seeds]
    return [Origin(RANDOM_BASELINE, profile.seeds[0], objective), *trained]


def pretraining_task(profile: Profile) -> Task:
    """The profile's pre-training task, cut to its size; the same samples for every ratio and seed."""
    data = profile.pretraining
    return load_task(data.task).limit(classes=data.classes, train_per_class=data.train_per_class, seed=0)


def downstream_tasks(profile: Profile) -> dict[str, Task]:
    """The profile's downstream tasks by name, cut to its size."""
    names = dict.fromkeys((*profile.downstream.id, *profile.downstream.ood))
    return {name: load_task(name).limit(train_per_class=profile.downstream.train_per_class, seed=0) for name in names}


def label_noise(profile: Profile, task: Task, ratio: float, seed: int) -> LabelNoise:
    """The profile's noise on the task's train labels; nested over ratios for one seed.

    "uniform" and "asymmetric" are kinds of `inject_label_noise`; "confusion" flips a label in proportion to how much
    the other class looks like its own (`similarity_transition` of the train images).
    """
    train, transition = task.select(split="train"), None
    kind: str = profile.noise
    if kind == "confusion":
        # At ratio 0 nothing is confused: the record is the uniform one, and so is the network.
        kind, transition = ("transition", _confusions(task)) if ratio > 0 else ("uniform", None)
    return inject_label_noise(
        train.labels, ratio, num_classes=task.num_classes, kind=kind, seed=seed, ids=train.ids, transition=transition
    )


@lru_cache(maxsize=4)
def _confusions(task: Task) -> NDArray[np.float64]:
    """Kept for each task object, since decoding its images again for each network would take longer than all else."""
    train = task.select(split="train")
    if train.images is None:
        raise InvalidInputError(f"Task {task.name!r}: expected images for noise 'confusion', got texts.")
    return similarity_transition(train.images, train.labels, task.num_classes)


def caption_noise(task: Task, ratio: float, seed: int) -> CaptionNoise:
    """Exchange among the task's train captions; who takes part is nested over ratios for one seed."""
    train = task.select(split="train")
    return inject_caption_noise(train.captions.tolist(), ratio, seed=seed, ids=train.ids)


def pretrained_backbone(
    profile: Profile, task: Task, origin: Origin, *, store: Store | None = None, progress: bool = True
) -> Backbone:
    """The backbone of one origin, pre-trained on `task` unless the store holds it.

    The randomly initialised baseline of an objective is its network at the start, with the transform of training.
    Raises UnknownNameError for an unknown objective.
    """
    recipe = _recipe(profile, origin)
    if np.isnan(origin.ratio):
        transform = standardising_transform(task.select(split="train"))
        return untrained_backbone(recipe.architecture, seed=origin.seed, transform=transform)
    noise = _noise(profile, task, origin)
    return pretrain(task, noise, recipe=recipe, seed=origin.seed, store=store, progress=progress)


def is_origin_stored(profile: Profile, task: Task, origin: Origin, *, store: Store) -> bool:
    """Whether `pretrained_backbone` would train nothing."""
    recipe = _recipe(profile, origin)
    if np.isnan(origin.ratio):
        return True
    return is_pretrained(task, _noise(profile, task, origin), recipe=recipe, seed=origin.seed, store=store)


def _recipe(profile: Profile, origin: Origin) -> Recipe | ContrastiveRecipe:
    if origin.objective not in get_args(Objective):
        raise unknown_name("objective", origin.objective, get_args(Objective))
    return profile.contrastive if origin.objective == "contrastive" else profile.recipe


def _noise(profile: Profile, task: Task, origin: Origin) -> LabelNoise | CaptionNoise:
    if origin.objective == "contrastive":
        return caption_noise(task, origin.ratio, origin.seed)
    return label_noise(profile, task, origin.ratio, origin.seed)
