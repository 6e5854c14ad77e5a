"""The study of anyone's features: LP, MLP and NMTune, tuned alike, on tasks in and out of domain.

Of features from files or from real pre-trained models nobody knows the noise: in rows its ratio is NaN, the objective
"unknown".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Unpack

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.feature_extraction.text import HashingVectorizer

from nml_kit.backbones import load_backbone
from nml_kit.data import Task, load_task, select_rows
from nml_kit.errors import InvalidInputError, unknown_name
from nml_kit.features import Features, Fold, extract_features, in_domain_fold, leave_one_domain_out, samples_to_train
from nml_kit.heads import Recipe
from nml_kit.study import METHODS, Methods, Profile, RunOptions, Source, Study, candidates_of, fit_sources, load_profile

BAG_OF_WORDS = "bag-of-words"
_WORDS, _WORD = 1024, r"[^\W_]+"  # columns of a bag of words; what a word is
_BAG = f"hashed words, {_WORDS}"
_UNKNOWN = {"recipe": "unknown", "noise": "unknown", "objective": "unknown", "ratio": float("nan")}


class AuditSettings(NamedTuple):
    """How heads are trained."""

    seeds: tuple[int, ...] = (0, 1)
    epochs: int = 10
    recipe: Recipe = "paper"

    @property
    def profile(self) -> Profile:
        return load_profile("small").changed(head_recipe=self.recipe, head_epochs=self.epochs)

    def candidates(self, seed: int) -> dict[str, dict[str, BaseEstimator]]:
        """What is tried: learning rates, and NMTune's λ; few, so that an audit takes minutes."""
        rates = [1e-3, 3e-3]
        methods: Methods = {
            "LP": ("LP", {"learning_rate": [1e-3, 1e-2, 1e-1]}),
            "MLP": ("MLP", {"learning_rate": rates}),
            "NMTune": ("NMTune", {"learning_rate": rates, "weights": [0.01, 0.1]}),
        }
        return candidates_of(methods, self.profile, seed)


@dataclass(frozen=True, eq=False)
class Audit:
    """What was measured of `features`: `samples` and `selections` are those of a `Study`, by seed."""

    features: Features
    samples: pd.DataFrame
    selections: pd.DataFrame
    settings: AuditSettings


def audit_features(
    features: Features,
    *,
    held_out: Sequence[str] = (),
    settings: AuditSettings | None = None,
    **options: Unpack[RunOptions],
) -> Audit:
    """Tune LP, MLP and NMTune on validation parts of the train samples, in-domain and for each domain held out.

    With several domains in `features`, each of `held_out` (none named: each of all) is tested by heads that were tuned
    and trained on the others. What the store lacks is made, and kept. Raises InvalidInputError for an unknown domain,
    or if a split is missing.
    """
    settings, folds = settings or AuditSettings(), audit_folds(features, held_out)
    context = {"experiment": "audit", "profile": "", **_UNKNOWN, "backbone": features.task}
    sources = [Source({**context, "seed": seed}, {features.task: features}) for seed in settings.seeds]
    study = fit_sources(settings.profile, sources, lambda seed: folds, settings.candidates, **options)
    return Audit(features, study.samples, study.selections, settings)


class PracticalTask(NamedTuple):
    """A task without the samples that none of its `folds` uses."""

    task: Task
    folds: tuple[Fold, ...]


def practical_tasks(
    profile: Profile,
    id_tasks: Sequence[str],
    ood_tasks: Mapping[str, Sequence[str]],
    sources: Mapping[str, Sequence[str]] | None = None,
) -> list[PracticalTask]:
    """Tasks by name with their folds, cut to the profile's `train_per_class`.

    `ood_tasks` maps a task to the domains that are held out in turn (none named: each). `sources` maps a task to the
    domains that heads learn from: its ID fold is of these alone, its OOD fold tests on the others together. A task that
    is not in `sources` pools its domains in the ID fold, and its OOD folds learn from all but the one held out.
    Raises UnknownNameError for an unknown task or domain, or sources of a task that is not asked for; InvalidInputError
    for an OOD task without a domain to test on, or with one that is trained on.

    >>> from nml_kit import load_profile
    >>> sources = {"emoji-text": ["name"]}
    >>> tasks = practical_tasks(load_profile("smoke"), ["emoji-text"], {"emoji-text": ["keywords"]}, sources)
    >>> [(fold.protocol, fold.train_domains, fold.test_domains) for fold in tasks[0].folds]
    [('ID', ('name',), ('name',)), ('OOD', ('name',), ('keywords',))]
    """
    tasks, sources, names = [], sources or {}, list(dict.fromkeys([*id_tasks, *ood_tasks]))
    if others := [name for name in sources if name not in names]:
        raise unknown_name("task with sources", others[0], names)
    for name in names:
        task = load_task(name)
        domains = np.unique(task.domains).tolist()
        folds = _folds(name, domains, tuple(sources.get(name, ())), ood_tasks.get(name))
        folds = folds if name in id_tasks else folds[1:]
        used = np.zeros(len(task), dtype=bool)
        for fold in folds:
            used |= select_rows(task.splits, task.domains, split="train", domains_wanted=fold.train_domains)
            used |= select_rows(task.splits, task.domains, split="test", domains_wanted=fold.test_domains)
        cut = task.take(used).limit(train_per_class=profile.downstream.train_per_class, seed=0)
        tasks.append(PracticalTask(cut, tuple(folds)))
    return tasks


def run_practical(
    profile: Profile,
    backbones: Sequence[str],
    tasks: Sequence[PracticalTask],
    *,
    epochs: int = 10,
    **options: Unpack[RunOptions],
) -> Study:
    """Features of every task from each backbone, then LP, MLP and NMTune tuned on validation parts.

    Backbones are names of `load_backbone`, or "bag-of-words" for texts. Seeds and recipe of heads are the profile's.
    What the store lacks is made in `jobs` processes (None: one per core), and kept. In the rows the noise ratio is NaN
    and the objective "unknown". Source: the paper's Tables 1 and 2.
    """
    store, progress = options.get("store"), options.get("progress", True)
    settings = AuditSettings(profile.seeds, epochs, profile.head_recipe)
    context = {"experiment": "practical", "profile": profile.name, **_UNKNOWN}
    sources = []
    for name in dict.fromkeys(backbones):
        is_bag = name == BAG_OF_WORDS
        backbone = load_backbone(bag_of_words, fingerprint_of_weights=_BAG) if is_bag else load_backbone(name)
        features = {  # by the names that the folds have: a data set of one's own goes by its path
            task_folds[0].task: extract_features(task, backbone, store=store, progress=progress)
            for task, task_folds in tasks
        }
        sources += [Source({**context, "backbone": name, "seed": seed}, features) for seed in profile.seeds]
    folds = [fold for _, task_folds in tasks for fold in task_folds]
    return fit_sources(settings.profile, sources, lambda seed: folds, settings.candidates, **options)


def bag_of_words(texts: Shaped[np.ndarray, " n"]) -> Float[np.ndarray, "n words"]:
    """Counts (N, 1024) of the words of texts (N,), hashed to columns with signs, each row of unit length.

    A word is a run of letters and digits, in lower case; a text without any is a row of zeros.

    >>> rows = bag_of_words(np.array(["flag: Aruba", "flag_aruba", "red apple"]))
    >>> (rows @ rows.T).round(3)[0].tolist()
    [1.0, 1.0, 0.0]
    """
    words = HashingVectorizer(n_features=_WORDS, token_pattern=_WORD, dtype=np.float32)
    return words.transform(map(str, texts)).toarray()


def chosen_head(audit: Audit, method: str, *, seed: int | None = None) -> BaseEstimator:
    """The in-domain head of a method with the settings that were chosen, fitted to all train samples.

    `seed` is the first by default. Raises InvalidInputError for another method or seed.
    """
    seed = audit.settings.seeds[0] if seed is None else seed
    rows = audit.selections.query("protocol == 'ID' and method == @method and seed == @seed and chosen")
    if rows.empty:
        raise InvalidInputError(
            f"Expected a head among {', '.join(METHODS)} of seeds {audit.settings.seeds}, got {method!r}, {seed}."
        )
    head = audit.settings.candidates(seed)[method][rows["candidate"].item()]
    train = samples_to_train(audit.features, in_domain_fold(audit.features.task))
    return head.fit(train.values, train.labels)


def audit_folds(features: Features, held_out: Sequence[str] = ()) -> list[Fold]:
    """The in-domain fold and, with several domains, one for each that is held out (none named: each of all)."""
    domains = require_domains(features.domains, held_out)
    return _folds(features.task, domains, (), held_out if len(domains) > 1 else None)


def require_domains(domains: NDArray[np.str_], held_out: Sequence[str]) -> list[str]:
    """The names that occur in `domains` (N,); InvalidInputError if those `held_out` are not among them."""
    known = np.unique(domains).tolist()
    if unknown := set(held_out) - set(known):
        raise InvalidInputError(f"Expected held-out domains among {', '.join(known)}, got {min(unknown)!r}.")
    return known


def _folds(task: str, domains: list[str], sources: tuple[str, ...], held_out: Sequence[str] | None) -> list[Fold]:
    """The ID fold, then the OOD ones; `held_out` None: none of those, empty: every domain is."""
    in_domain = Fold(task, "ID", sources or None, sources or None)
    if held_out is None:
        return [in_domain]
    if not sources:
        return [in_domain, *leave_one_domain_out(task, domains, held_out)]
    tested = tuple(held_out or [domain for domain in domains if domain not in sources])
    if not tested or set(tested) & set(sources):
        raise InvalidInputError(
            f"Task {task!r}: expected domains to test on beside the sources {', '.join(sources)}, got "
            f"{', '.join(tested) or 'none'}; name others in `ood_tasks` or `sources`."
        )
    return [in_domain, Fold(task, "OOD", sources, tested)]  # one: the heads are the same for all domains
