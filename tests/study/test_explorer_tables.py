"""What the spectrum explorer draws, from made-up spectra whose answers are known."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import entropy

from nml_kit.errors import InvalidInputError, UnknownNameError
from nml_kit.study import at_any_ratio, page_tables, quantity_bands, spectra_by_choice, spectral_points

RATIOS, SEEDS, LENGTH = (0.0, 0.1, 0.3), (0, 1, 2), 6
KEY = ("supervised", "ID · digits", "LP")


@pytest.fixture
def values():
    generator = np.random.default_rng(0)
    return {(ratio, seed): np.sort(generator.random(LENGTH) + 0.1)[::-1] for ratio in RATIOS for seed in SEEDS} | {
        (np.nan, 0): np.linspace(6, 1, LENGTH)
    }


@pytest.fixture
def spectra(values):
    frames = [
        pd.DataFrame({
            "objective": KEY[0], "task": "digits", "protocol": "ID", "test_domain": "all", "method": KEY[2],
            "ratio": ratio, "seed": seed, "index": np.arange(1, LENGTH + 1), "share": one / one.sum(),
            "total": one.sum(),
        })
        for (ratio, seed), one in values.items()
    ]  # fmt: skip
    return pd.concat(frames).sample(frac=1, random_state=0)  # in any order


def test_bands_are_mean_least_and_largest_over_seeds(spectra, values):
    bands = quantity_bands(spectra_by_choice(spectra)[KEY], "singular value")
    found = bands[bands["ratio"] == 0.1]
    stack = np.stack([values[0.1, seed] for seed in SEEDS])
    np.testing.assert_allclose(found["mean"], stack.mean(axis=0))
    np.testing.assert_allclose(found["low"], stack.min(axis=0))
    np.testing.assert_allclose(found["high"], stack.max(axis=0))
    clean = np.mean([values[0.0, seed] for seed in SEEDS], axis=0)
    np.testing.assert_allclose(found["change"], stack.mean(axis=0) / clean - 1)
    assert len(bands[bands["ratio"].isna()]) == LENGTH


def test_quantities_are_those_of_numpy(spectra, values):
    one = values[0.3, 1]
    expected = {"share": one / one.sum(), "singular value": one, "cumulative energy": np.cumsum(one**2) / (one @ one)}
    for quantity, numbers in expected.items():
        bands = quantity_bands(spectra_by_choice(spectra)[KEY], quantity, seed=1)
        np.testing.assert_allclose(bands.loc[bands["ratio"] == 0.3, "mean"], numbers)


def test_points_are_entropy_and_log_share(spectra, values):
    points = spectral_points(spectra_by_choice(spectra)[KEY])
    assert len(points) == len(values)
    for row in points[points["ratio"].notna()].itertuples():
        one = values[row.ratio, row.seed]
        assert row.sve == pytest.approx(entropy(one))
        assert row.lsvr == pytest.approx(-np.log(one[0] / one.sum()))


def test_between_ratios_lies_the_straight_line_and_at_them_what_was_measured(spectra):
    bands = quantity_bands(spectra_by_choice(spectra)[KEY], "share")
    measured = {ratio: bands.loc[bands["ratio"] == ratio, "mean"].to_numpy() for ratio in RATIOS}
    for ratio in RATIOS:
        np.testing.assert_allclose(at_any_ratio(bands, ratio)["mean"], measured[ratio])
    middle = at_any_ratio(bands, 0.15)
    np.testing.assert_allclose(middle["mean"], 0.75 * measured[0.1] + 0.25 * measured[0.3])
    assert middle["index"].tolist() == list(range(1, LENGTH + 1))


def test_page_tables_hold_some_indices_of_one_objective(spectra):
    more = pd.concat([spectra, spectra.assign(objective="contrastive", method="NMTune")])
    bands, points = page_tables(spectra_by_choice(more), "contrastive", "share", most=4)
    assert set(bands["method"]) == set(points["method"]) == {"NMTune"}
    assert {1, LENGTH} <= set(bands["index"])
    assert bands.groupby("ratio", dropna=False).size().unique().tolist() == [4]


def test_errors_name_what_there_is(spectra):
    part = spectra_by_choice(spectra)[KEY]
    with pytest.raises(UnknownNameError, match="Unknown quantity 'energy'"):
        quantity_bands(part, "energy")
    with pytest.raises(InvalidInputError, match="spectra of seed 9"):
        quantity_bands(part, "share", seed=9)
    with pytest.raises(InvalidInputError, match=r"from 0 to 0\.3, got 0\.5"):
        at_any_ratio(quantity_bands(part, "share"), 0.5)
