"""The notebook of memorisation: what it says against the histories and scores of the same networks."""

import pytest

from nml_kit.inference import change_in_words, paired_differences
from nml_kit.store import Store
from nml_kit.study import load_profile, recipe_variants, run_study
from tests.one_notebook import SMALLEST, NotebookRun, run_notebook

pytestmark = [pytest.mark.xdist_group("notebook-14"), pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def run(tmp_path_factory, smoke_home) -> NotebookRun:
    return run_notebook(
        "14_memorisation", tmp_path_factory.mktemp("nb14"), smoke_home, profile=SMALLEST, ratios=[0.0, 0.2]
    )


def test_shares_memorised_and_drops_are_those_of_each_recipe(run, smoke_home):
    run.check_page(figures=2)
    curves, rows = run.table("curves"), run.table()
    assert set(curves["ratio"]) == {0.0, 0.2}
    assert len(set(rows["variant"])) == 4
    last = curves[curves["ratio"] == 0.2].groupby("variant")["memorised"].last()
    for name, profile in recipe_variants(load_profile(SMALLEST), ratios=[0.0, 0.2]).items():
        assert f"{last[name]:.0%} {name}" in run.titles[0]
        study = run_study(profile, methods=("LP",), store=Store(smoke_home), progress=False)
        assert rows[rows["variant"] == name]["value"].tolist() == study.rows["value"].tolist()
        drops = paired_differences(study.samples, "ratio", 0.0, ["protocol"]).set_index("protocol")
        words = [change_in_words(*drops.loc[protocol, ["mean", "low", "high"]]) for protocol in ("ID", "OOD")]
        assert f"{name} ({last[name]:.0%} memorised): ID accuracy {words[0]}, OOD accuracy {words[1]}" in run.said
