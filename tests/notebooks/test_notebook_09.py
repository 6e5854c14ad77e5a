"""The ablation notebook in the profile of seconds, against the study that it shows."""

import pandas as pd
import pytest

from nml_kit.inference import change_in_words
from nml_kit.store import Store
from nml_kit.study import FULL, VARIANTS, load_profile, make_variant, run_study, variant_differences
from tests.one_notebook import SMALLEST, run_notebook

pytestmark = [pytest.mark.xdist_group("notebook-09"), pytest.mark.timeout(400)]


def test_the_notebook_shows_the_variants_of_the_study(tmp_path, smoke_home):
    ran = run_notebook("09_ablation", tmp_path, smoke_home, profile=SMALLEST)
    settings = {"methods": (FULL, *VARIANTS), "make": make_variant}
    study = run_study(load_profile(SMALLEST), **settings, store=Store(smoke_home), progress=False)
    pd.testing.assert_frame_equal(ran.table("rows"), study.rows.assign(experiment="09_ablation"))
    found = variant_differences(study.samples)
    below, above = int((found["high"] < 0).sum()), int((found["low"] > 0).sum())
    assert ran.titles == [
        f"{below} of {len(found)} differences to NMTune are clearly below zero, {above} clearly above, "
        f"{len(found) - below - above} not clear"
    ]
    for row in found[found["group"] == "terms"].itertuples(index=False):
        assert f"{row.protocol}, {row.method}: accuracy {change_in_words(row.mean, row.low, row.high)}" in ran.said
    ran.check_page(figures=1)
