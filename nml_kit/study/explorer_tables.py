"""Tables that the explorers draw: spectra of one choice, their metrics, what changes between two results."""

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
import pandas as pd

from nml_kit.errors import InvalidInputError, unknown_name
from nml_kit.inference import at_ratio, ratios_in_order
from nml_kit.spectrum import cumulative_energy, largest_singular_value_ratio, singular_value_entropy
from nml_kit.study.spectra_tables import domain_names

Quantity = Literal["share", "singular value", "cumulative energy"]
SpectraKey = tuple[str, str, str]
_NOTHING = 1e-3


def spectra_by_choice(spectra: pd.DataFrame) -> dict[SpectraKey, pd.DataFrame]:
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
    keys, values = _matrix(spectra, quantity, seed)
    length, bands = values.shape[1], []
    for ratio in ratios_in_order(keys):
        part = values[at_ratio(keys, ratio).index]
        statistics = {"mean": part.mean(axis=0), "low": part.min(axis=0), "high": part.max(axis=0)}
        bands.append(pd.DataFrame({"ratio": ratio, "index": np.arange(1, length + 1), **statistics}))
    clean = bands[0]["mean"].where(bands[0]["mean"] > _NOTHING * bands[0]["mean"].max())
    return pd.concat([band.assign(change=band["mean"] / clean - 1) for band in bands], ignore_index=True)


def spectral_points(spectra: pd.DataFrame, *, seed: int | None = None) -> pd.DataFrame:
    """SVE and LSVR (nats) of each spectrum in a part of `spectra_by_choice`: ratio, seed, sve, lsvr.

    >>> one = pd.DataFrame({"ratio": 0.0, "seed": 0, "index": [1, 2], "share": 0.5, "total": 3.0})
    >>> spectral_points(one).round(3).to_dict("records")
    [{'ratio': 0.0, 'seed': 0, 'sve': 0.693, 'lsvr': 0.693}]
    """
    keys, shares = _matrix(spectra, "share", seed)
    sve, lsvr = (list(map(metric, shares)) for metric in (singular_value_entropy, largest_singular_value_ratio))
    return keys.assign(sve=sve, lsvr=lsvr)


def page_tables(
    spectra: Mapping[SpectraKey, pd.DataFrame], objective: str, quantity: Quantity, *, most: int = 32
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

    >>> at_any_ratio(pd.DataFrame({"ratio": [0.0, 0.2], "sve": [3.0, 4.0]}), 0.05).to_dict("records")
    [{'ratio': 0.05, 'sve': 3.25}]
    """
    ratios = [known for known in ratios_in_order(table) if not np.isnan(known)]
    parts = {known: at_ratio(table, known).reset_index(drop=True) for known in ratios}
    if not ratios[0] <= ratio <= ratios[-1]:
        raise InvalidInputError(f"Expected a ratio from {ratios[0]:g} to {ratios[-1]:g}, got {ratio:g}.")
    above = min(known for known in ratios if known >= ratio)
    below = max(known for known in ratios if known <= ratio)
    weight = (ratio - below) / (above - below) if above > below else 0.0
    return (parts[below] + weight * (parts[above] - parts[below])).assign(ratio=float(ratio))


def _matrix(spectra: pd.DataFrame, quantity: Quantity, seed: int | None) -> tuple[pd.DataFrame, np.ndarray]:
    """Ratio and seed of each spectrum, and a quantity as a matrix with a row for each."""
    if quantity not in get_args(Quantity):
        raise unknown_name("quantity", quantity, get_args(Quantity))
    if seed is not None:
        spectra = spectra[(spectra["seed"] == seed) | spectra["ratio"].isna()]
        if spectra["ratio"].isna().all():
            raise InvalidInputError(f"Expected spectra of seed {seed}, found none.")
    length = int(spectra["index"].max())
    keys = spectra[["ratio", "seed"]].iloc[::length].reset_index(drop=True)
    values = spectra["share"].to_numpy(np.float64).reshape(-1, length)
    if quantity == "singular value":
        values = values * spectra["total"].to_numpy(np.float64)[::length, None]
    if quantity == "cumulative energy":
        values = np.apply_along_axis(cumulative_energy, 1, values)
    return keys, values
