"""Where features come from: the pre-training task and its noise, the backbone of a ratio and seed, the tasks."""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from nml_kit.backbones import Backbone, untrained_backbone
from nml_kit.data import RECORD, Task, datasets_dir, inject_caption_noise_into_shards, load_task
from nml_kit.errors import DataFileError, InvalidInputError, unknown_name
from nml_kit.noise import CaptionNoise, LabelNoise, inject_caption_noise, inject_label_noise, similarity_transition
from nml_kit.pretraining import (
    ContrastiveRecipe,
    Recipe,
    ShardRecipe,
    TimmRecipe,
    evaluation_transform,
    is_pretrained,
    is_pretrained_on_shards,
    pretrain,
    pretrain_on_shards,
    standardising_transform,
    untrained_on_shards,
)
from nml_kit.store import Store, fingerprint
from nml_kit.study.profile import Objective, Profile

RANDOM_BASELINE = float("nan")
AnyRecipe: TypeAlias = Recipe | TimmRecipe | ContrastiveRecipe | ShardRecipe


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
    names = dict.fromkeys((*profile.downstream.id, *profile.downstream.ood_tasks))
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
    """The backbone of one origin, pre-trained on `task`, or on the profile's shards, unless the store holds it.

    The randomly initialised baseline of an objective is its network at the start, with the transform of training.
    Raises UnknownNameError for an unknown objective, DataFileError for shards that are missing or damaged.
    """
    recipe = _recipe(profile, origin)
    if np.isnan(origin.ratio):
        return _untrained(recipe, task, origin.seed)
    if isinstance(recipe, ShardRecipe):
        return _pretrained_on_shards(profile, recipe, origin, store or Store(), progress)
    noise = _noise(profile, task, origin)
    return pretrain(task, noise, recipe=recipe, seed=origin.seed, store=store, progress=progress)


def is_origin_stored(profile: Profile, task: Task, origin: Origin, *, store: Store) -> bool:
    """Whether `pretrained_backbone` would train nothing."""
    recipe = _recipe(profile, origin)
    if np.isnan(origin.ratio):
        return True
    if isinstance(recipe, ShardRecipe):
        pattern = _noisy_shards(profile, origin, store)
        made = origin.ratio == 0 or (pattern.parent / RECORD).exists()
        return made and is_pretrained_on_shards(pattern, recipe=recipe, seed=origin.seed, store=store)
    return is_pretrained(task, _noise(profile, task, origin), recipe=recipe, seed=origin.seed, store=store)


def _pretrained_on_shards(
    profile: Profile, recipe: ShardRecipe, origin: Origin, store: Store, progress: bool
) -> Backbone:
    clean, pattern = _clean_shards(profile), _noisy_shards(profile, origin, store)
    if origin.ratio > 0:
        # Under a lock: of several processes the first writes the shards, the others wait and find them.
        inject_caption_noise_into_shards(clean, pattern.parent, origin.ratio, seed=origin.seed, progress=progress)
    noise = {"kind": "exchange", "requested_ratio": origin.ratio, "seed": origin.seed}
    return pretrain_on_shards(pattern, recipe=recipe, seed=origin.seed, noise=noise, store=store, progress=progress)


def _untrained(recipe: AnyRecipe, task: Task, seed: int) -> Backbone:
    if isinstance(recipe, ShardRecipe):
        return untrained_on_shards(recipe, seed=seed)
    if isinstance(recipe, TimmRecipe):
        transform = evaluation_transform(recipe)
    else:
        transform = standardising_transform(task.select(split="train"))
    return untrained_backbone(recipe.architecture, seed=seed, transform=transform)


def _clean_shards(profile: Profile) -> Path:
    """The profile's brace pattern, below the directory of data sets."""
    pattern = datasets_dir().absolute() / str(profile.pretraining.shards)
    if not pattern.parent.is_dir():
        raise DataFileError(
            f"Expected the shards of profile {profile.name!r} in {pattern.parent}, which is not there; say in "
            "NML_DATASETS where data sets are, or change `pretraining.shards` in a copy of the profile."
        )
    return pattern


def _noisy_shards(profile: Profile, origin: Origin, store: Store) -> Path:
    """The brace pattern of the shards of an origin: the clean ones, or noisy copies of them in the store's directory.

    They are kept for as long as the network shall be found again, which is by their bytes.
    """
    clean = _clean_shards(profile)
    if origin.ratio == 0:
        return clean
    which = fingerprint({"shards": str(clean), "ratio": origin.ratio, "seed": origin.seed})
    return store.root / "shards" / which[:16] / clean.name


def _recipe(profile: Profile, origin: Origin) -> AnyRecipe:
    if origin.objective not in get_args(Objective):
        raise unknown_name("objective", origin.objective, get_args(Objective))
    return profile.contrastive if origin.objective == "contrastive" else profile.recipe


def _noise(profile: Profile, task: Task, origin: Origin) -> LabelNoise | CaptionNoise:
    if origin.objective == "contrastive":
        return caption_noise(task, origin.ratio, origin.seed)
    return label_noise(profile, task, origin.ratio, origin.seed)
