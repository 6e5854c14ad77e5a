"""The costly first half of a study: every network of a profile pre-trained, its features extracted, side by side."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from nml_kit.data import Task
from nml_kit.features import (
    Features,
    Fold,
    extract_features,
    in_domain_fold,
    is_extracted,
    leave_one_domain_out,
    train_on_one_domain,
)
from nml_kit.pretraining import in_parallel
from nml_kit.store import Store
from nml_kit.study.conditions import (
    Origin,
    downstream_tasks,
    is_origin_stored,
    pretrained_backbone,
    pretraining_task,
    study_origins,
)
from nml_kit.study.profile import Objective, Profile

TasksOf = Callable[[Profile], dict[str, Task]]  # a module's function: processes of their own call it


class Source(NamedTuple):
    """The features of all downstream tasks, by task, from one backbone."""

    origin: Origin
    backbone: str
    features: dict[str, Features]


def study_sources(
    profile: Profile, objective: Objective, *, store: Store, jobs: int | None, progress: bool
) -> list[Source]:
    """Features of every ratio and seed of the profile, and of one random network; what the store lacks is made."""
    task, tasks = pretraining_task(profile), downstream_tasks(profile)
    grid = study_origins(profile, objective)
    extract_all(profile, grid, downstream_tasks, store=store, jobs=jobs, progress=progress)
    sources = []
    for origin in grid:
        backbone = pretrained_backbone(profile, task, origin, store=store, progress=False)
        features = {name: extract_features(task, backbone, store=store, progress=False) for name, task in tasks.items()}
        sources.append(Source(origin, backbone.name, features))
    return sources


def extract_all(
    profile: Profile, origins: Sequence[Origin], tasks_of: TasksOf, *, store: Store, jobs: int | None, progress: bool
) -> None:
    """Pre-train the networks that the store lacks and extract the features of `tasks_of(profile)`, in `jobs` processes.

    None is one process per core; each has one thread, so that results do not depend on their number.
    """
    source, tasks = pretraining_task(profile), tasks_of(profile)
    missing = [(_extract, (profile, origin, tasks_of, store)) for origin in origins
               if not _is_extracted(profile, source, tasks, origin, store)]  # fmt: skip
    in_parallel(missing, jobs, "networks" if progress else "")


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
    `tasks` are the tasks, or their features, by name.
    """
    folds = [in_domain_fold(name) for name in profile.downstream.id]
    for name, held_out in profile.downstream.ood.items():
        folds += leave_one_domain_out(name, tasks[name].domains.tolist(), held_out)
    for name, sources in profile.downstream.ood_from.items():
        folds += train_on_one_domain(name, tasks[name].domains.tolist(), sources)
    for fold in folds:
        for fraction in fractions:
            for ratio in label_noise:
                yield replace(fold, fraction=fraction, label_noise=ratio, seed=seed)


def _extract(profile: Profile, origin: Origin, tasks_of: TasksOf, store: Store) -> None:
    """Pre-train one network and extract the features of all tasks into the store."""
    backbone = pretrained_backbone(profile, pretraining_task(profile), origin, store=store, progress=False)
    for task in tasks_of(profile).values():
        extract_features(task, backbone, store=store, progress=False)


def _is_extracted(profile: Profile, source: Task, tasks: dict[str, Task], origin: Origin, store: Store) -> bool:
    if not is_origin_stored(profile, source, origin, store=store):
        return False
    backbone = pretrained_backbone(profile, source, origin, store=store, progress=False)
    return all(is_extracted(task, backbone, store=store) for task in tasks.values())
