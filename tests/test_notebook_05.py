"""The notebook on pre-training, run in the profile of seconds: its rows and sentences against the networks' cards."""

import pandas as pd
import pytest

from nml_kit.origins import Origin, pretrained_backbone, pretraining_task
from nml_kit.profiles import load_profile
from nml_kit.store import Store
from tests.one_notebook import NotebookRun, run_notebook

pytestmark = [pytest.mark.xdist_group("notebook-05"), pytest.mark.timeout(400)]


@pytest.fixture(scope="module", params=["supervised", "contrastive"])
def run(request, tmp_path_factory) -> tuple[str, NotebookRun]:
    root = tmp_path_factory.mktemp("nb05")
    return request.param, run_notebook("05_pretraining", root, objective=request.param)


def test_rows_are_the_histories_of_the_cards(run):
    objective, notebook = run
    notebook.check_page(figures=1)
    profile, rows = load_profile("smoke"), notebook.table()
    assert set(rows["objective"]) == {objective}
    for ratio in profile.ratios:
        origin = Origin(ratio, 0, objective)
        backbone = pretrained_backbone(profile, pretraining_task(profile), origin, store=Store(notebook.home))
        found = rows[rows["ratio"] == ratio].sort_values("epoch").reset_index(drop=True)
        history = pd.DataFrame(backbone.card["history"])
        columns = list(history.columns)
        pd.testing.assert_frame_equal(found[columns], history, check_dtype=False)
    assert f"{rows['test_accuracy'].iloc[-1]:.3f}" in notebook.titles[0]


def test_one_seed_gives_no_interval(run):
    _, notebook = run
    assert "one seed: no interval" in notebook.said
    assert "clean accuracy is highest after epoch" in notebook.said
