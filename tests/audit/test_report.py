"""The audit: its numbers against numpy, its rule in every direction, and that test labels choose nothing."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from nml_kit import audit
from nml_kit.audit import report
from nml_kit.audit.inputs import features_from_arrays
from nml_kit.errors import InvalidInputError
from nml_kit.features import Features
from nml_kit.store import Store
from nml_kit.study import reference_dir

FAST = audit.AuditSettings(seeds=(0,), epochs=4)
CHANCE = 0.5


def parity(samples: int = 400) -> Features:
    """Classes that no plane parts: the sign of a product."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((samples, 6)).astype(np.float32)
    domains = generator.choice(["left", "right"], samples)
    return features_from_arrays(X, X[:, 0] * X[:, 1] > 0, domains=domains)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> audit.Audit:
    store = Store(tmp_path_factory.mktemp("store"))
    settings = audit.AuditSettings(seeds=(0, 1), epochs=40)
    return audit.audit_features(parity(), settings=settings, store=store, jobs=1, progress=False)


def test_where_a_plane_cannot_part_the_classes_an_mlp_is_advised(found):
    accuracy = found.samples.query("protocol == 'ID'").groupby("method")["correct"].mean()
    assert accuracy["LP"] == pytest.approx(CHANCE, abs=0.15)
    assert accuracy["MLP"] > 0.8
    differences = audit.head_differences(found.samples)
    assert audit.advised_head(differences) in ("MLP", "NMTune")
    assert audit.recommendation(differences)[0].startswith(f"ID, use {audit.advised_head(differences)}: accuracy rises")


def test_folds_are_in_domain_and_each_domain_held_out(found):
    held_out = found.selections.query("protocol == 'OOD'")["test_domain"].unique()
    assert sorted(held_out) == ["left", "right"]
    features = found.features
    assert [fold.test_domains for fold in report.audit_folds(features, ["left"])] == [None, ("left",)]
    with pytest.raises(InvalidInputError, match="among left, right, got 'up'"):
        report.audit_folds(features, ["up"])
    alone = replace(features, domains=np.full(len(features), "all"))
    assert [fold.protocol for fold in report.audit_folds(alone)] == ["ID"]


def test_the_exported_head_is_the_one_that_was_tested(found):
    test = found.features.select(split="test")
    for method in ("LP", "MLP", "NMTune"):
        said = found.samples.query("protocol == 'ID' and method == @method and seed == 1").set_index("sample")
        head = audit.chosen_head(found, method, seed=1)
        np.testing.assert_array_equal(head.predict(test.values), said["prediction"].loc[test.ids])
    with pytest.raises(InvalidInputError, match="got 'ridge'"):
        audit.chosen_head(found, "ridge")


def test_labels_of_the_test_split_choose_nothing(tmp_path):
    features = parity(120)
    labels = features.labels.copy()
    labels[features.splits == "test"] = 1 - labels[features.splits == "test"]
    chosen = []
    for one in (features, replace(features, labels=labels, fingerprint="flipped")):
        run = audit.audit_features(one, settings=FAST, store=Store(tmp_path), jobs=1, progress=False)
        chosen.append(run.selections)
    pd.testing.assert_frame_equal(*chosen)


@pytest.mark.parametrize(
    ("mlp", "nmtune", "between", "advised"),
    [(0.0, 0.0, 0.0, "LP"), (0.1, 0.1, 0.0, "MLP"), (0.1, 0.2, 0.1, "NMTune"), (0.0, 0.1, 0.0, "NMTune"),
     (-0.1, -0.1, 0.0, "LP"), (0.1, 0.0, -0.1, "MLP")],
)  # fmt: skip
def test_the_rule_in_every_direction(mlp, nmtune, between, advised):
    effects = {"MLP − LP": mlp, "NMTune − LP": nmtune, "NMTune − MLP": between}
    rows = [{"protocol": protocol, "contrast": contrast, "mean": mean, "low": mean - 0.05, "high": mean + 0.05}
            for protocol in ("ID", "OOD") for contrast, mean in effects.items()]  # fmt: skip
    table = pd.DataFrame(rows)
    assert audit.advised_head(table) == advised
    said = audit.recommendation(table)
    assert [sentence.split(",")[0] for sentence in said] == ["ID", "OOD"]
    assert all(("do not bother" if advised == "LP" else f"use {advised}") in sentence for sentence in said)


def test_the_card_has_the_metrics_of_the_test_split_and_of_halves_of_it():
    features = parity()
    values = features.values[features.splits == "test"].astype(np.float64)
    sigma = np.linalg.svd(values, compute_uv=False)
    share = sigma / sigma.sum()
    card = audit.spectral_card(features, draws=30).set_index("metric")
    assert card.loc["sve", "value"] == pytest.approx(-(share * np.log(share)).sum())
    assert card.loc["lsvr", "value"] == pytest.approx(-np.log(share[0]))
    ranged = card.dropna()  # six directions are too few for an exponent
    assert len(ranged) >= 5
    assert (ranged["low"] <= ranged["high"]).all()
    assert (card["n"] == len(values)).all()
    np.testing.assert_allclose(audit.tested_spectrum(features), share)
    pd.testing.assert_frame_equal(audit.spectral_card(features), audit.spectral_card(features))


def test_known_spectra_are_those_of_the_reference():
    icons = [("task", "==", "icons"), ("method", "==", "LP")]
    results = SimpleNamespace(spectra=pd.read_parquet(reference_dir() / "spectra.parquet", filters=icons))
    known = audit.known_spectra(results)
    assert sorted(known["ratio"].unique()) == [0.0, 0.05, 0.1, 0.2, 0.3]
    mine = results.spectra.query(
        "objective == 'supervised' and protocol == 'ID' and task == 'icons' and method == 'LP'"
    )
    first = mine[(mine["ratio"] == 0.1) & (mine["index"] == 1)]["share"].mean()
    drawn = known[known["ratio"] == 0.1]
    assert drawn["height"].iloc[0] == pytest.approx(first * len(drawn))
    assert drawn["height"].mean() == pytest.approx(1, abs=1e-5)
    assert drawn["position"].iloc[[0, -1]].tolist() == pytest.approx([0.5 / len(drawn), 1 - 0.5 / len(drawn)])
