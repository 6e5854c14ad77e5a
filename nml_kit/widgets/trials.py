"""Heads refitted while one waits: NMTune with any λ and terms, beside LP and MLP fitted alike, on a frozen network."""

import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator

from nml_kit.errors import unknown_name
from nml_kit.features import Features, in_domain_fold, leave_one_domain_out, samples_to_test, samples_to_train
from nml_kit.heads import LinearProbe, MLPTune, NMTune, Recipe, fit_heads
from nml_kit.inference import accuracy_intervals, change_in_words, paired_differences
from nml_kit.spectrum import largest_singular_value_ratio, singular_value_entropy
from nml_kit.study import outcome

TERMS = ("MSE", "COV", "SVD")
TERM_SETS: dict[str, tuple[str, ...]] = {"NMTune": TERMS, **{f"only {term}": (term,) for term in TERMS}}
_STEPS = 300  # of the optimiser: about half a second for NMTune on 200 features
_BATCH = 64


@dataclass(frozen=True, eq=False)
class Trial:
    """Heads fitted and tested on an ID fold and, if a domain is held out, an OOD fold.

    `samples`: task, protocol, method, seed, sample, correct; `spectra` of what a head's classifier reads of the ID test
    samples: method, index (from 1), share (σ_i/Σσ); `seconds` is what fitting took in ID.
    """

    samples: pd.DataFrame
    spectra: pd.DataFrame
    seconds: float


def quick_epochs(num_samples: int) -> int:
    """Epochs of about 300 steps at batch 64, whatever the number of samples; one at least."""
    return max(1, round(_STEPS / math.ceil(num_samples / _BATCH)))


def nmtune_head(weight: float, terms: Collection[str], *, recipe: Recipe, epochs: int) -> NMTune:
    """NMTune whose loss has the `terms` (some of TERMS) with the `weight` λ each, and no others.

    Raises UnknownNameError for another term.
    """
    for term in terms:
        if term not in TERMS:
            raise unknown_name("term", str(term), TERMS)
    mse, cov, svd = (weight if term in terms else 0.0 for term in TERMS)
    return NMTune(weights=(mse, cov, svd), recipe=recipe, epochs=epochs, batch_size=_BATCH, random_state=0)


def try_heads(features: Features, held_out: str, heads: Mapping[str, BaseEstimator]) -> Trial:
    """Fit and test each head, by method, on the ID fold of `features` and the OOD fold of `held_out` ("" for none).

    Raises UnknownNameError if there is no such domain.
    """
    folds = [in_domain_fold(features.task)]
    if held_out:
        folds += leave_one_domain_out(features.task, features.domains.tolist(), [held_out])
    samples, spectra, seconds = [], [], 0.0
    for fold in folds:
        train, test = samples_to_train(features, fold), samples_to_test(features, fold)
        clock = time.perf_counter()
        fitted = fit_heads(train.values, train.labels, heads.values())
        seconds = seconds or time.perf_counter() - clock
        for method, head in zip(heads, fitted, strict=True):
            result = outcome(head, test)
            columns = {"task": fold.task, "protocol": fold.protocol, "method": method, "seed": 0, "sample": test.ids}
            samples.append(pd.DataFrame({**columns, "correct": result["predictions"] == test.labels}))
            values = result["singular_values"]
            if fold.protocol == "ID":
                shares = {"index": np.arange(1, len(values) + 1), "share": values / values.sum()}
                spectra.append(pd.DataFrame({"method": method, **shares}))
    return Trial(pd.concat(samples, ignore_index=True), pd.concat(spectra, ignore_index=True), seconds)


@lru_cache(maxsize=16)
def baseline_trial(features: Features, held_out: str, *, recipe: Recipe, epochs: int) -> Trial:
    """`try_heads` with LP and MLP, which is NMTune with λ = 0, in NMTune's settings; they stay while λ moves."""
    shared: dict[str, Any] = {"epochs": epochs, "batch_size": _BATCH, "random_state": 0}
    return try_heads(features, held_out, {"LP": LinearProbe(**shared), "MLP": MLPTune(recipe=recipe, **shared)})


def joined(*trials: Trial) -> Trial:
    """The trials of several heads on one task as one."""
    samples = pd.concat([trial.samples for trial in trials], ignore_index=True)
    spectra = pd.concat([trial.spectra for trial in trials], ignore_index=True)
    return Trial(samples, spectra, sum(trial.seconds for trial in trials))


def trial_accuracy(trial: Trial) -> pd.DataFrame:
    """Accuracy of each head with its 95 % interval over test samples: protocol, method, mean, low, high, n."""
    return accuracy_intervals(trial.samples, ["protocol", "method"]).drop(columns="seeds")


def trial_metrics(trial: Trial) -> pd.DataFrame:
    """SVE and LSVR (nats) of each method: method, sve, lsvr, in order of appearance."""
    shares = trial.spectra.groupby("method", sort=False)["share"]
    return shares.agg(sve=singular_value_entropy, lsvr=largest_singular_value_ratio).reset_index()


def scores_in_words(scores: pd.DataFrame) -> str:
    """The accuracies of `trial_accuracy`, NMTune's first."""
    parts = []
    for protocol, part in scores.groupby("protocol"):
        means = part.sort_values("method", key=lambda names: names != "NMTune").set_index("method")["mean"]
        parts.append(f"{protocol}: {', '.join(f'{method} {mean:.3f}' for method, mean in means.items())}")
    return f"Accuracy {'; '.join(parts)}"


def spectra_in_words(metrics: pd.DataFrame) -> str:
    """What the terms do to SVE and LSVR (nats); `metrics` is that of `trial_metrics`, with MLP and NMTune."""
    of = metrics.set_index("method")
    changes = (f"{name.upper()} {of[name]['MLP']:.3f} → {of[name]['NMTune']:.3f}" for name in ("sve", "lsvr"))
    return f"From MLP to NMTune: {', '.join(changes)}"


def differences_in_words(trial: Trial) -> str:
    """What accuracy does from LP and from MLP to NMTune, by protocol, claiming no more than paired intervals do."""
    parts = []
    for protocol, part in trial.samples.groupby("protocol"):
        changes = []
        for baseline in ("LP", "MLP"):
            pair = part[part["method"].isin([baseline, "NMTune"])]
            row = paired_differences(pair, "method", baseline, ["protocol"]).iloc[0]
            changes.append(f"{change_in_words(row['mean'], row['low'], row['high'])} against {baseline}")
        parts.append(f"{protocol} accuracy of NMTune {', and it '.join(changes)}")
    return "; ".join(parts)


def weight_grid(
    features: Features, held_out: str, *, recipe: Recipe, epochs: int, weights: Collection[float]
) -> pd.DataFrame:
    """Accuracy by protocol and SVE of NMTune for each λ and term set, fitted side by side; LP and MLP with λ NaN.

    Columns: method (a key of TERM_SETS, LP or MLP), weight, quantity ("ID accuracy", "OOD accuracy": fractions, "SVE":
    nats), value.
    """
    names = {f"{name} {weight!r}": (name, weight) for name in TERM_SETS for weight in weights}
    settings: dict[str, Any] = {"recipe": recipe, "epochs": epochs}
    heads = {key: nmtune_head(weight, TERM_SETS[name], **settings) for key, (name, weight) in names.items()}
    trial = joined(try_heads(features, held_out, heads), baseline_trial(features, held_out, **settings))
    accuracy = trial.samples.groupby(["protocol", "method"], sort=False)["correct"].mean().reset_index(name="value")
    sve = trial_metrics(trial).rename(columns={"sve": "value"})
    table = pd.concat([accuracy.assign(quantity=accuracy["protocol"] + " accuracy"), sve.assign(quantity="SVE")])
    pairs = [names.get(method, (method, math.nan)) for method in table["method"]]
    table["method"], table["weight"] = zip(*pairs, strict=True)
    return table[["method", "weight", "quantity", "value"]].reset_index(drop=True)


def grid_finding(grid: pd.DataFrame) -> str:
    """How far λ moves SVE (nats) and ID accuracy (fraction) with all terms; `grid` is that of `weight_grid`."""
    of = grid[grid["method"] == "NMTune"].pivot(index="weight", columns="quantity", values="value").sort_index()
    changes = (f"{name} {of[name].iloc[0]:.3f} → {of[name].iloc[-1]:.3f}" for name in ("SVE", "ID accuracy"))
    return f"From λ = {of.index[0]:g} to {of.index[-1]:g}, with all terms: {', '.join(changes)}"
