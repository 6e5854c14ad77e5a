"""The notebook of noisy labels downstream in the profile of seconds, against the study that it shows."""

import pandas as pd
import pytest

from nml_kit.inference import change_in_words, paired_differences
from nml_kit.store import Store
from nml_kit.study import load_profile, run_study
from tests.one_notebook import SMALLEST, run_notebook

pytestmark = [pytest.mark.xdist_group("notebook-11"), pytest.mark.timeout(400)]


def test_the_notebook_compares_methods_on_the_same_flipped_labels(tmp_path, smoke_home):
    ran = run_notebook("11_noisy_downstream_labels", tmp_path, smoke_home, profile=SMALLEST)
    study = run_study(load_profile(SMALLEST), label_noise=(0.0, 0.2, 0.4), store=Store(smoke_home), progress=False)
    pd.testing.assert_frame_equal(ran.table("rows"), study.rows.assign(experiment="11_noisy_downstream_labels"))
    most = study.samples.query("ratio == ratio and label_noise == 0.4")
    against = paired_differences(most, "method", "LP", ["protocol", "ratio"])
    for row in against.itertuples(index=False):
        assert f"from LP to {row.method}, accuracy {change_in_words(row.mean, row.low, row.high)}" in ran.said
    loss = paired_differences(study.samples.query("ratio == ratio"), "label_noise", 0.0, ["protocol", "method"])
    for row in loss.query("label_noise == 0.4").itertuples(index=False):
        assert f"{row.protocol}, {row.method}: accuracy {change_in_words(row.mean, row.low, row.high)}" in ran.said
    ran.check_page(figures=2)
