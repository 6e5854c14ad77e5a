"""The study: every ratio and seed of a profile pre-trained, extracted, fitted; all of it from the store if there."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple, Unpack

import numpy as np
import pandas as pd

from nml_kit.backbones import Backbone
from nml_kit.data import Task
from nml_kit.errors import InvalidInputError
from nml_kit.features import Features, Fold
from nml_kit.inference import accuracy_intervals
from nml_kit.store import Store, fingerprint
from nml_kit.study.conditions import (
    NoiseMaker,
    RunOptions,
    downstream_task,
    networks_and_features,
    pretraining_recipe,
    study_folds,
    study_origins,
)
from nml_kit.study.fit import Fit, Request, fit_requests
from nml_kit.study.methods import METHODS, Candidates, HeadMaker, Methods, candidates_of, make_head
from nml_kit.study.profile import DownstreamData, Objective, Profile
from nml_kit.tuning import Tuning


@dataclass(frozen=True, eq=False)
class Study:
    """All fits of a study as tidy tables; every table names profile, recipe and noise, ratio, seed and objective.

    `runs` are the fits, each after what its rows say of where its features come from.
    """

    profile: Profile
    runs: tuple[tuple[dict[str, Any], Fit], ...]

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Result rows: one per fit and metric, in RESULT_COLUMNS."""
        return pd.DataFrame([row for context, fit in self.runs for row in fit.rows(**context)])

    @cached_property
    def samples(self) -> pd.DataFrame:
        """One row per fit and test sample: its class, what the head said, and was it right?"""
        return self._table(Fit.samples)

    @cached_property
    def spectra(self) -> pd.DataFrame:
        """One row per singular value: index from 1, share σ_i/Σσ, cumulative energy (fractions), and total, Σσ."""
        return self._table(Fit.spectrum)

    @cached_property
    def selections(self) -> pd.DataFrame:
        """One row per candidate and fit: its accuracy (fraction) on the validation part, and whether it was chosen."""
        return self._table(Fit.selection)

    def _table(self, of_fit: Callable[..., pd.DataFrame]) -> pd.DataFrame:
        contexts = [{name: context[name] for name in context if name != "experiment"} for context, _ in self.runs]
        tables = [of_fit(fit, **context) for context, (_, fit) in zip(contexts, self.runs, strict=True)]
        return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)


class Source(NamedTuple):
    """Features by task from one backbone, and the columns that say what they are, `seed` among them.

    With `backbone` and `tasks`, the network itself can be tuned.
    """

    context: dict[str, Any]
    features: Mapping[str, Features]
    backbone: Backbone | None = None
    tasks: Mapping[str, Task] = {}


def run_study(
    profile: Profile,
    *,
    objective: Objective = "supervised",
    ratios: Sequence[float] | None = None,
    seeds: Sequence[int] | None = None,
    tasks: Sequence[str | Task] | None = None,
    methods: Methods = METHODS,
    noise: str | NoiseMaker | None = None,
    fractions: Sequence[float] = (1.0,),
    label_noise: Sequence[float] = (0.0,),
    make: HeadMaker = make_head,
    store: Store | None = None,
    jobs: int | None = None,
    progress: bool = True,
) -> Study:
    """Everything the profile asks for, or what is asked for in its place; what the store lacks is made, and kept.

    `objective` is that of pre-training. `ratios` (fractions), `seeds` and `noise` (a kind of the profile, or a function
    of task, ratio and seed that returns a LabelNoise) replace the profile's. So do `tasks`: names have the protocols
    that the profile gives them (ID if it gives none); a Task is tested ID and, with several domains, OOD with each held
    out in turn. `methods` are names, or a mapping of names to scikit-learn classifiers, `Tuning` or names that `make`
    knows: alone, or as (it, grid), of which the best on a validation part is taken. Every `random_state` is set to the
    seed of the network. The random baseline is not tuned.

    Heads learn from each of the `fractions` of the downstream train samples, with each ratio of `label_noise` in their
    labels, drawn from that seed. Networks, then heads, run in `jobs` processes (None: one per core): results do not
    depend on their number. Interrupted at any moment and called again, it goes on where it was.

    >>> from nml_kit import load_profile
    >>> study = run_study(load_profile("smoke"), tasks=["digits"], methods=["LP"], jobs=1, progress=False)
    >>> study.rows["ratio"].unique().tolist()
    [nan, 0.0, 0.3]
    """
    profile = _with_noise(profile, objective, noise)
    asked = {"ratios": ratios, "seeds": seeds}
    profile = profile.changed(**{name: np.asarray(v).tolist() for name, v in asked.items() if v is not None})
    profile, by_name = _with_tasks(profile, tasks)
    candidates = partial(candidates_of, methods, profile, make=make)
    folds = partial(study_folds, profile, by_name, fractions=fractions, label_noise=label_noise)
    for seed in profile.seeds:  # mistakes are told before anything slow
        candidates(seed)
        list(folds(seed=seed))
    options: RunOptions = {"store": store, "jobs": jobs, "progress": progress}
    return fit_sources(profile, _sources(profile, objective, by_name, noise, **options), folds, candidates, **options)


def _sources(
    profile: Profile,
    objective: Objective,
    tasks: dict[str, Task],
    noise: str | NoiseMaker | None,
    **options: Unpack[RunOptions],
) -> list[Source]:
    """The features of every network of the profile."""
    make = noise if callable(noise) else None
    name = getattr(noise, "__name__", "own") if make else noise_name(profile, objective)
    context = {"experiment": "study", "profile": profile.name, "recipe": recipe_hash(profile, objective), "noise": name}
    made = networks_and_features(profile, study_origins(profile, objective), tasks, noise=make, **options)
    return [Source({**context, "backbone": backbone.name, **origin._asdict()}, features, backbone, tasks)
            for origin, backbone, features in made]  # fmt: skip


def fit_sources(
    profile: Profile,
    sources: Iterable[Source],
    folds: Callable[..., Iterable[Fold]],
    candidates: Callable[[int], Mapping[str, Candidates]],
    **options: Unpack[RunOptions],
) -> Study:
    """The study of features from anywhere: `folds(seed=…)` and `candidates(seed)` are asked for each source's seed."""
    plan = []
    for source in sources:
        seed, is_random = source.context["seed"], np.isnan(source.context["ratio"])
        heads = candidates(seed)
        for fold in folds(seed=seed):
            for method, settings in heads.items():
                network: tuple[Any, ...] = ()
                if any(isinstance(setting, Tuning) for setting in settings.values()):
                    network = (source.tasks.get(fold.task), source.backbone)
                if not (network and is_random):
                    request = Request(source.features[fold.task], fold, settings, method, seed, *network)
                    plan.append((source.context, request))
    contexts, requests = zip(*plan, strict=True)
    fits = fit_requests(requests, **options)
    return Study(profile, tuple(zip(contexts, fits, strict=True)))


def recipe_hash(profile: Profile, objective: Objective) -> str:
    """Twelve hex digits that tell a recipe of pre-training, with its data, from others."""
    recipe = pretraining_recipe(profile, objective)
    return fingerprint([recipe.model_dump(mode="json"), profile.pretraining.model_dump(mode="json")])[:12]


def noise_name(profile: Profile, objective: Objective) -> str:
    """What result rows call the kind of noise."""
    return "exchange" if objective == "contrastive" else profile.noise


def summary_table(study: Study) -> pd.DataFrame:
    """Ratio × method: accuracy with 95 % interval, SVE and LSVR, each a mean over the ID or the OOD tasks.

    Columns: objective, ratio, method, then "accuracy", "low", "high", "sve", "lsvr", each prefixed by "ID " or "OOD ".
    """
    groups = ["protocol", "objective", "ratio", "method"]
    accuracy = accuracy_intervals(study.samples, groups).set_index(groups)[["mean", "low", "high"]]
    per_task = study.rows.groupby([*groups, "task", "metric"], dropna=False)["value"].mean()
    spectra = per_task.groupby([*groups, "metric"], dropna=False).mean().unstack("metric")[["sve", "lsvr"]]
    table = accuracy.rename(columns={"mean": "accuracy"}).join(spectra)
    id_part, ood_part = (table.loc[protocol].add_prefix(f"{protocol} ") for protocol in ("ID", "OOD"))
    return id_part.join(ood_part).reset_index()


def _with_noise(profile: Profile, objective: Objective, noise: str | NoiseMaker | None) -> Profile:
    """The profile with the kind of noise asked for, if it is one; UnknownNameError for an unknown objective."""
    pretraining_recipe(profile, objective)
    if objective == "contrastive" and noise is not None:
        raise InvalidInputError(
            f"Expected no `noise` with contrastive pre-training, whose captions are exchanged, got {noise!r:.80}."
        )
    return profile.changed(noise=noise) if isinstance(noise, str) else profile


def _with_tasks(profile: Profile, tasks: Sequence[str | Task] | None) -> tuple[Profile, dict[str, Task]]:
    """The profile with the tasks asked for in place of its own, and all of them by name."""
    data = profile.downstream
    asked = [*data.id, *data.ood_tasks] if tasks is None else tasks
    own = {item.name: item for item in asked if isinstance(item, Task)}
    if isinstance(asked, str) or not len(asked):
        raise InvalidInputError(f"Expected a sequence of at least one task, got {tasks!r}.")
    names = [item.name if isinstance(item, Task) else item for item in asked]
    by_name = {name: own[name] if name in own else downstream_task(profile, name) for name in dict.fromkeys(names)}
    for name, task in by_name.items():
        if (tasks is not None and names.count(name) > 1) or task.image_data is None:
            wanted = "tasks of images" if task.image_data is None else "tasks of different names"
            raise InvalidInputError(f"Expected {wanted} to test the study's networks on, got {name!r}.")
    if tasks is None:
        return profile, by_name
    several_domains = [name for name, task in own.items() if len(np.unique(task.domains)) > 1]
    named = by_name.keys() - own.keys()
    chosen = DownstreamData.model_construct(
        id=tuple(name for name in by_name if name in (*own, *data.id) or name not in data.ood_tasks),
        ood={name: data.ood[name] for name in data.ood if name in named} | dict.fromkeys(several_domains),
        ood_from={name: data.ood_from[name] for name in data.ood_from if name in named},
        train_per_class=data.train_per_class,
    )
    return profile.model_copy(update={"downstream": chosen}), by_name
