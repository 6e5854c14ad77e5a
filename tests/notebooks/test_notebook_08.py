"""The atlas of spectra: counts of rising tasks against the rows of the study."""

import pytest

from nml_kit.store import Store
from nml_kit.study import load_profile, run_study
from tests.one_notebook import NotebookRun, run_notebook

pytestmark = [pytest.mark.xdist_group("notebook-08"), pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def run(tmp_path_factory, smoke_home) -> NotebookRun:
    return run_notebook("08_spectra_atlas", tmp_path_factory.mktemp("nb08"), smoke_home)


def test_counts_of_the_title_are_those_of_the_rows(run, smoke_home):
    run.check_page(figures=2)
    study = run_study(load_profile("smoke"), methods=("LP",), store=Store(smoke_home), progress=False)
    sve = study.rows.query("metric == 'sve' and ratio == ratio").pivot_table(
        index=["protocol", "task", "test_domain"], columns="ratio", values="value"
    )
    change = sve[0.3] - sve[0.0]
    assert f"on {(change > 0).sum()} of {len(change)} tasks and held-out domains" in run.titles[0]
    assert f"falls in every seed on {(change < 0).sum()}" in run.titles[0]
    changes = run.table("changes").query("metric == 'SVE'")
    assert sorted(changes["mean"]) == pytest.approx(sorted(change))
    assert f"mean change {change.min():+.3f} to {change.max():+.3f} nats" in run.said
    assert run.table()["value"].tolist() == study.rows["value"].tolist()
