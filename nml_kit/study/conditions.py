"""Where features come from: the pre-training task and its noise, the network of a ratio and seed, downstream tasks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypedDict, get_args

import numpy as np
from jaxtyping import Float

from nml_kit.backbones import Backbone
from nml_kit.data import RECORD, Task, datasets_dir, inject_caption_noise_into_shards, load_task, select_rows
from nml_kit.errors import DataFileError, InvalidInputError, unknown_name
from nml_kit.features import (
    Features,
    Fold,
    extract_features,
    in_domain_fold,
    is_extracted,
    leave_one_domain_out,
    train_on_one_domain,
)
from nml_kit.noise import CaptionNoise, LabelNoise, inject_caption_noise, inject_label_noise, similarity_transition
from nml_kit.pretraining import (
    ContrastiveRecipe,
    Recipe,
    ShardRecipe,
    TimmRecipe,
    in_parallel,
    is_pretrained,
    is_pretrained_on_shards,
    pretrain,
    pretrain_on_shards,
    untrained,
)
from nml_kit.store import Store, fingerprint
from nml_kit.study.profile import Objective, Profile

RANDOM_BASELINE = float("nan")
AnyRecipe: TypeAlias = Recipe | TimmRecipe | ContrastiveRecipe | ShardRecipe
NoiseMaker: TypeAlias = Callable[[Task, float, int], LabelNoise]


class RunOptions(TypedDict, total=False):
    """Where results are kept, in how many processes they are made (None: one per core), and whether a bar is shown."""

    store: Store | None
    jobs: int | None
    progress: bool


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


def downstream_task(profile: Profile, name: str) -> Task:
    """A downstream task by name, cut to the profile's size."""
    return load_task(name).limit(train_per_class=profile.downstream.train_per_class, seed=0)


def downstream_tasks(profile: Profile) -> dict[str, Task]:
    """The profile's downstream tasks by name, cut to its size."""
    names = dict.fromkeys((*profile.downstream.id, *profile.downstream.ood_tasks))
    return {name: downstream_task(profile, name) for name in names}


def label_noise(profile: Profile, task: Task, ratio: float, seed: int) -> LabelNoise:
    """The profile's noise on the task's train labels; nested over ratios for one seed.

    "uniform" and "asymmetric" are kinds of `inject_label_noise`; "confusion" flips a label in proportion to how much
    the other class looks like its own (`similarity_transition` of the train images).
    """
    train = task.select(split="train")
    # Clean labels have no kind: all kinds share the network that is trained on them.
    kind: dict[str, Any] = {"kind": profile.noise if ratio > 0 else "uniform"}
    if kind["kind"] == "confusion":
        kind = {"kind": "transition", "transition": _confusions(task)}
    return inject_label_noise(train.labels, ratio, num_classes=task.num_classes, seed=seed, ids=train.ids, **kind)


@lru_cache(maxsize=4)
def _confusions(task: Task) -> Float[np.ndarray, "k k"]:
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
    profile: Profile,
    task: Task,
    origin: Origin,
    *,
    noise: NoiseMaker | None = None,
    store: Store | None = None,
    progress: bool = True,
) -> Backbone:
    """The backbone of one origin, pre-trained on `task`, or on the profile's shards, unless the store holds it.

    `noise` makes the noisy labels of a ratio and seed; None is `label_noise`, of the profile's kind. The randomly
    initialised baseline of an objective is its network at the start, with the transform of training. Raises
    UnknownNameError for an unknown objective, DataFileError for shards that are missing or damaged.
    """
    recipe, ratio, seed = pretraining_recipe(profile, origin.objective), origin.ratio, origin.seed
    if np.isnan(ratio):
        return untrained(recipe, task, seed=seed)
    if not isinstance(recipe, ShardRecipe):
        record = _noise(profile, task, origin, noise)
        return pretrain(task, record, recipe=recipe, seed=seed, store=store, progress=progress)
    store = store or Store()
    clean, noisy = _shards(profile, origin, store)
    if ratio > 0:
        # Under a lock: of several processes the first writes the shards, the others wait and find them.
        inject_caption_noise_into_shards(clean, noisy.parent, ratio, seed=seed, progress=progress)
    known = {"kind": "exchange", "requested_ratio": ratio, "seed": seed}
    return pretrain_on_shards(noisy, recipe=recipe, seed=seed, noise=known, store=store, progress=progress)


def is_origin_stored(
    profile: Profile, task: Task, origin: Origin, *, noise: NoiseMaker | None = None, store: Store
) -> bool:
    """Whether `pretrained_backbone` would train nothing."""
    recipe, seed = pretraining_recipe(profile, origin.objective), origin.seed
    if np.isnan(origin.ratio):
        return True
    if isinstance(recipe, ShardRecipe):
        _, noisy = _shards(profile, origin, store)
        is_made = origin.ratio == 0 or (noisy.parent / RECORD).exists()
        return is_made and is_pretrained_on_shards(noisy, recipe=recipe, seed=seed, store=store)
    return is_pretrained(task, _noise(profile, task, origin, noise), recipe=recipe, seed=seed, store=store)


def _shards(profile: Profile, origin: Origin, store: Store) -> tuple[Path, Path]:
    """Brace patterns of the profile's shards and of the origin's: at ratio 0 the same, else copies in the store.

    They are kept for as long as the network shall be found again, which is by their bytes.
    """
    clean = datasets_dir() / str(profile.pretraining.shards)
    if not clean.parent.is_dir():
        raise DataFileError(
            f"Expected the shards of profile {profile.name!r} in {clean.parent}, which is not there; say in "
            "NML_DATASETS where data sets are, or change `pretraining.shards` in a copy of the profile."
        )
    which = fingerprint({"shards": str(clean), "ratio": origin.ratio, "seed": origin.seed})
    return clean, clean if origin.ratio == 0 else store.root / "shards" / which[:16] / clean.name


def pretraining_recipe(profile: Profile, objective: Objective) -> AnyRecipe:
    """The profile's recipe of pre-training; UnknownNameError for an unknown objective."""
    if objective not in get_args(Objective):
        raise unknown_name("objective", objective, get_args(Objective))
    return profile.contrastive if objective == "contrastive" else profile.recipe


def _noise(profile: Profile, task: Task, origin: Origin, make: NoiseMaker | None) -> LabelNoise | CaptionNoise:
    if origin.objective == "contrastive":
        return caption_noise(task, origin.ratio, origin.seed)
    if make is None:
        return label_noise(profile, task, origin.ratio, origin.seed)
    record, count = make(task, origin.ratio, origin.seed), int((task.splits == "train").sum())
    if not isinstance(record, LabelNoise) or len(record.noisy) != count:
        raise InvalidInputError(
            f"Expected `noise` to return a LabelNoise of the {count} train samples of {task.name!r}, got "
            f"{type(record).__name__}; return inject_label_noise(...) of `task.select(split='train').labels`."
        )
    return record


def study_folds(
    profile: Profile,
    tasks: Mapping[str, Task | Features],
    *,
    fractions: Sequence[float] = (1.0,),
    label_noise: Sequence[float] = (0.0,),
    seed: int = 0,
) -> Iterator[Fold]:
    """The folds of the profile: each ID task pooled, each OOD task with one domain left out, or trained on, in turn.

    Each with every fraction of the train samples and every ratio of flipped downstream labels, drawn from `seed`.
    `tasks` are the tasks, or their features, by name. Raises UnknownNameError for a domain that a task does not
    have, InvalidInputError if one has no samples to train or test on.
    """
    folds = [in_domain_fold(name) for name in profile.downstream.id]
    for name, held_out in profile.downstream.ood.items():
        folds += leave_one_domain_out(name, tasks[name].domains.tolist(), held_out)
    for name, sources in profile.downstream.ood_from.items():
        folds += train_on_one_domain(name, tasks[name].domains.tolist(), sources)
    for fold in folds:
        task = tasks[fold.task]
        for split, domains in (("train", fold.train_domains), ("test", fold.test_domains)):
            if not select_rows(task.splits, task.domains, split=split, domains_wanted=domains).any():
                named = " or ".join(domains or ("any domain",))
                raise InvalidInputError(f"Task {fold.task!r}: expected {split} samples of {named}, got none.")
        for fraction in fractions:
            for ratio in label_noise:
                yield replace(fold, fraction=fraction, label_noise=ratio, seed=seed)


def networks_and_features(
    profile: Profile,
    origins: Sequence[Origin],
    tasks: Mapping[str, Task],
    *,
    noise: NoiseMaker | None = None,
    store: Store | None = None,
    jobs: int | None = None,
    progress: bool = True,
) -> Iterator[tuple[Origin, Backbone, dict[str, Features]]]:
    """The network of each origin and its features of every task, in order.

    What the store lacks is made first, network by network in `jobs` processes (None: one per core) of one thread each,
    so that results do not depend on their number.
    """
    source, store = pretraining_task(profile), store or Store()
    make = partial(pretrained_backbone, profile, source, noise=noise, store=store, progress=False)
    is_made = partial(is_origin_stored, profile, source, noise=noise, store=store)
    missing = [
        origin
        for origin in origins
        if not is_made(origin) or not all(is_extracted(task, make(origin), store=store) for task in tasks.values())
    ]
    in_parallel([(_features, (make, origin, tasks, store)) for origin in missing], jobs, "networks" if progress else "")
    for origin in origins:
        yield origin, *_features(make, origin, tasks, store)


def _features(
    make: Callable[[Origin], Backbone], origin: Origin, tasks: Mapping[str, Task], store: Store
) -> tuple[Backbone, dict[str, Features]]:
    backbone = make(origin)
    return backbone, {
        name: extract_features(task, backbone, store=store, progress=False) for name, task in tasks.items()
    }
