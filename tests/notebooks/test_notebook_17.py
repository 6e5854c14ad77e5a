"""The notebook of tuned backbones in the profile of seconds, against the study and the costs that it shows."""

import pandas as pd
import pytest

from nml_kit.inference import accuracy_intervals, change_in_words, paired_differences, ratio_label
from nml_kit.store import Store
from nml_kit.study import COMPARED, FROZEN, TUNED, Profile, costs, load_profile, run_tuning_study, two_digits
from tests.one_notebook import SMALLEST, run_notebook

pytestmark = [pytest.mark.xdist_group("notebook-17"), pytest.mark.timeout(400)]


def test_the_notebook_compares_tuned_networks_with_nmtune_and_says_what_they_cost(tmp_path, smoke_home):
    ran = run_notebook("17_beyond_the_black_box", tmp_path, smoke_home, profile=SMALLEST, id_task="digits", repeats=2)
    profile: Profile = load_profile(SMALLEST)
    found = run_tuning_study(profile, store=Store(smoke_home), progress=False)
    pd.testing.assert_frame_equal(ran.table("rows"), found.study.rows.assign(experiment="17_beyond_the_black_box"))
    pd.testing.assert_frame_equal(ran.table("selections"), found.selections)
    assert list(dict.fromkeys(found.study.rows["method"])) == list(COMPARED)

    against = paired_differences(found.study.samples, "method", "NMTune", ["task", "protocol", "ratio"])
    tuned = against[against["method"].isin(TUNED)]
    worse, better = int((tuned["high"] < 0).sum()), int((tuned["low"] > 0).sum())
    assert f"clearly better than NMTune in {better}, clearly worse in {worse} and" in ran.titles[1]
    for row in tuned.itertuples(index=False):
        words = f"from NMTune to {row.method}, accuracy {change_in_words(row.mean, row.low, row.high)}"
        assert f"{row.protocol} at {ratio_label(row.ratio)}: {words}" in ran.said
    falls = paired_differences(found.study.samples, "ratio", 0.0, ["protocol", "method"])
    for row in falls.itertuples(index=False):
        words = change_in_words(row.mean, row.low, row.high)
        assert f"{row.protocol}, {row.method}: accuracy {words}" in ran.said.split("noise in pre-training:")[-1]

    pooled = accuracy_intervals(found.study.samples).query("method == 'full' and ratio == 0")["mean"]
    first = next(o.data["text/html"] for o in ran.outputs if "<table" in o.get("data", {}).get("text/html", ""))
    assert all(f">{value:.3f}<" in first for value in pooled)  # as in the figure, not a mean over domains

    seconds = ran.table("tuning_runtime")
    assert seconds.groupby("method").size().to_dict() == dict.fromkeys((*COMPARED, FROZEN), 2)
    ratio = costs(seconds).query("quantity == 'ratio to LP'").set_index("method")["median"]
    assert all(f"{name} {two_digits(ratio[name])}" in ran.titles[2] for name in COMPARED if name != "LP")
    counts = seconds.groupby("method")["parameters"].first()
    assert counts["LP"] < counts["LoRA"] < counts["full"]
    assert counts[FROZEN] == 0
    wide = seconds.pivot(index="repeat", columns="method", values="seconds")
    longer = (wide["full"] / wide["NMTune"]).median()
    assert f"full: {two_digits(longer)} times as long as NMTune" in ran.said
    ran.check_page(figures=3)
