"""The notebooks of pre-training: curves, recipes, and what contrastive networks do without a head."""

import pandas as pd
import pytest

from nml_kit.inference import accuracy_intervals, changes_in_words, paired_differences
from nml_kit.store import Store
from nml_kit.study import above_chance, load_profile, pretraining_history, retrieval_samples, zero_shot_samples
from tests.one_notebook import SMALLEST

pytestmark = pytest.mark.timeout(400)


def test_curves_are_what_the_cards_of_the_networks_hold(ran, smoke_home):
    run = ran("05_pretraining")
    run.check_page(figures=3)
    history = pretraining_history(load_profile(SMALLEST), store=Store(smoke_home), jobs=1, progress=False)
    pd.testing.assert_frame_equal(run.table("history"), history)
    last = history[history["epoch"] == history["epoch"].max()].set_index("ratio")
    clean, noisy = last.loc[0.0], last.loc[0.3]
    assert f"goes from {clean.test_accuracy:.3f} to {noisy.test_accuracy:.3f}" in run.titles[0]
    assert f"{noisy.memorised:.3f} of the noise is memorised (supervised)" in run.titles[0]
    assert f"at 30 %: clean accuracy {noisy.test_accuracy - clean.test_accuracy:+.3f} against" in run.said
    assert f"{noisy.memorised:.3f} after the last" in run.said


def test_each_recipe_is_compared_with_its_own_clean_network(ran):
    run = ran("05_pretraining")
    curves, rows = run.table("curves"), run.table()
    names = list(rows["variant"].unique())
    assert names == ["as above", "twice the epochs", "twice the epochs, no augmentation", "a narrower network"]
    last = curves[curves["ratio"] == 0.3].groupby("variant")["memorised"].last()
    assert all(f"{last[name]:.0%} {name}" in run.titles[1] for name in names)
    assert curves.groupby("variant")["epoch"].max().reindex(names).tolist() == [1, 2, 2, 1]
    accuracy = rows.query("metric == 'accuracy' and protocol == 'ID' and ratio == ratio")
    change = accuracy.pivot_table(index="variant", columns="ratio", values="value")
    for name, mean in (change[0.3] - change[0.0]).items():
        assert f"{name}, ID at 30 %: accuracy" in run.said
        sentence = run.said.split(f"{name}, ID at 30 %: accuracy ")[1].split("\n")[0]
        assert f"{abs(mean):.3f}" in sentence


def test_zero_shot_claims_no_more_than_the_intervals_do(ran, smoke_home):
    run, again = ran("06_zero_shot"), {"store": Store(smoke_home), "jobs": 1, "progress": False}
    run.check_page(figures=2)
    samples = zero_shot_samples(load_profile(SMALLEST), **again)
    margins = accuracy_intervals(above_chance(samples), ["task", "ratio"])
    assert changes_in_words(margins, "{task} at {ratio}: from chance to zero-shot, accuracy") in run.said
    falls = paired_differences(samples, "ratio", 0.0, ["task"])
    assert changes_in_words(falls, "{task} at {ratio}: zero-shot accuracy") in run.said
    above = margins.dropna(subset="ratio").groupby("task")["low"].min() > 0
    assert f"on {above.sum()} of {len(above)} tasks" in run.titles[0]
    by_hand = samples.query("ratio == 0.3 and seed == 0 and task == 'icons-pretrain'")["correct"].mean()
    assert f"zero-shot accuracy {by_hand:.3f} (chance" in run.said


def test_retrieval_is_that_of_the_samples(ran, smoke_home):
    rows = ran("06_zero_shot").table().query("direction != 'image→class'")
    samples = retrieval_samples(load_profile(SMALLEST), store=Store(smoke_home), jobs=1, progress=False)
    keys = ["task", "direction", "k", "ratio"]
    expected = samples.groupby(keys, dropna=False)[["correct", "chance"]].mean().reset_index()
    both = rows.merge(expected, on=keys, suffixes=("", " expected"))
    assert len(both) == len(expected)
    assert both["mean"].to_numpy() == pytest.approx(both["correct"].to_numpy())
    assert both["chance"].to_numpy() == pytest.approx(both["chance expected"].to_numpy())
