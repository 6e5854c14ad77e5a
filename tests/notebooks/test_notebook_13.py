"""The notebook of the best ratio: what it says against the same scores counted directly."""

import pytest

from nml_kit.inference import best_ratio_table, best_ratios
from nml_kit.store import Store
from nml_kit.study import load_profile, run_study
from tests.one_notebook import NotebookRun, run_notebook

pytestmark = [pytest.mark.xdist_group("notebook-13"), pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def run(tmp_path_factory, smoke_home) -> NotebookRun:
    return run_notebook("13_which_ratio_is_best", tmp_path_factory.mktemp("nb13"), smoke_home, method="NMTune")


def test_probabilities_and_verdicts(run, smoke_home):
    run.check_page(figures=2)
    study = run_study(load_profile("smoke"), store=Store(smoke_home), progress=False)
    samples = study.samples.query("method == 'NMTune' and ratio == ratio")
    rows = run.table()
    assert rows.groupby(["task", "protocol"])["probability"].sum().tolist() == pytest.approx([1.0] * 7)
    accuracy = samples.groupby(["task", "protocol", "ratio"])["correct"].mean()
    assert rows.set_index(["task", "protocol", "ratio"])["accuracy"].to_dict() == pytest.approx(accuracy.to_dict())
    verdicts = best_ratios(best_ratio_table(samples))
    for protocol, part in verdicts.groupby("protocol"):
        assert f"{part['established'].sum()} of {len(part)} {protocol}" in run.titles[1]
        assert f"{part['includes_clean'].sum()} of {len(part)} {protocol}" in run.said
    best = accuracy.unstack("ratio").idxmax(axis=1)
    assert f"0 % on {(best == 0).sum()}, 30 % on {(best == 0.3).sum()}" in run.titles[0]
