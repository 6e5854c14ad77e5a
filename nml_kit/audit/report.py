"""A report card of anyone's frozen features: their spectrum, what three tuned heads reach, and whether to bother."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from nml_kit.errors import InvalidInputError
from nml_kit.features import Features, Fold, in_domain_fold, leave_one_domain_out, samples_to_train
from nml_kit.heads import Recipe
from nml_kit.inference import change_in_words, paired_differences
from nml_kit.spectrum import singular_values, spectrum_metrics
from nml_kit.store import Store
from nml_kit.study import Methods, Source, Study, StudyResults, candidates_of, fit_sources, load_profile

HEADS = ("LP", "MLP", "NMTune")
# What the rows of features say whose pre-training nobody knows.
UNKNOWN = {"experiment": "audit", "profile": "", "recipe": "unknown", "noise": "unknown", "objective": "unknown",
           "ratio": float("nan")}  # fmt: skip
CONTRASTS = (("MLP", "LP"), ("NMTune", "LP"), ("NMTune", "MLP"))


@dataclass(frozen=True, eq=False)
class Audit:
    """What was found of `features`.

    `samples`: what each tuned head said of each test sample, by seed (see `sample_scores`); `selections`: a row for
    each candidate (see `selection_rows`), by seed.
    """

    features: Features
    samples: pd.DataFrame
    selections: pd.DataFrame
    settings: "AuditSettings"


class AuditSettings(NamedTuple):
    """How the heads are trained: their `seeds`, `epochs`, `recipe`."""

    seeds: tuple[int, ...] = (0, 1)
    epochs: int = 10
    recipe: Recipe = "paper"


def audit_features(
    features: Features,
    *,
    held_out: Sequence[str] = (),
    settings: AuditSettings | None = None,
    store: Store | None = None,
    jobs: int | None = None,
    progress: bool = True,
) -> Audit:
    """Tune LP, MLP and NMTune on validation parts of the train samples, in-domain and for each domain held out.

    With several domains in `features`, each of `held_out` (none given: each of all) is tested by heads that were tuned
    and trained on the other domains. What the store lacks is made, and kept. Raises InvalidInputError for a domain that
    there is not, or if a split is missing.
    """
    settings, folds = settings or AuditSettings(), audit_folds(features, held_out)
    sources = [Source({**UNKNOWN, "backbone": features.task, "seed": seed}, {features.task: features})
               for seed in settings.seeds]  # fmt: skip
    study = fit_heads_of(sources, folds, settings, store=store, jobs=jobs, progress=progress)
    return Audit(features, study.samples, study.selections, settings)


def fit_heads_of(sources: Sequence[Source], folds: Sequence[Fold], settings: "AuditSettings", **options: Any) -> Study:
    """The study of LP, MLP and NMTune on features from elsewhere; options are those of `fit_sources`."""
    profile = load_profile("small").changed(name="", head_recipe=settings.recipe, head_epochs=settings.epochs)
    heads = partial(candidates_of, head_methods(), profile)
    return fit_sources(profile, sources, lambda seed: folds, heads, **options)


def audit_folds(features: Features, held_out: Sequence[str] = ()) -> list[Fold]:
    """The in-domain fold and, with several domains, one for each that is held out (none named: each of all)."""
    domains = np.unique(features.domains).tolist()
    if unknown := set(held_out) - set(domains):
        raise InvalidInputError(f"Expected held-out domains among {', '.join(domains)}, got {min(unknown)!r}.")
    folds = [in_domain_fold(features.task)]
    return folds + (leave_one_domain_out(features.task, domains, list(held_out) or None) if len(domains) > 1 else [])


def spectral_card(features: Features, *, draws: int = 20, seed: int = 0) -> pd.DataFrame:
    """Every spectral metric of the test split, not centred: metric, value, and low and high over random halves.

    The range is that of `draws` halves without replacement: it shows how much a number depends on which samples, and on
    how many, were taken; halves of few samples have fewer directions.
    """
    values = features.values[features.splits == "test"]
    whole, generator = spectrum_metrics(singular_values(values)), np.random.default_rng(seed)
    halves = [generator.permutation(len(values))[: max(2, len(values) // 2)] for _ in range(draws)]
    found = pd.DataFrame([spectrum_metrics(singular_values(values[np.sort(rows)])) for rows in halves])
    return pd.DataFrame([
        {"metric": metric, "value": value, "low": found[metric].min(), "high": found[metric].max(), "n": len(values)}
        for metric, value in whole.items()
    ])  # fmt: skip


def stretched(shares: NDArray[np.float64]) -> pd.DataFrame:
    """A spectrum σ_i/Σσ (r,), whatever its length: position (i − ½)/r and height r·σ_i/Σσ, 1 for a flat one.

    >>> stretched(np.array([0.75, 0.25])).to_dict("list")
    {'position': [0.25, 0.75], 'height': [1.5, 0.5]}
    """
    count = len(shares)
    return pd.DataFrame({"position": (np.arange(count) + 0.5) / count, "height": count * np.asarray(shares)})


def tested_spectrum(features: Features) -> NDArray[np.float64]:
    """The singular values of the test split, not centred, as shares of their sum (fractions)."""
    values = singular_values(features.values[features.splits == "test"])
    return values / values.sum()


def known_spectra(results: StudyResults, *, task: str = "icons") -> pd.DataFrame:
    """Spectra of raw features of supervised networks whose noise is known, stretched: ratio, position, height.

    Means over seeds on the ID test split of `task`. Only the shape compares: other networks and data differ from ours
    by more than noise makes ours differ.
    """
    spectra = results.spectra.query(
        "objective == 'supervised' and protocol == 'ID' and task == @task and method == 'LP' and ratio == ratio"
    )
    means = spectra.groupby(["ratio", "index"])["share"].mean()
    parts = [stretched(part.to_numpy(np.float64)).assign(ratio=ratio) for ratio, part in means.groupby("ratio")]
    return pd.concat(parts, ignore_index=True)


def head_differences(samples: pd.DataFrame, by: Sequence[str] = ("protocol",)) -> pd.DataFrame:
    """Paired differences in accuracy between heads for each group: by…, contrast, mean, low, high (fractions)."""
    found = []
    for head, baseline in CONTRASTS:
        pair = samples[samples["method"].isin([head, baseline])]
        differences = paired_differences(pair, "method", baseline, list(by))
        found.append(differences.assign(contrast=f"{head} − {baseline}").drop(columns="method"))
    return pd.concat(found, ignore_index=True)


def recommendation(differences: pd.DataFrame) -> list[str]:
    """What to do, a sentence for each protocol of `head_differences`.

    The rule, stated before any result: a head is worth its cost if its 95 % interval against LP lies above zero;
    NMTune rather than MLP if its interval against MLP does too. Otherwise a linear probe is enough.

    >>> row = {"protocol": "ID", "contrast": "NMTune − LP", "mean": 0.0, "low": -0.01, "high": 0.01}
    >>> rows = [row, row | {"contrast": "MLP − LP"}, row | {"contrast": "NMTune − MLP"}]
    >>> recommendation(pd.DataFrame(rows))[0].split(":")[0]
    'ID, do not bother'
    """
    sentences = []
    for protocol, part in differences.groupby("protocol"):
        intervals = {str(row["contrast"]): (row["mean"], row["low"], row["high"]) for row in part.to_dict("records")}
        said = {contrast: change_in_words(*interval) for contrast, interval in intervals.items()}
        head = advised_head(differences, str(protocol))
        if head == "LP":
            advice = f"do not bother: with NMTune accuracy {said['NMTune − LP']} against a linear probe"
        else:
            gain, rest = said[f"{head} − LP"], said["NMTune − MLP"]
            advice = f"use {head}: accuracy {gain} against a linear probe; from MLP to NMTune it {rest}"
        sentences.append(f"{protocol}, {advice}.")
    return sentences


def advised_head(differences: pd.DataFrame, protocol: str = "ID") -> str:
    """The head that the rule of `recommendation` advises for a protocol: "NMTune", "MLP" or "LP"."""
    low = differences[differences["protocol"] == protocol].set_index("contrast")["low"]
    if low["NMTune − LP"] > 0 and (low["NMTune − MLP"] > 0 or low["MLP − LP"] <= 0):
        return "NMTune"
    return "MLP" if low["MLP − LP"] > 0 else "LP"


def chosen_head(audit: Audit, method: str, *, seed: int | None = None) -> BaseEstimator:
    """The in-domain head of a method with the settings that were chosen, fitted to all train samples.

    `seed` is the first by default. Raises InvalidInputError for another method or seed.
    """
    seed = audit.settings.seeds[0] if seed is None else seed
    rows = audit.selections.query("protocol == 'ID' and method == @method and seed == @seed and chosen")
    if rows.empty:
        raise InvalidInputError(
            f"Expected a head among {', '.join(HEADS)} of seeds {audit.settings.seeds}, got {method!r}, {seed}."
        )
    profile = load_profile("small").changed(head_recipe=audit.settings.recipe, head_epochs=audit.settings.epochs)
    head = candidates_of(head_methods(), profile, seed)[method][rows["candidate"].iloc[0]]
    train = samples_to_train(audit.features, in_domain_fold(audit.features.task))
    return head.fit(train.values, train.labels)


def head_methods() -> Methods:
    """The settings that are tried: learning rates, and NMTune's λ; few, so that an audit takes minutes."""
    rates = [1e-3, 3e-3]
    return {
        "LP": ("LP", {"learning_rate": [1e-3, 1e-2, 1e-1]}),
        "MLP": ("MLP", {"learning_rate": rates}),
        "NMTune": ("NMTune", {"learning_rate": rates, "weights": [0.01, 0.1]}),
    }
