"""Tables of the pre-training itself, for every ratio and seed of a profile: its history, and zero-shot results.

Networks that the store does not hold are pre-trained, in `jobs` processes (None: one per core).
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from nml_kit.backbones import Backbone
from nml_kit.data import Task
from nml_kit.pretraining import in_parallel
from nml_kit.store import Store
from nml_kit.study.conditions import (
    Origin,
    downstream_tasks,
    is_origin_stored,
    networks_and_features,
    pretrained_backbone,
    pretraining_task,
    study_origins,
)
from nml_kit.study.profile import Objective, Profile
from nml_kit.study.zero_shot import retrieval_recall, zero_shot_predictions


def pretraining_history(
    profile: Profile,
    objective: Objective = "supervised",
    *,
    store: Store | None = None,
    jobs: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """What pre-training measured after each epoch, one row per ratio, seed and epoch.

    Columns: ratio, seed, objective, epoch (from 1), loss (nats), test_accuracy (clean test split; contrastive:
    zero-shot) and memorised (see `pretrain`), the last two fractions; memorised is NaN at ratio 0.

    >>> from nml_kit import load_profile
    >>> history = pretraining_history(load_profile("smoke"), jobs=1, progress=False)
    >>> len(history), history["memorised"].isna().tolist()
    (2, [True, False])
    """
    store, source = store or Store(), pretraining_task(profile)
    origins = [origin for origin in study_origins(profile, objective) if not np.isnan(origin.ratio)]
    missing = [(_pretrain, (profile, origin, store)) for origin in origins
               if not is_origin_stored(profile, source, origin, store=store)]  # fmt: skip
    in_parallel(missing, jobs, "networks" if progress else "")
    cards = ((origin, _backbone(profile, source, origin, store).card or {}) for origin in origins)
    rows = [origin._asdict() | row for origin, card in cards for row in card["history"]]
    return pd.DataFrame(rows).reindex(columns=[*Origin._fields, "epoch", "loss", "test_accuracy", "memorised"])


def zero_shot_samples(
    profile: Profile, *, store: Store | None = None, jobs: int | None = None, progress: bool = True
) -> pd.DataFrame:
    """Was the class of each test image named without a head? The pre-training task and the profile's OOD tasks.

    One row per ratio (NaN: random weights), seed, task and test image, in the columns of `Study.samples` with protocol
    and method "zero-shot", and `chance`. All networks are contrastive; templates are the default ones.
    """
    return _samples(profile, zero_shot_predictions, store or Store(), jobs, progress).drop(
        columns=["label", "predicted"]
    )


def retrieval_samples(
    profile: Profile, *, store: Store | None = None, jobs: int | None = None, progress: bool = True
) -> pd.DataFrame:
    """Was the right caption, or image, among the k nearest? As `zero_shot_samples`, with columns direction and k."""
    return _samples(profile, retrieval_recall, store or Store(), jobs, progress).rename(columns={"hit": "correct"})


def above_chance(samples: pd.DataFrame) -> pd.DataFrame:
    """The samples with `correct` minus `chance` as `correct`: its mean is the margin above chance (fraction)."""
    return samples.assign(correct=samples["correct"].astype(float) - samples["chance"])


def zero_shot_tasks(profile: Profile) -> dict[str, Task]:
    """The pre-training task's test split, and the profile's OOD tasks."""
    source, tasks = pretraining_task(profile), downstream_tasks(profile)
    return {source.name: source.select(split="test")} | {name: tasks[name] for name in profile.downstream.ood_tasks}


def _samples(
    profile: Profile, measure: Callable[..., pd.DataFrame], store: Store, jobs: int | None, progress: bool
) -> pd.DataFrame:
    tasks, origins, frames = zero_shot_tasks(profile), study_origins(profile, "contrastive"), []
    made = networks_and_features(profile, origins, tasks, store=store, jobs=jobs, progress=progress)
    for origin, backbone, _ in made:
        for task in tasks.values():
            table = measure(backbone, task, store=store)
            frames.append(table.assign(protocol="zero-shot", method="zero-shot", **origin._asdict()))
    return pd.concat(frames, ignore_index=True)


def _backbone(profile: Profile, source: Task, origin: Origin, store: Store) -> Backbone:
    return pretrained_backbone(profile, source, origin, store=store, progress=False)


def _pretrain(profile: Profile, origin: Origin, store: Store) -> None:
    _backbone(profile, pretraining_task(profile), origin, store)
