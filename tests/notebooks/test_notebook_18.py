"""The notebook of real vision models in the profile of seconds, against the tables that it wrote."""

import numpy as np
import pytest

from nml_kit.audit import head_differences
from nml_kit.inference import accuracy_intervals, change_in_words, overall_verdict, paired_differences
from nml_kit.study import RESULT_COLUMNS
from tests.one_notebook import NotebookRun, run_notebook

pytestmark = [pytest.mark.xdist_group("notebook-18"), pytest.mark.timeout(400)]
MODEL, BASELINE = "packaged:efficientnet-lite0", "compact-resnet"
FEW = {
    "id_tasks": ["icons-badges"],
    "ood_tasks": {"icons-badges": ["colour"]},
    "sources": {"icons-badges": ["duotone"]},
    "epochs": 2,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, smoke_home) -> NotebookRun:
    return run_notebook("18_practical_vision", tmp_path_factory.mktemp("nb18"), smoke_home, **FEW)


def test_rows_are_of_both_models_on_the_tasks_asked_for(run):
    run.check_page(figures=2)
    rows = run.table()
    assert tuple(rows.columns) == RESULT_COLUMNS
    assert set(rows["experiment"]) == {"18_practical_vision"}
    assert set(rows["backbone"]) == {MODEL, BASELINE}
    found = rows.groupby(["protocol", "train_domain", "test_domain", "method"]).size()
    assert found.index.tolist() == [
        (protocol, "duotone", tested, method)
        for protocol, tested in (("ID", "duotone"), ("OOD", "colour"))
        for method in ("LP", "MLP", "NMTune")
    ]
    assert np.isnan(rows["ratio"]).all()  # nobody knows the noise


def test_the_table_and_the_sentences_are_those_of_the_samples(run):
    samples = run.table("samples")
    (table,) = [o.data["text/html"] for o in run.outputs if ">interval<" in o.get("data", {}).get("text/html", "")]
    for score in accuracy_intervals(samples, ["backbone", "protocol", "method"]).itertuples():
        assert f">{score.mean:.3f}<" in table
        assert f">[{score.low:.3f}, {score.high:.3f}]<" in table
    bought = paired_differences(samples.query("method == 'LP'"), "backbone", BASELINE, ["protocol"])
    for row in bought.itertuples():
        assert f"linear probe {change_in_words(row.mean, row.low, row.high)}" in run.said
    gains = head_differences(samples.query("backbone == @MODEL"), ["task", "protocol"]).query(
        "contrast == 'NMTune − LP'"
    )
    above, below = (gains["low"] > 0).sum(), (gains["high"] < 0).sum()
    assert run.titles[0].startswith(
        f"NMTune is clearly above the linear probe in {above} and clearly below in {below} of 2"
    )


def test_one_seed_settles_no_claim(run):
    verdicts = run.table("verdicts")
    assert set(verdicts["backbone"]) == {MODEL}
    assert overall_verdict(verdicts["verdict"]) == "inconclusive"
    assert f"of {len(verdicts)} rows, 0 supported, 0 contradicted, {len(verdicts)} inconclusive" in run.said
    assert "is settled for 0 of 1 model(s)" in run.said
    assert run.titles[1] == "SVE and LSVR: 0 of 4 rows as claimed, 0 the other way"
