"""The study: every ratio and seed of a profile pre-trained, extracted, evaluated; all of it from the store if there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator

from nml_kit.errors import unknown_name
from nml_kit.features import Features, Fold
from nml_kit.heads import LinearProbe, MLPTune, NMTune
from nml_kit.pretraining import in_parallel
from nml_kit.spectrum import cumulative_energy
from nml_kit.store import Store
from nml_kit.study.conditions import Origin
from nml_kit.study.evaluate import Evaluation, evaluate_fold, is_evaluated, result_rows, sample_scores
from nml_kit.study.extraction import study_folds, study_sources
from nml_kit.study.profile import Objective, Profile

METHODS: tuple[str, ...] = ("LP", "MLP", "NMTune")
HeadMaker = Callable[[str, Profile, int], BaseEstimator]


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
                **run.origin._asdict(),
            )
        ])  # fmt: skip

    @cached_property
    def samples(self) -> pd.DataFrame:
        """One row per test sample, seed, ratio and method: its class, what the head said, and was it right?"""
        return pd.concat(
            [sample_scores(run.evaluation, profile=self.profile.name, **run.origin._asdict()) for run in self.runs],
            ignore_index=True,
        )

    @cached_property
    def spectra(self) -> pd.DataFrame:
        """One row per singular value: index from 1, share σ_i/Σσ, cumulative energy (fractions), and total, Σσ."""
        frames = []
        for run in self.runs:
            values, fold = run.evaluation.singular_values, run.evaluation.fold
            frames.append(pd.DataFrame({
                "profile": self.profile.name, "task": fold.task, "protocol": fold.protocol,
                "test_domain": fold.columns["test_domain"],
                "fraction": float(fold.fraction), "label_noise": float(fold.label_noise),
                "method": run.evaluation.method, **run.origin._asdict(),
                "index": np.arange(1, len(values) + 1), "share": values / values.sum(),
                "cumulative_energy": cumulative_energy(values), "total": values.sum(),
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
    methods: Sequence[str] = METHODS,
    fractions: Sequence[float] = (1.0,),
    label_noise: Sequence[float] = (0.0,),
    make: HeadMaker = make_head,
    store: Store | None = None,
    jobs: int | None = None,
    progress: bool = True,
) -> Study:
    """Everything the profile asks for; what the store holds is read, what is missing is made, and kept.

    `objective` is that of pre-training. Heads are trained with each of the `fractions` of the downstream train samples
    and each ratio of `label_noise` in their labels, drawn from the seed of the pre-training; `make` gives the head of a
    method. Networks, then heads, run in `jobs` processes (None: one per core) of one thread each: results do not depend
    on `jobs`. Interrupted at any moment and called again, it goes on where it was.

    >>> from nml_kit import load_profile
    >>> smallest = {"id": ["digits"], "ood": {"icons": ["outline"]}, "train_per_class": 4}
    >>> profile = Profile.model_validate({**load_profile("smoke").model_dump(), "downstream": smallest})
    >>> study = run_study(profile, methods=("LP",), jobs=1, progress=False)
    >>> study.rows["task"].unique().tolist()
    ['digits', 'icons']
    """
    store = store or Store()
    sources = study_sources(profile, objective, store=store, jobs=jobs, progress=progress)
    draws = {"fractions": fractions, "label_noise": label_noise}
    plan = [(source, _Fit(source.features[fold.task], fold, {
                method: make(method, profile, source.origin.seed) for method in methods}))
            for source in sources
            for fold in study_folds(profile, source.features, **draws, seed=source.origin.seed)]  # fmt: skip
    missing = [(_fit, (fit, store)) for _, fit in plan if not is_evaluated(*fit, store)]
    in_parallel(missing, jobs, "heads" if progress else "")
    runs = tuple(
        StudyRun(source.origin, source.backbone, evaluation)
        for source, fit in plan
        for evaluation in evaluate_fold(*fit, store=store)
    )
    return Study(profile, runs)


class _Fit(NamedTuple):
    """Heads to train on one fold, by method."""

    features: Features
    fold: Fold
    heads: dict[str, BaseEstimator]


def _fit(fit: _Fit, store: Store) -> None:
    """Fill the store; the result itself stays in the worker, the caller reads it from there."""
    evaluate_fold(*fit, store=store)
