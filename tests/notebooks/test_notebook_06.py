"""The zero-shot notebook, run in the profile of seconds: its table and sentences against the samples."""

import pytest

from nml_kit.inference import accuracy_intervals
from nml_kit.store import Store
from nml_kit.study import above_chance, load_profile, retrieval_samples, zero_shot_samples
from tests.one_notebook import run_notebook

pytestmark = [pytest.mark.xdist_group("notebook-06"), pytest.mark.timeout(400)]


def test_it_claims_no_more_than_the_intervals_do(tmp_path, smoke_home):
    ran = run_notebook("06_zero_shot", tmp_path, smoke_home)
    again = {"store": Store(smoke_home), "jobs": 1, "progress": False}
    samples = zero_shot_samples(load_profile("smoke"), **again)
    margins = accuracy_intervals(above_chance(samples), ["task", "ratio"])
    for row in margins.itertuples(index=False):
        words = "above" if row.low > 0 else "below" if row.high < 0 else "not distinguishable from"
        assert f"{row.mean:+.3f} [{row.low:+.3f}, {row.high:+.3f}], {words} chance" in ran.said
    above = margins.dropna(subset="ratio").groupby("task")["low"].min() > 0
    assert f"on {above.sum()} of {len(above)} tasks" in ran.titles[0]
    rows = ran.table().query("direction != 'image→class'")
    found = retrieval_samples(load_profile("smoke"), **again)
    keys = ["task", "direction", "k", "ratio"]
    expected = found.groupby(keys, dropna=False)[["correct", "chance"]].mean().reset_index()
    both = rows.merge(expected, on=keys, suffixes=("", " expected"))
    assert len(both) == len(expected)
    assert both["mean"].to_numpy() == pytest.approx(both["correct"].to_numpy())
    assert both["chance"].to_numpy() == pytest.approx(both["chance expected"].to_numpy())
    ran.check_page(figures=2)
