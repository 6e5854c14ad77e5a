"""Tables of spectral metrics against the metrics one by one, and counts of rising seeds against hand-made values."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import entropy

from nml_kit.errors import InvalidInputError, UnknownNameError
from nml_kit.features import Features
from nml_kit.spectrum import singular_values, spectrum_metrics
from nml_kit.study import (
    StudyResults,
    at_any_ratio,
    domain_names,
    load_profile,
    mean_spectra,
    metrics_by_choice,
    metrics_by_size,
    noise_changes,
    page_tables,
    quantity_bands,
    spectra_by_choice,
    spectral_points,
    study_features,
    value_bands,
)


@pytest.fixture(scope="module")
def features() -> Features:
    values = np.random.default_rng(0).standard_normal((90, 8)) @ np.diag(np.arange(1.0, 9.0)) + 1
    names = np.array([f"s{n}" for n in range(90)])
    splits = np.array(["train", "test", "test"])[np.arange(90) % 3]
    return Features("made", values, names, np.zeros(90, int), ("a",), np.full(90, "d"), splits, "f")


def test_choices_are_those_of_singular_values(features):
    table = metrics_by_choice(features).set_index(["split", "center", "metric"])["value"].sort_index()
    for split in ("train", "test"):
        for center in ("none", "feature", "sample"):
            metrics = spectrum_metrics(singular_values(features.values[features.splits == split], center=center))
            assert table[split, center].to_dict() == pytest.approx(metrics, rel=1e-6, nan_ok=True)


def test_parts_of_the_test_split(features):
    table = metrics_by_size(features, fractions=(0.25, 0.5, 1.0), draws=3)
    assert table.groupby("fraction")["n"].unique().map(list).to_dict() == {0.25: [15], 0.5: [30], 1.0: [60]}
    assert table.groupby("fraction")["draw"].nunique().to_dict() == {0.25: 3, 0.5: 3, 1.0: 1}
    whole = table.query("fraction == 1").set_index("metric")["value"]
    metrics = spectrum_metrics(singular_values(features.values[features.splits == "test"]))
    assert whole.to_dict() == pytest.approx(metrics, nan_ok=True)
    small = table.query("fraction == 0.25 and metric == 'sve'")["value"]
    assert small.nunique() == 3
    pd.testing.assert_frame_equal(table, metrics_by_size(features, fractions=(0.25, 0.5, 1.0), draws=3))
    with pytest.raises(InvalidInputError, match=r"fractions in \(0, 1\]"):
        metrics_by_size(features, fractions=(0.0,), draws=1)


def test_changes_are_paired_by_seed():
    values = {
        (0.0, 0): 1.0,
        (0.0, 1): 5.0,
        (0.1, 0): 9.0,
        (0.1, 1): 0.0,
        (0.3, 0): 1.5,
        (0.3, 1): 5.1,
        (np.nan, 0): 99.0,
    }
    table = pd.DataFrame([(*key, "sve", value) for key, value in values.items()],
                         columns=["ratio", "seed", "metric", "value"])  # fmt: skip
    (row,) = noise_changes(table, ["metric"]).to_dict("records")
    expected = {"clean": 3.0, "noisy": 3.3, "mean": 0.3, "low": 0.1, "high": 0.5, "rising": 2, "pairs": 2}
    assert {key: row[key] for key in expected} == pytest.approx(expected)
    assert row["consistent"]
    table.loc[table["ratio"].eq(0.3) & table["seed"].eq(1), "value"] = 4.0
    (row,) = noise_changes(table, ["metric"]).to_dict("records")
    assert (row["rising"], row["consistent"]) == (1, False)
    with pytest.raises(InvalidInputError, match="at least two ratios"):
        noise_changes(table.query("ratio == 0"), ["metric"])


def test_bands_hold_the_smallest_and_the_largest():
    table = pd.DataFrame({"ratio": [0.3, 0.3, 0.0], "value": [1.0, 2.0, 5.0]})
    assert value_bands(table, ["ratio"]).to_numpy().tolist() == [[0.3, 1.5, 1.0, 2.0], [0.0, 5.0, 5.0, 5.0]]


def test_an_unknown_task_is_named():
    with pytest.raises(InvalidInputError, match=r"task of profile 'smoke' \(digits.*got 'cats'"):
        next(study_features(load_profile("smoke"), "cats"))


def test_mean_spectra_are_means_over_seeds_of_each_held_out_domain():
    shares = {("all", "ID", 0): [0.6, 0.4], ("all", "ID", 1): [0.8, 0.2], ("outline", "OOD", 0): [0.5, 0.5]}
    spectra = pd.DataFrame([
        {"task": "icons", "protocol": protocol, "test_domain": domain, "method": method, "ratio": 0.1, "seed": seed,
         "index": place, "share": share if method == "LP" else np.nan}
        for (domain, protocol, seed), values in shares.items() for place, share in enumerate(values, start=1)
        for method in ("LP", "NMTune")
    ])  # fmt: skip
    table = mean_spectra(spectra).set_index(["panel", "index"])["share"]
    expected = {("ID · icons", 1): 0.7, ("ID · icons", 2): 0.3, ("OOD · icons · outline", 1): 0.5,
                ("OOD · icons · outline", 2): 0.5}  # fmt: skip
    assert table.to_dict() == pytest.approx(expected)


def test_a_panel_is_found_by_its_name_even_if_that_holds_the_mark_between_its_parts():
    parts = ["OOD", "a · b.parquet", "c · d"]
    table = pd.DataFrame([parts, ["ID", "a", "all"]], columns=["protocol", "task", "test_domain"])
    results = StudyResults("p", table, table, pd.concat([table, table]), None)
    panels = [results.panel(name) for name in domain_names(table)]
    assert panels == [tuple(parts), ("ID", "a", "all")]
    assert [panel.held_out for panel in panels] == [["c · d"], []]
    with pytest.raises(UnknownNameError, match="panel 'ID · b'"):
        results.panel("ID · b")


def test_two_panels_of_one_name_are_refused():
    table = pd.DataFrame({"protocol": "OOD", "task": ["a", "a · b"], "test_domain": ["b", "all"]})
    with pytest.raises(InvalidInputError, match="one task and domain of the name 'OOD · a · b'"):
        StudyResults("p", table, table, table, None).panel("OOD · a · b")


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
