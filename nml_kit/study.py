"""The study: every ratio and seed of a profile pre-trained, extracted, evaluated; all of it from the store if there."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator

from nml_kit._parallel import in_parallel
from nml_kit.datasets import Task
from nml_kit.errors import unknown_name
from nml_kit.evaluate import (
    Evaluation,
    Fold,
    evaluate_fold,
    in_domain_fold,
    is_evaluated,
    leave_one_domain_out,
    result_rows,
    sample_scores,
)
from nml_kit.features import Features, extract_features, is_extracted
from nml_kit.heads import LinearProbe, MLPTune, NMTune
from nml_kit.origins import (
    Origin,
    downstream_tasks,
    is_origin_stored,
    pretrained_backbone,
    pretraining_task,
    study_origins,
)
from nml_kit.profiles import Objective, Profile
from nml_kit.spectrum import cumulative_energy
from nml_kit.store import Store

METHODS = ("LP", "MLP", "NMTune")


@dataclass(frozen=True, eq=False)
class StudyRun:
    """One evaluation with the pre-training it belongs to."""

    origin: Origin
    backbone: str
    evaluation: Evaluation


@dataclass(frozen=True, eq=False)
class Study:
    """All evaluations of a profile as tidy tables."""

    profile: Profile
    runs: tuple[StudyRun, ...]

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Result rows in the columns of `evaluate.RESULT_COLUMNS`."""
        return pd.DataFrame([
            row
            for run in self.runs
            for row in result_rows(
                run.evaluation, experiment="study", profile=self.profile.name, backbone=run.backbone,
                fraction=1.0, **run.origin._asdict(),
            )
        ])  # fmt: skip

    @cached_property
    def samples(self) -> pd.DataFrame:
        """One row per test sample, seed, ratio and method: was the head right?"""
        return pd.concat(
            [sample_scores(run.evaluation, **run.origin._asdict()) for run in self.runs],
            ignore_index=True,
        )

    @cached_property
    def spectra(self) -> pd.DataFrame:
        """One row per singular value: index from 1, share σ_i/Σσ and cumulative energy (fractions)."""
        frames = []
        for run in self.runs:
            values, fold = run.evaluation.singular_values, run.evaluation.fold
            frames.append(pd.DataFrame({
                "task": fold.task, "protocol": fold.protocol, "test_domain": "+".join(fold.test_domains or ("all",)),
                "method": run.evaluation.method, **run.origin._asdict(),
                "index": np.arange(1, len(values) + 1), "share": values / values.sum(),
                "cumulative_energy": cumulative_energy(values),
            }))  # fmt: skip
        return pd.concat(frames, ignore_index=True)


def make_head(method: str, profile: Profile, seed: int) -> BaseEstimator:
    """The head of a method in the profile's settings; UnknownNameError for an unknown method."""
    shared: dict[str, Any] = {"epochs": profile.head_epochs, "random_state": seed}
    if method == "LP":
        return LinearProbe(**shared)
    if method == "MLP":
        return MLPTune(recipe=profile.head_recipe, **shared)
    if method == "NMTune":
        return NMTune(recipe=profile.head_recipe, **shared)
    raise unknown_name("method", method, METHODS)


def run_study(
    profile: Profile,
    *,
    objective: Objective = "supervised",
    methods: tuple[str, ...] = METHODS,
    store: Store | None = None,
    jobs: int | None = None,
    progress: bool = True,
) -> Study:
    """Everything the profile asks for; what the store holds is read, what is missing is made, and kept.

    `objective` is that of pre-training. Networks, then heads, run in `jobs` processes (None: one per core) of one
    thread each: results do not depend on `jobs`. Interrupted at any moment and called again, it goes on where it was.

    >>> from nml_kit import load_profile
    >>> smallest = {"id": ["digits"], "ood": {"icons": ["outline"]}, "train_per_class": 4}
    >>> profile = Profile.model_validate({**load_profile("smoke").model_dump(), "downstream": smallest})
    >>> study = run_study(profile, methods=("LP",), jobs=1, progress=False)
    >>> study.rows["task"].unique().tolist()
    ['digits', 'icons']
    """
    store = store or Store()
    source, tasks = pretraining_task(profile), downstream_tasks(profile)
    grid = study_origins(profile, objective)
    networks = [(_extract, (profile, origin, store)) for origin in grid
                if not _is_extracted(profile, source, tasks, origin, store)]  # fmt: skip
    in_parallel(networks, jobs, "networks" if progress else "")
    plan = list(_plan(profile, source, tasks, grid, methods, store))
    heads = [(_fit, (fit, store)) for *_, fit in plan if not is_evaluated(*fit, store)]
    in_parallel(heads, jobs, "heads" if progress else "")
    runs = tuple(
        StudyRun(origin, backbone, evaluation)
        for origin, backbone, fit in plan
        for evaluation in evaluate_fold(*fit, store=store)
    )
    return Study(profile, runs)


class _Fit(NamedTuple):
    """Heads to train on one fold, by method."""

    features: Features
    fold: Fold
    heads: dict[str, BaseEstimator]


def _extract(profile: Profile, origin: Origin, store: Store) -> None:
    """Pre-train one network and extract the features of all downstream tasks into the store."""
    backbone = pretrained_backbone(profile, pretraining_task(profile), origin, store=store, progress=False)
    for task in downstream_tasks(profile).values():
        extract_features(task, backbone, store=store, progress=False)


def _is_extracted(profile: Profile, source: Task, tasks: dict[str, Task], origin: Origin, store: Store) -> bool:
    if not is_origin_stored(profile, source, origin, store=store):
        return False
    backbone = pretrained_backbone(profile, source, origin, store=store, progress=False)
    return all(is_extracted(task, backbone, store=store) for task in tasks.values())


def _fit(fit: _Fit, store: Store) -> None:
    """Fill the store; the result itself stays in the worker, the caller reads it from there."""
    evaluate_fold(*fit, store=store)


def _plan(
    profile: Profile,
    source: Task,
    tasks: dict[str, Task],
    grid: list[Origin],
    methods: tuple[str, ...],
    store: Store,
) -> Iterator[tuple[Origin, str, _Fit]]:
    """Yield each origin, its backbone's name and the heads to train on features that the store holds."""
    folds = list(study_folds(profile, tasks))
    for origin in grid:
        backbone = pretrained_backbone(profile, source, origin, store=store, progress=False)
        features = {name: extract_features(task, backbone, store=store, progress=False) for name, task in tasks.items()}
        for fold in folds:
            heads = {method: make_head(method, profile, origin.seed) for method in methods}
            yield origin, backbone.name, _Fit(features[fold.task], fold, heads)


def study_folds(profile: Profile, tasks: dict[str, Task]) -> Iterator[Fold]:
    """The folds of the profile: each ID task pooled, each OOD task with one domain left out in turn."""
    for name in profile.downstream.id:
        yield in_domain_fold(name)
    for name, held_out in profile.downstream.ood.items():
        yield from leave_one_domain_out(name, tasks[name].domains.tolist(), held_out)
