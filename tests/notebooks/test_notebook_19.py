"""The notebook of real language models in the profile of seconds, against the tables that it wrote."""

import pytest

from nml_kit.audit import head_differences
from nml_kit.inference import change_in_words, paired_differences
from nml_kit.study import RESULT_COLUMNS
from tests.one_notebook import NotebookRun, run_notebook

pytestmark = [pytest.mark.xdist_group("notebook-19"), pytest.mark.timeout(400)]
MODEL, BASELINE = "packaged:all-minilm-l6-v2", "bag-of-words"


@pytest.fixture(scope="module")
def run(tmp_path_factory, smoke_home) -> NotebookRun:
    few = {"ood_tasks": {"emoji-text": ["keywords"]}, "sources": {"emoji-text": ["name"]}, "epochs": 2}
    return run_notebook("19_practical_language", tmp_path_factory.mktemp("nb19"), smoke_home, **few)


def test_heads_learn_from_names_and_are_tested_on_keywords(run):
    run.check_page(figures=2)
    rows, samples = run.table(), run.table("samples")
    assert tuple(rows.columns) == RESULT_COLUMNS
    assert set(rows["backbone"]) == {MODEL, BASELINE}
    folds = rows.drop_duplicates(["protocol", "train_domain", "test_domain"])
    assert sorted(zip(folds["protocol"], folds["train_domain"], folds["test_domain"], strict=True)) == [
        ("ID", "name", "name"),
        ("OOD", "name", "keywords"),
    ]
    assert set(samples.query("protocol == 'OOD'")["domain"]) == {"keywords"}


def test_sentences_and_titles_are_those_of_the_samples(run):
    samples = run.table("samples")
    bought = paired_differences(samples.query("method == 'LP'"), "backbone", BASELINE, ["protocol"])
    for row in bought.itertuples():
        sentence = f"{row.protocol}: from {BASELINE} to {MODEL}, accuracy of the linear probe "
        assert sentence + change_in_words(row.mean, row.low, row.high) in run.said
    gains = head_differences(samples.query("backbone == @MODEL"), ["domain", "protocol"])
    counts = {
        contrast: ((part["low"] > 0).sum(), (part["high"] < 0).sum()) for contrast, part in gains.groupby("contrast")
    }
    (above, below), (over, under) = counts["NMTune − LP"], counts["NMTune − MLP"]
    assert f"linear probe in {above} and clearly below in {below} of 2 pairs of model and domain" in run.titles[0]
    assert f"above MLP in {over}, below in {under}" in run.titles[0]


def test_each_head_of_each_model_is_chosen_once_a_fold(run):
    chosen = run.table("selections").query("chosen")
    assert len(chosen) == 2 * 2 * 3  # models, folds, heads; one seed
    assert not chosen.duplicated(["backbone", "protocol", "method"]).any()
