"""Spectra and their metrics as tidy tables: under every choice one has, over ratios and seeds, for the explorers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import pandas as pd

from nml_kit.errors import InvalidInputError, unknown_name
from nml_kit.features import Features
from nml_kit.inference import at_ratio, ratios_in_order
from nml_kit.spectrum import (
    Center,
    cumulative_energy,
    largest_singular_value_ratio,
    singular_value_entropy,
    spectra_of_subsets,
    spectrum_metrics,
)
from nml_kit.store import Store
from nml_kit.study.conditions import Origin, downstream_tasks, networks_and_features, study_origins
from nml_kit.study.profile import Objective, Profile

Quantity = Literal["share", "singular value", "cumulative energy"]
_NOTHING = 1e-3


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
    spectra = spectra_of_subsets(features.values, splits, centers=get_args(Center))
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
    """Mean of `value` with the smallest and the largest (over seeds and draws) in each group: by…, mean, low, high."""
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
    bands = part.groupby(["ratio", "index"], dropna=False).agg(
        share=("share", "mean"), low=("share", "min"), high=("share", "max"),
        cumulative_energy=("cumulative_energy", "mean"),
    )  # fmt: skip
    return bands.reset_index()


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
    pairs = pd.DataFrame({"clean": wide[lowest], "noisy": wide[highest], "change": wide[highest] - wide[lowest]})
    pairs = pairs.assign(rising=pairs["change"] > 0, falling=pairs["change"] < 0)
    changes = pairs.groupby(list(by), sort=False).agg(
        clean=("clean", "mean"), noisy=("noisy", "mean"), mean=("change", "mean"), low=("change", "min"),
        high=("change", "max"), rising=("rising", "sum"), falling=("falling", "sum"), pairs=("change", "size"),
    ).reset_index()  # fmt: skip
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


def mean_spectra(spectra: pd.DataFrame) -> pd.DataFrame:
    """Mean share over seeds of each singular value of the raw features, for each task and held-out domain.

    `spectra` is `Study.spectra`. Columns: panel (see `domain_names`), ratio (NaN: random baseline), index, share.
    """
    raw = spectra[spectra["method"] == "LP"]
    groups = [domain_names(raw).rename("panel"), "ratio", "index"]
    return raw.groupby(groups, dropna=False)["share"].mean().reset_index()


def spectra_by_choice(spectra: pd.DataFrame) -> dict[tuple[str, str, str], pd.DataFrame]:
    """The spectra (see `Study.spectra`) of each objective, panel (see `domain_names`) and method, sorted."""
    named = spectra.assign(panel=domain_names(spectra)).sort_values(["ratio", "seed", "index"], ignore_index=True)
    return {(str(o), str(p), str(m)): part for (o, p, m), part in named.groupby(["objective", "panel", "method"])}


def quantity_bands(spectra: pd.DataFrame, quantity: Quantity, *, seed: int | None = None) -> pd.DataFrame:
    """A quantity at each ratio and index: its mean over seeds, the smallest and the largest, and its change.

    `spectra` is a part of `spectra_by_choice`; with a `seed` only its networks count (and the random one). Columns:
    ratio, index, mean, low, high, change. The change is that of the mean from the lowest ratio's, relative to it
    (fraction), NaN where the latter is below a thousandth of its largest: a quotient says nothing there. "share" is
    σ_i/Σσ, "cumulative energy" the share of Σσ² in the first i (fractions). Raises UnknownNameError for another
    quantity, InvalidInputError for a seed that is not there.
    """
    if quantity not in get_args(Quantity):
        raise unknown_name("quantity", quantity, get_args(Quantity))
    spectra = _of_seed(spectra, seed)
    values = spectra["share"]
    if quantity == "singular value":
        values = values * spectra["total"]
    if quantity == "cumulative energy":
        values = values.groupby([spectra["ratio"], spectra["seed"]], dropna=False).transform(cumulative_energy)
    bands = value_bands(spectra.assign(value=values), ["ratio", "index"])
    clean = bands[bands["ratio"] == bands["ratio"].min()].set_index("index")["mean"]
    clean = clean.where(clean > _NOTHING * clean.max())
    return bands.assign(change=bands["mean"] / bands["index"].map(clean) - 1)


def spectral_points(spectra: pd.DataFrame, *, seed: int | None = None) -> pd.DataFrame:
    """SVE and LSVR (nats) of each spectrum in a part of `spectra_by_choice`: ratio, seed, sve, lsvr."""
    shares = _of_seed(spectra, seed).groupby(["ratio", "seed"], dropna=False)["share"]
    return shares.agg(sve=singular_value_entropy, lsvr=largest_singular_value_ratio).reset_index()


def page_tables(
    spectra: Mapping[tuple[str, str, str], pd.DataFrame], objective: str, quantity: Quantity, *, most: int = 32
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Bands of every panel and method of an objective, at `most` indices spread evenly in their logarithm, and points.

    The columns are those of `quantity_bands` and, averaged over seeds, of `spectral_points`, after panel and method.
    """
    bands, points = [], []
    for (name, panel, method), part in spectra.items():
        if name == objective:
            band = quantity_bands(part, quantity)
            kept = np.unique(np.geomspace(1, band["index"].max(), most).round().astype(int))
            key = {"panel": panel, "method": method}
            bands.append(band[band["index"].isin(kept)].assign(**key))
            means = spectral_points(part).groupby("ratio", dropna=False)[["sve", "lsvr"]].mean().reset_index()
            points.append(means.assign(**key))
    return pd.concat(bands, ignore_index=True), pd.concat(points, ignore_index=True)


def at_any_ratio(table: pd.DataFrame, ratio: float) -> pd.DataFrame:
    """The numbers of `table` at any `ratio` within its own, on the line between its two neighbours, row by row.

    `table` has the same rows (such as indices) in the same order at every ratio; NaN, the random baseline, is left out.
    Only measured ratios are results: what lies between helps the eye. Raises InvalidInputError outside them.
    """
    ratios = [known for known in ratios_in_order(table) if not np.isnan(known)]
    parts = {known: at_ratio(table, known).reset_index(drop=True) for known in ratios}
    if not ratios[0] <= ratio <= ratios[-1]:
        raise InvalidInputError(f"Expected a ratio from {ratios[0]:g} to {ratios[-1]:g}, got {ratio:g}.")
    above = min(known for known in ratios if known >= ratio)
    below = max(known for known in ratios if known <= ratio)
    weight = (ratio - below) / (above - below) if above > below else 0.0
    return (parts[below] + weight * (parts[above] - parts[below])).assign(ratio=float(ratio))


def _of_seed(spectra: pd.DataFrame, seed: int | None) -> pd.DataFrame:
    """The spectra of a seed's networks and of the random one; None is every seed."""
    chosen = spectra if seed is None else spectra[(spectra["seed"] == seed) | spectra["ratio"].isna()]
    if chosen["ratio"].isna().all():
        raise InvalidInputError(f"Expected spectra of seed {seed}, found none.")
    return chosen
