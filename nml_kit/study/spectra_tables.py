"""Spectral metrics of features under every choice one has (split, centring, number of samples), as tidy tables."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from nml_kit.errors import InvalidInputError
from nml_kit.features import Features
from nml_kit.spectrum import Center, spectra_of_subsets, spectrum_metrics
from nml_kit.store import Store
from nml_kit.study.conditions import Origin, downstream_tasks, networks_and_features, study_origins
from nml_kit.study.profile import Objective, Profile

CENTERS: tuple[Center, ...] = ("none", "feature", "sample")


def study_features(
    profile: Profile, task: str, *, objective: Objective = "supervised", store: Store | None = None
) -> Iterator[tuple[Origin, Features]]:
    """The features of one downstream task under each pre-training ratio and seed of the profile, from the store.

    What is missing is made, for all tasks of the profile, in one process per core. Raises InvalidInputError for a task
    that is not among the profile's.
    """
    tasks, store = downstream_tasks(profile), store or Store()
    if task not in tasks:
        raise InvalidInputError(f"Expected a task of profile {profile.name!r} ({', '.join(tasks)}), got {task!r}.")
    _, *origins = study_origins(profile, objective)
    for origin, _, features in networks_and_features(profile, origins, tasks, store=store, progress=False):
        yield origin, features[task]


def metrics_by_choice(features: Features) -> pd.DataFrame:
    """All spectral metrics of each whole split in each centring: split, center, n, metric, value.

    >>> from nml_kit import extract_features, load_backbone, load_task
    >>> digits = extract_features(load_task("digits"), load_backbone("compact-resnet"), progress=False)
    >>> sorted(metrics_by_choice(digits)["center"].unique())
    ['feature', 'none', 'sample']
    """
    splits = {name: features.splits == name for name in ("test", "train")}
    spectra = spectra_of_subsets(features.values, splits, centers=CENTERS)
    return pd.DataFrame([
        {"split": split, "center": center, "n": int(splits[split].sum()), "metric": metric, "value": value}
        for (split, center), values in spectra.items() for metric, value in spectrum_metrics(values).items()
    ])  # fmt: skip


def metrics_by_size(features: Features, *, fractions: Sequence[float], draws: int, seed: int = 0) -> pd.DataFrame:
    """All spectral metrics, not centred, of random parts of the test split: fraction, n, draw, metric, value.

    The parts of one draw are nested; they depend on `seed` and the number of samples alone, so that the same samples
    are drawn for every backbone. Fraction 1 is the whole split, once. Raises InvalidInputError for a fraction outside
    (0, 1] or fewer than one draw.
    """
    if draws < 1 or not all(0 < fraction <= 1 for fraction in fractions):
        raise InvalidInputError(f"Expected draws ≥ 1 and fractions in (0, 1], got {draws} and {list(fractions)}.")
    test, parts = np.flatnonzero(features.splits == "test"), {}
    orders = [np.random.default_rng([seed, draw]).permutation(test) for draw in range(draws)]
    for fraction in fractions:
        for draw, order in enumerate(orders[: 1 if fraction == 1 else draws]):
            mask = np.zeros(len(features), dtype=bool)
            mask[order[: max(1, round(fraction * len(test)))]] = True
            parts[f"{fraction}/{draw}"] = (fraction, draw, mask)
    spectra = spectra_of_subsets(features.values, {name: mask for name, (*_, mask) in parts.items()})
    return pd.DataFrame([
        {"fraction": fraction, "n": int(mask.sum()), "draw": draw, "metric": metric, "value": value}
        for name, (fraction, draw, mask) in parts.items()
        for metric, value in spectrum_metrics(spectra[(name, "none")]).items()
    ])  # fmt: skip


def value_bands(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean of `value` with the smallest and the largest (over seeds and draws) in each group: by…, mean, low, high.

    >>> value_bands(pd.DataFrame({"ratio": [0.0, 0.0], "value": [1.0, 3.0]}), ["ratio"]).to_dict("records")
    [{'ratio': 0.0, 'mean': 2.0, 'low': 1.0, 'high': 3.0}]
    """
    bands = table.groupby(list(by), dropna=False, sort=False)["value"].agg(mean="mean", low="min", high="max")
    return bands.reset_index()


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


def noise_changes(table: pd.DataFrame, by: Sequence[str], *, pair: Sequence[str] = ("seed",)) -> pd.DataFrame:
    """Change of `value` from the lowest to the highest ratio, paired by `pair`, in each group of `by`.

    `table` has ratio, value, the columns of `by` and of `pair`; ratio NaN, the random baseline, is left out. Columns:
    by…, clean, noisy, mean, low, high (mean, smallest and largest change over pairs), rising, pairs (counts),
    consistent (bool: all pairs change in one direction). Raises InvalidInputError for fewer than two ratios.
    """
    table = table[table["ratio"].notna()]
    lowest, highest = table["ratio"].min(), table["ratio"].max()
    if not lowest < highest:
        raise InvalidInputError(f"Expected at least two ratios to compare, got {sorted(table['ratio'].unique())}.")
    wide = table.pivot_table(index=[*by, *pair], columns="ratio", values="value", sort=False)
    wide = pd.DataFrame({"clean": wide[lowest], "noisy": wide[highest]})
    wide["mean"] = wide["noisy"] - wide["clean"]
    wide = wide.assign(low=wide["mean"], high=wide["mean"], rising=wide["mean"] > 0, falling=wide["mean"] < 0, pairs=1)
    how = {"clean": "mean", "noisy": "mean", "mean": "mean", "low": "min", "high": "max",
           "rising": "sum", "falling": "sum", "pairs": "sum"}  # fmt: skip
    changes = wide.groupby(list(by), sort=False).agg(how).reset_index()
    changes["consistent"] = (changes["rising"] == changes["pairs"]) | (changes["falling"] == changes["pairs"])
    return changes.drop(columns="falling")


class Panel(NamedTuple):
    """What results are of: a protocol, a task and the domain that was held out ("all": none)."""

    protocol: str
    task: str
    test_domain: str

    @property
    def held_out(self) -> list[str]:
        """The held-out domain, if there is one."""
        return [] if self.test_domain == "all" else [self.test_domain]


def domain_names(table: pd.DataFrame) -> pd.Series:
    """Protocol, task and, if one was held out, test domain of each row: "ID · icons", "OOD · icons · outline".

    >>> domain_names(pd.DataFrame({"protocol": ["OOD"], "task": ["icons"], "test_domain": ["outline"]})).tolist()
    ['OOD · icons · outline']
    """
    domain = (" · " + table["test_domain"]).where(table["test_domain"] != "all", "")
    return table["protocol"] + " · " + table["task"] + domain


def panels_by_name(table: pd.DataFrame) -> dict[str, Panel]:
    """What each name that `domain_names` gives stands for, in sorted order: a task's own name may hold a " · ".

    Raises InvalidInputError if two of them have one name.

    >>> panels_by_name(pd.DataFrame({"protocol": ["OOD"], "task": ["icons"], "test_domain": ["outline"]}))
    {'OOD · icons · outline': Panel(protocol='OOD', task='icons', test_domain='outline')}
    """
    found = table[list(Panel._fields)].drop_duplicates().assign(name=domain_names).sort_values("name")
    if found["name"].duplicated().any():
        twice = found["name"][found["name"].duplicated()].iloc[0]
        raise InvalidInputError(
            f"Expected a name of its own for each task and domain, got {twice!r} twice; rename one."
        )
    return {str(name): Panel(*map(str, parts)) for *parts, name in found.itertuples(index=False)}


def mean_spectra(spectra: pd.DataFrame) -> pd.DataFrame:
    """Mean share over seeds of each singular value of the raw features, for each task and held-out domain.

    `spectra` is `Study.spectra`. Columns: panel (see `domain_names`), ratio (NaN: random baseline), index, share.
    """
    raw = spectra[spectra["method"] == "LP"]
    groups = [domain_names(raw).rename("panel"), "ratio", "index"]
    return raw.groupby(groups, dropna=False)["share"].mean().reset_index()
