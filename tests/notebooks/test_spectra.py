"""The notebooks of spectra: their rows and sentences against numpy on the features themselves."""

import numpy as np
import pytest

from nml_kit.store import Store
from nml_kit.study import load_profile, study_features
from tests.one_notebook import SMALLEST

pytestmark = pytest.mark.timeout(400)


def test_changes_of_each_task_and_domain_are_counted(ran, study_again):
    run, study = ran("03_spectra"), study_again(methods=["LP"])
    run.check_page(figures=5)
    assert run.table()["value"].tolist() == study.rows["value"].tolist()
    sve = study.rows.query("metric == 'sve' and ratio == ratio").pivot_table(
        index=["protocol", "task", "test_domain"], columns="ratio", values="value"
    )
    change = sve[0.3] - sve[0.0]
    *_, atlas, _ = run.titles
    assert f"on {(change > 0).sum()} of {len(change)} tasks and held-out domains" in atlas
    assert f"falls in every seed on {(change < 0).sum()}" in atlas
    changes = run.table("changes").query("metric == 'SVE'")
    assert sorted(changes["mean"]) == pytest.approx(sorted(change))
    assert f"SVE changes by {change.min():+.3f} to {change.max():+.3f} nats" in run.said
    assert f"higher with noise in {(change > 0).sum()} of {len(change)} pairs" in run.said
    assert f"SVE rises on {int(change['ID'].iloc[0] > 0)} of 1 ID tasks" in run.titles[1]


def test_metrics_are_what_numpy_gives(ran, smoke_home):
    run = ran("07_spectrum_metrics")
    run.check_page(figures=4)
    rows = run.table()
    for origin, features in study_features(load_profile(SMALLEST), "digits", store=Store(smoke_home)):
        for split in ("train", "test"):
            X = features.values[features.splits == split].astype(np.float64)
            centred = {"none": X, "feature": X - X.mean(axis=0), "sample": X - X.mean(axis=1, keepdims=True)}
            for center, matrix in centred.items():
                shares = np.linalg.svd(matrix, compute_uv=False)
                shares = shares[shares > 0] / shares.sum()
                expected = {"sve": -(shares * np.log(shares)).sum(), "lsvr": -np.log(shares[0])}
                chosen = (rows["ratio"] == origin.ratio) & (rows["split"] == split) & (rows["center"] == center)
                values = rows[chosen].set_index("metric")["value"]
                assert values[["sve", "lsvr"]].to_dict() == pytest.approx(expected, rel=1e-5)
    sve = rows.query("split == 'test' and center == 'none' and metric == 'sve'").set_index("ratio")["value"]
    assert f"SVE changes by {sve[0.3] - sve[0.0]:+.4f}" in run.said


def test_parts_of_the_test_split_end_at_the_whole(ran):
    run = ran("07_spectrum_metrics")
    sizes, rows = run.table("sizes"), run.table()
    assert sizes.groupby("fraction")["draw"].nunique().to_dict() == {0.1: 2, 0.25: 2, 0.5: 2, 0.75: 2, 1.0: 1}
    whole = sizes.query("fraction == 1").set_index(["ratio", "metric"])["value"].sort_index()
    expected = rows.query("split == 'test' and center == 'none'").set_index(["ratio", "metric"])["value"].sort_index()
    assert whole.to_dict() == pytest.approx(expected.to_dict(), nan_ok=True)
