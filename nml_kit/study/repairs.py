"""Ways to use frozen features other than NMTune, each a family of scikit-learn classifiers with a small grid.

All are black-box repairs: they need features and labels, never the weights of the pre-trained model. The grids were
fixed before any result was seen, and `select_head` chooses from them on training data alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
from sklearn.decomposition import PCA
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from nml_kit.errors import unknown_name
from nml_kit.heads import ExactLinearProbe, LinearProbe, MLPTune, NMTune
from nml_kit.store import Store
from nml_kit.study.conditions import Origin
from nml_kit.study.extraction import study_folds, study_sources
from nml_kit.study.profile import Objective, Profile
from nml_kit.study.run import Study, StudyRun
from nml_kit.study.selection import Candidates, Choice, Selection, select_heads, selection_rows

REPAIRS = ("ridge", "whitened", "truncated", "standardised", "neighbours", "regularised", "kernel")
FAMILIES = ("LP", "MLP", "NMTune", *REPAIRS)
_PENALTIES = [0.01, 0.1, 1.0]


def repair_candidates(family: str, profile: Profile, seed: int) -> Candidates:
    """The candidates of a family, for `select_head`; UnknownNameError for an unknown one.

    Trained by gradient descent: "LP", "MLP", "NMTune" (learning rates; NMTune also λ). Others: "ridge" (ridge
    classifier), "whitened" and "truncated" (principal components of a share of the variance, with equal variance or
    their own), "standardised" (each feature to mean 0 and variance 1), each before a logistic regression;
    "neighbours" (k nearest by cosine), "regularised" (logistic regression alone, a path of penalties), "kernel"
    (Nyström features of an RBF kernel on unit vectors, then a logistic regression).

    >>> from nml_kit import load_profile
    >>> list(repair_candidates("ridge", load_profile("smoke"), seed=0))
    ['ridge']
    """
    trained = _trained_candidates(profile, seed)
    probe = ExactLinearProbe()
    candidates: dict[str, Any] = {
        **trained,
        "ridge": (RidgeClassifier(), {"alpha": [0.1, 1.0, 10.0, 100.0]}),
        "whitened": (
            make_pipeline(PCA(whiten=True, svd_solver="full"), probe),
            {"pca__n_components": [0.9, 0.99], "exactlinearprobe__C": [0.001, 0.01, 0.1]},
        ),
        "truncated": (
            make_pipeline(PCA(svd_solver="full"), probe),
            {"pca__n_components": [0.8, 0.9, 0.99], "exactlinearprobe__C": [0.1, 1.0]},
        ),
        "standardised": (make_pipeline(StandardScaler(), probe), {"exactlinearprobe__C": [0.001, *_PENALTIES]}),
        "neighbours": (KNeighborsClassifier(metric="cosine"), {"n_neighbors": [1, 5, 15]}),
        "regularised": (probe, {"C": [0.001, *_PENALTIES, 10.0]}),
        "kernel": (
            make_pipeline(Normalizer(), Nystroem(n_components=300, random_state=seed), probe),
            {"nystroem__gamma": [0.5, 2.0, 8.0], "exactlinearprobe__C": [1.0, 10.0]},
        ),
    }
    if family not in candidates:
        raise unknown_name("family of repairs", family, FAMILIES)
    return {family: candidates[family]}


def _trained_candidates(profile: Profile, seed: int) -> dict[str, Any]:
    shared: dict[str, Any] = {"epochs": profile.head_epochs, "random_state": seed}
    tuned: dict[str, Any] = {"recipe": profile.head_recipe, **shared}
    rates = [3e-4, 1e-3, 3e-3]
    return {
        "LP": (LinearProbe(**shared), {"learning_rate": [1e-3, 1e-2, 1e-1]}),
        "MLP": (MLPTune(**tuned), {"learning_rate": rates}),
        "NMTune": (NMTune(**tuned), {"learning_rate": rates, "weights": [0.001, 0.01, 0.1]}),
    }


@dataclass(frozen=True, eq=False)
class RepairStudy:
    """The study of families tuned on validation parts: `study` holds what was tested, `selections` what was chosen."""

    study: Study
    selected: tuple[tuple[Origin, Selection], ...]

    @cached_property
    def selections(self) -> pd.DataFrame:
        """One row per candidate (see `selection_rows`), with ratio, seed and objective of the pre-training."""
        parts = [selection_rows(selection, **origin._asdict()) for origin, selection in self.selected]
        return pd.concat(parts, ignore_index=True)


def run_repair_study(
    profile: Profile,
    *,
    objective: Objective = "supervised",
    families: Sequence[str] = FAMILIES,
    store: Store | None = None,
    jobs: int | None = None,
    progress: bool = True,
) -> RepairStudy:
    """Choose and test a head of every family on every fold of the profile; what the store lacks is made, and kept.

    `objective` is that of pre-training. The validation parts are those of `select_head`, the same for all families and
    ratios of one seed. Raises UnknownNameError for an unknown family. Other arguments: see `run_study`.

    >>> from nml_kit import load_profile
    >>> smallest = {"id": ["digits"], "ood": {"icons": ["outline"]}, "train_per_class": 4}
    >>> profile = Profile.model_validate({**load_profile("smoke").model_dump(), "downstream": smallest})
    >>> found = run_repair_study(profile, families=("ridge",), jobs=1, progress=False)
    >>> sorted(found.selections.query("chosen")["task"].unique())
    ['digits', 'icons']
    """
    store = store or Store()
    sources = study_sources(profile, objective, store=store, jobs=jobs, progress=progress)
    plan = [(source, Choice(source.features[fold.task], fold,
                            repair_candidates(family, profile, source.origin.seed), family, source.origin.seed))
            for source in sources
            for fold in study_folds(profile, source.features, seed=source.origin.seed)
            for family in families]  # fmt: skip
    found = select_heads([choice for _, choice in plan], store=store, jobs=jobs, progress=progress)
    selected = [(source, selection) for (source, _), selection in zip(plan, found, strict=True)]
    runs = tuple(StudyRun(source.origin, source.backbone, selection.evaluation) for source, selection in selected)
    return RepairStudy(Study(profile, runs), tuple((source.origin, selection) for source, selection in selected))


def verdicts(differences: pd.DataFrame) -> dict[str, list[str]]:
    """Where the interval of a paired difference excludes zero: "worse", "better", and "unclear" for all others.

    `differences` has the columns of `paired_differences` with `protocol`, `task`, `method`, `mean`, `low`, `high`; each
    entry names one row, as "OOD icons: ridge −0.020 [−0.030, −0.010]" does.

    >>> row = {"protocol": "ID", "task": "digits", "method": "ridge", "mean": 0.1, "low": 0.05, "high": 0.15}
    >>> verdicts(pd.DataFrame([row]))["better"]
    ['ID digits: ridge +0.100 [+0.050, +0.150]']
    """
    found: dict[str, list[str]] = {"worse": [], "better": [], "unclear": []}
    for row in differences.to_dict("records"):
        verdict = "worse" if row["high"] < 0 else "better" if row["low"] > 0 else "unclear"
        change = f"{row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        found[verdict].append(f"{row['protocol']} {row['task']}: {row['method']} {change}".replace("-0", "−0"))
    return found


def minus_others(differences: pd.DataFrame) -> pd.DataFrame:
    """Turn `paired_differences` "other − baseline" into "baseline − other"."""
    return differences.assign(mean=-differences["mean"], low=-differences["high"], high=-differences["low"])
