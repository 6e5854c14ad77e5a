"""The notebook on pre-training, run in the profile of seconds: its rows and sentences against the networks' cards."""

import pandas as pd
import pytest

from nml_kit.store import Store
from nml_kit.study import load_profile, pretraining_history
from tests.one_notebook import run_notebook

pytestmark = [pytest.mark.xdist_group("notebook-05"), pytest.mark.timeout(400)]


def test_it_shows_what_the_cards_hold(tmp_path, smoke_home):
    ran = run_notebook("05_pretraining", tmp_path, smoke_home, objective="contrastive")
    history = pretraining_history(load_profile("smoke"), "contrastive", store=Store(smoke_home), jobs=1, progress=False)
    pd.testing.assert_frame_equal(ran.table(), history)
    [title], said = ran.titles, ran.said
    last = history[history["epoch"] == 2].set_index("ratio")
    clean, noisy = last.loc[0.0], last.loc[0.3]
    assert f"goes from {clean.test_accuracy:.3f} to {noisy.test_accuracy:.3f}" in title
    assert f"{noisy.memorised:.3f} of the noise is memorised (contrastive)" in title
    assert f"(one seed, so no interval): at 30 % {noisy.test_accuracy - clean.test_accuracy:+.3f}." in said
    assert f"{noisy.memorised:.3f} after the last, 2" in said
    ran.check_page(figures=1)
