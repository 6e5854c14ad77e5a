"""The notebook of other repairs in the profile of seconds, against the study that it shows."""

import pandas as pd
import pytest

from nml_kit.inference import paired_differences
from nml_kit.store import Store
from nml_kit.study import load_profile, run_repair_study
from tests.one_notebook import SMALLEST, run_notebook

pytestmark = [pytest.mark.xdist_group("notebook-12"), pytest.mark.timeout(400)]


def test_the_notebook_says_where_nmtune_is_better_and_worse(tmp_path, smoke_home):
    ran = run_notebook("12_other_repairs", tmp_path, smoke_home, profile=SMALLEST)
    found = run_repair_study(load_profile(SMALLEST), store=Store(smoke_home), progress=False)
    pd.testing.assert_frame_equal(ran.table("rows"), found.study.rows.assign(experiment="12_other_repairs"))
    pd.testing.assert_frame_equal(ran.table("selections"), found.selections)
    samples = found.study.samples.query("ratio == ratio")
    rivals = paired_differences(samples, "method", "NMTune", ["task", "protocol"])
    worse, better = int((rivals["low"] > 0).sum()), int((rivals["high"] < 0).sum())
    assert f"clearly better in {better}, clearly worse in {worse} and" in ran.titles[0]
    for (protocol, task), part in rivals[rivals["low"] > 0].groupby(["protocol", "task"]):
        assert f"{protocol} {task} than {', '.join(part['method'])}" in ran.said
    chosen = found.selections.query("ratio == ratio and method == 'NMTune'")
    shares = chosen.groupby("candidate", sort=False)["chosen"].mean()
    assert f"{shares.idxmax()}, in {shares.max():.0%} of the folds" in ran.titles[1]
    ran.check_page(figures=2)
