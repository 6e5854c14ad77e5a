"""The notebook of spectral metrics: its rows and sentences against numpy on the features themselves."""

import numpy as np
import pytest

from nml_kit.store import Store
from nml_kit.study import load_profile, study_features
from tests.one_notebook import NotebookRun, run_notebook

pytestmark = [pytest.mark.xdist_group("notebook-07"), pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def run(tmp_path_factory, smoke_home) -> NotebookRun:
    return run_notebook("07_spectrum_metrics", tmp_path_factory.mktemp("nb07"), smoke_home, draws=2)


def test_figures_and_sentences(run):
    run.check_page(figures=4)
    rows = run.table().query("split == 'test' and center == 'none' and metric == 'sve'").set_index("ratio")["value"]
    assert f"SVE changes by {rows[0.3] - rows[0.0]:+.4f}" in run.said


def test_rows_are_what_numpy_gives(run, smoke_home):
    rows = run.table()
    for origin, features in study_features(load_profile("smoke"), "icons", store=Store(smoke_home)):
        for split in ("train", "test"):
            X = features.values[features.splits == split].astype(np.float64)
            centred = {"none": X, "feature": X - X.mean(axis=0), "sample": X - X.mean(axis=1, keepdims=True)}
            for center, matrix in centred.items():
                shares = np.linalg.svd(matrix, compute_uv=False)
                shares = shares[shares > 0] / shares.sum()
                expected = {"sve": -(shares * np.log(shares)).sum(), "lsvr": -np.log(shares[0])}
                chosen = (rows["ratio"] == origin.ratio) & (rows["split"] == split) & (rows["center"] == center)
                found = rows[chosen].set_index("metric")["value"]
                assert found[["sve", "lsvr"]].to_dict() == pytest.approx(expected, rel=1e-5)


def test_parts_end_at_the_whole_split(run):
    sizes, rows = run.table("sizes"), run.table()
    assert sizes.groupby("fraction")["draw"].nunique().to_dict() == {0.1: 2, 0.25: 2, 0.5: 2, 0.75: 2, 1.0: 1}
    whole = sizes.query("fraction == 1").set_index(["ratio", "metric"])["value"].sort_index()
    expected = rows.query("split == 'test' and center == 'none'").set_index(["ratio", "metric"])["value"].sort_index()
    assert whole.to_dict() == pytest.approx(expected.to_dict(), nan_ok=True)
