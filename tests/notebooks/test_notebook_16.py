"""The notebook of the claims judges results that it is given, and the study of a profile, as the package does."""

import pandas as pd
import pytest

from nml_kit import load_profile, run_study
from nml_kit.inference import CLAIMS, VERDICT_COLUMNS, judge_claims, verdict_counts
from nml_kit.store import Store
from nml_kit.study import RESULT_COLUMNS, write_results
from tests.inference.test_claims import DOWN, HUMP, simulate
from tests.one_notebook import SMALLEST, run_notebook

pytestmark = [pytest.mark.xdist_group("notebook-16"), pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """The notebook run on results of known truth, and what the package says of them."""
    root = tmp_path_factory.mktemp("claims")
    rows, samples = simulate(accuracy={("OOD", "LP"): DOWN, ("ID", "LP"): HUMP}, samples=300)
    texts = dict.fromkeys(set(RESULT_COLUMNS) - set(rows), "x")
    rows = rows.assign(**texts | {"profile": "smoke", "fraction": 1.0, "label_noise": 0.0})[list(RESULT_COLUMNS)]
    write_results(root / "results" / "one", rows=rows)
    write_results(root / "results" / "two", rows=rows[rows["method"] == "LP"].assign(experiment="another"))
    answers = {"label": 1, "prediction": samples["correct"].astype(int)}
    write_results(root / "results", samples=samples.assign(profile="smoke", **answers))
    ran = run_notebook("16_claims", root, root / "home", results=str(root / "results"))
    return ran, judge_claims(rows, samples)


def test_verdicts_are_those_of_the_results_it_was_given(judged):
    notebook, expected = judged
    notebook.check_page(figures=3)
    verdicts = notebook.table("verdicts")
    assert tuple(verdicts.columns) == VERDICT_COLUMNS
    pd.testing.assert_frame_equal(verdicts, expected, check_dtype=False)
    assert set(verdicts.query("claim == 'C2' and contrast.str.contains('30 %')")["verdict"]) == {"supported"}


def test_sentence_and_titles_count_the_verdicts(judged):
    notebook, verdicts = judged
    about = verdicts[verdicts["claim"] != "C7"]
    supported = int((about["verdict"] == "supported").sum())
    assert f"(profile smoke, seeds per row: 5 to 5): of {len(about)} rows, {supported} supported" in notebook.said
    families = {"Noise and accuracy": ["C1", "C2", "C6"], "Noise and spectra": ["C3", "C4"], "Methods": ["C5"]}
    for title, (name, claims) in zip(notebook.titles, families.items(), strict=True):
        counts = verdict_counts(verdicts[verdicts["claim"].isin(claims)]).sum(numeric_only=True)
        assert title == (
            f"{name}: {counts['supported']} of {counts['rows']} rows supported, {counts['contradicted']} contradicted"
        )


def test_claims_are_stated_before_their_verdicts(judged):
    notebook, verdicts = judged
    html = [output.data.get("text/html", "") for output in notebook.outputs if output.output_type != "stream"]
    tables = [text for text in html if "<table" in text]
    assert len(tables) == 3
    assert all(claim.statement in tables[0] and claim.id in tables[0] for claim in CLAIMS.values())
    assert all(word not in tables[0] for word in verdicts["why"])
    assert all(why in tables[2] for why in verdicts["why"])


def test_the_study_of_a_profile_with_one_seed_decides_nothing(tmp_path, smoke_home):
    notebook = run_notebook("16_claims", tmp_path, smoke_home, profile=SMALLEST)
    verdicts = notebook.table("verdicts")
    assert set(verdicts["verdict"]) == {"inconclusive"}
    assert set(verdicts["claim"]) == set(CLAIMS)
    study = run_study(load_profile(SMALLEST), store=Store(smoke_home), progress=False)
    pd.testing.assert_frame_equal(verdicts, judge_claims(study.rows, study.samples), check_dtype=False)
    right = study.samples.query("method == 'LP' and protocol == 'OOD'").groupby("ratio")["correct"].mean()
    (row,) = verdicts.query("claim == 'C2' and task == 'icons' and contrast == 'LP: 30 % − 0 %'").itertuples()
    assert row.effect == pytest.approx(right[0.3] - right[0.0])
    notebook.check_page(figures=3)
