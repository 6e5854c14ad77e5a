"""The study: every ratio and seed of a profile pre-trained, extracted, evaluated; all of it from the store if there."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, cpu_count, delayed, parallel_config
from sklearn.base import BaseEstimator
from tqdm import tqdm

from nml_kit._processes import launched_count
from nml_kit.backbones import Backbone, load_backbone
from nml_kit.datasets import Task, load_task
from nml_kit.errors import InvalidInputError, unknown_name
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
from nml_kit.intervals import accuracy_intervals
from nml_kit.noise import LabelNoise, inject_label_noise
from nml_kit.pretrain import is_pretrained, pretrain, standardising_transform
from nml_kit.profiles import Profile
from nml_kit.spectrum import cumulative_energy
from nml_kit.store import Store

METHODS = ("LP", "MLP", "NMTune")
RANDOM_BASELINE = float("nan")


@dataclass(frozen=True, eq=False)
class StudyRun:
    """One evaluation with the pre-training it belongs to; ratio NaN is the randomly initialised baseline."""

    ratio: float
    seed: int
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
                ratio=run.ratio, objective="supervised", seed=run.seed, fraction=1.0,
            )
        ])  # fmt: skip

    @cached_property
    def samples(self) -> pd.DataFrame:
        """One row per test sample, seed, ratio and method: was the head right?"""
        return pd.concat(
            [sample_scores(run.evaluation, ratio=run.ratio, seed=run.seed) for run in self.runs],
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
                "method": run.evaluation.method, "ratio": run.ratio, "seed": run.seed,
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


def pretraining_task(profile: Profile) -> Task:
    """The profile's pre-training task, cut to its size; the same samples for every ratio and seed."""
    data = profile.pretraining
    return load_task(data.task).limit(classes=data.classes, train_per_class=data.train_per_class, seed=0)


def downstream_tasks(profile: Profile) -> dict[str, Task]:
    """The profile's downstream tasks by name, cut to its size."""
    names = dict.fromkeys((*profile.downstream.id, *profile.downstream.ood))
    return {name: load_task(name).limit(train_per_class=profile.downstream.train_per_class, seed=0) for name in names}


def label_noise(profile: Profile, task: Task, ratio: float, seed: int) -> LabelNoise:
    """The profile's noise on the task's train labels; nested over ratios for one seed."""
    train = task.select(split="train")
    return inject_label_noise(
        train.labels, ratio, num_classes=task.num_classes, kind=profile.noise, seed=seed, ids=train.ids
    )


def pretrained_backbone(
    profile: Profile,
    task: Task,
    ratio: float,
    seed: int,
    *,
    store: Store | None = None,
    progress: bool = True,
) -> Backbone:
    """The backbone of one ratio and seed; ratio NaN gives the randomly initialised baseline."""
    if np.isnan(ratio):
        transform = standardising_transform(task.select(split="train"))
        return load_backbone(profile.recipe.architecture, seed=seed, transform=transform)
    noise = label_noise(profile, task, ratio, seed)
    return pretrain(task, noise, recipe=profile.recipe, seed=seed, store=store, progress=progress)


def run_study(
    profile: Profile,
    *,
    methods: tuple[str, ...] = METHODS,
    store: Store | None = None,
    jobs: int | None = None,
    progress: bool = True,
) -> Study:
    """Everything the profile asks for; what the store holds is read, what is missing is made, and kept.

    Networks, then heads, run in `jobs` processes (None: one per core) of one thread each, so results do not depend on
    `jobs`. Interrupted at any moment and called again, it goes on where it was.

    >>> from nml_kit import load_profile
    >>> smallest = {"id": ["digits"], "ood": {"icons": ["outline"]}, "train_per_class": 4}
    >>> profile = Profile.model_validate({**load_profile("smoke").model_dump(), "downstream": smallest})
    >>> study = run_study(profile, methods=("LP",), jobs=1, progress=False)
    >>> study.rows["task"].unique().tolist()
    ['digits', 'icons']
    """
    store = store or Store()
    source, tasks = pretraining_task(profile), downstream_tasks(profile)
    grid = [(RANDOM_BASELINE, profile.seeds[0])]  # one random network is enough to tell what pre-training adds
    grid += [(ratio, seed) for ratio in profile.ratios for seed in profile.seeds]
    networks = [(_extract, (profile, *origin, store)) for origin in grid
                if not _is_extracted(profile, source, tasks, *origin, store)]  # fmt: skip
    _in_parallel(networks, jobs, "networks" if progress else "")
    plan = list(_plan(profile, source, tasks, grid, methods, store))
    heads = [(_fit, (fit, store)) for _, fit in plan if not is_evaluated(*fit, store)]
    _in_parallel(heads, jobs, "heads" if progress else "")
    runs = tuple(
        StudyRun(*origin, evaluation) for origin, fit in plan for evaluation in evaluate_fold(*fit, store=store)
    )
    return Study(profile, runs)


class _Fit(NamedTuple):
    """Heads to train on one fold, by method."""

    features: Features
    fold: Fold
    heads: dict[str, BaseEstimator]


def _in_parallel(calls: list[tuple[Callable[..., None], tuple[Any, ...]]], jobs: int | None, title: str) -> None:
    """Make calls that fill the store in `jobs` processes; a bar with `title`, or none if it is empty."""
    if not calls:
        return
    if (
        launched_count() > 1
    ):  # these divide each network among themselves; processes of their own would not be among them
        jobs = 1
    with parallel_config(backend="loky", n_jobs=jobs or cpu_count(), inner_max_num_threads=1):
        done = Parallel(return_as="generator_unordered")(delayed(_on_one_thread)(*call) for call in calls)
        for _ in tqdm(done, title, len(calls), disable=not title, leave=False):
            pass


def _on_one_thread(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Call on one thread also where joblib, with one job, stays in this process: the last bits depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        function(*arguments)
    finally:
        torch.set_num_threads(threads)


def _extract(profile: Profile, ratio: float, seed: int, store: Store) -> None:
    """Pre-train one network and extract the features of all downstream tasks into the store."""
    backbone = pretrained_backbone(profile, pretraining_task(profile), ratio, seed, store=store, progress=False)
    for task in downstream_tasks(profile).values():
        extract_features(task, backbone, store=store, progress=False)


def _is_extracted(
    profile: Profile, source: Task, tasks: dict[str, Task], ratio: float, seed: int, store: Store
) -> bool:
    if not np.isnan(ratio):
        noise = label_noise(profile, source, ratio, seed)
        if not is_pretrained(source, noise, recipe=profile.recipe, seed=seed, store=store):
            return False
    backbone = pretrained_backbone(profile, source, ratio, seed, store=store, progress=False)
    return all(is_extracted(task, backbone, store=store) for task in tasks.values())


def _fit(fit: _Fit, store: Store) -> None:
    """Fill the store; the result itself stays in the worker, the caller reads it from there."""
    evaluate_fold(*fit, store=store)


def _plan(
    profile: Profile,
    source: Task,
    tasks: dict[str, Task],
    grid: list[tuple[float, int]],
    methods: tuple[str, ...],
    store: Store,
) -> Iterator[tuple[tuple[float, int, str], _Fit]]:
    """Yield (ratio, seed, backbone name) and the heads to train, for each, on features that the store holds."""
    folds = list(study_folds(profile, tasks))
    for ratio, seed in grid:
        backbone = pretrained_backbone(profile, source, ratio, seed, store=store, progress=False)
        features = {name: extract_features(task, backbone, store=store, progress=False) for name, task in tasks.items()}
        for fold in folds:
            heads = {method: make_head(method, profile, seed) for method in methods}
            yield (ratio, seed, backbone.name), _Fit(features[fold.task], fold, heads)


def study_folds(profile: Profile, tasks: dict[str, Task]) -> Iterator[Fold]:
    """The folds of the profile: each ID task pooled, each OOD task with one domain left out in turn."""
    for name in profile.downstream.id:
        yield in_domain_fold(name)
    for name, held_out in profile.downstream.ood.items():
        yield from leave_one_domain_out(name, tasks[name].domains.tolist(), held_out)


def spectrum_bands(spectra: pd.DataFrame, *, task: str, protocol: str, method: str) -> pd.DataFrame:
    """Mean share of each singular value over seeds (and held-out domains), with the smallest and the largest.

    Columns: ratio, index, share, low, high, cumulative_energy; all fractions. Raises InvalidInputError if `spectra`
    (see `Study.spectra`) has no such task, protocol and method.
    """
    chosen = {"task": task, "protocol": protocol, "method": method}
    part = spectra[(spectra[list(chosen)] == list(chosen.values())).all(axis=1)]
    if part.empty:
        raise InvalidInputError(f"Expected spectra of {chosen}, but there are none; choose from the study's tasks.")
    columns = {"share": ("share", "mean"), "low": ("share", "min"), "high": ("share", "max"),
               "cumulative_energy": ("cumulative_energy", "mean")}  # fmt: skip
    return part.groupby(["ratio", "index"], dropna=False).agg(**columns).reset_index()


def summary_table(study: Study) -> pd.DataFrame:
    """Ratio × method: accuracy with 95 % interval, SVE and LSVR, each a mean over the ID or the OOD tasks.

    Columns: ratio, method, then "accuracy", "low", "high", "sve", "lsvr", each prefixed by "ID " or "OOD ".
    """
    groups = ["protocol", "ratio", "method"]
    accuracy = accuracy_intervals(study.samples, groups).set_index(groups)[["mean", "low", "high"]]
    per_task = study.rows.groupby([*groups, "task", "metric"], dropna=False)["value"].mean()
    spectra = per_task.groupby([*groups, "metric"], dropna=False).mean().unstack("metric")[["sve", "lsvr"]]
    table = accuracy.rename(columns={"mean": "accuracy"}).join(spectra)
    parts = [table.loc[protocol].add_prefix(f"{protocol} ") for protocol in ("ID", "OOD")]
    return parts[0].join(parts[1]).reset_index()
