"""The study by hand and in one call, with what a reader adds to it, and the claims judged on it."""

import nbformat
import pandas as pd
import papermill
import pytest

from nml_kit import extract_features, load_task, singular_value_entropy, singular_values
from nml_kit.inference import (
    VERDICT_COLUMNS,
    best_ratio_table,
    best_ratios,
    change_in_words,
    changes_in_words,
    judge_claims,
    paired_differences,
    registry_table,
    verdict_counts,
)
from nml_kit.store import Store
from nml_kit.study import (
    RESULT_COLUMNS,
    Origin,
    load_profile,
    pretrained_backbone,
    pretraining_task,
    summary_table,
    write_results,
)
from tests.inference.test_claims import DOWN, HUMP, simulate
from tests.one_notebook import NOTEBOOKS, SMALLEST, NotebookRun, run_notebook

pytestmark = pytest.mark.timeout(400)

OWN = '''
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin

from nml_kit import task_from_arrays


class Nearest(ClassifierMixin, BaseEstimator):
    """The class whose mean is nearest."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        self.means_ = np.stack([X[y == label].mean(axis=0) for label in self.classes_])
        return self

    def predict(self, X):
        return self.classes_[np.linalg.norm(X[:, None] - self.means_, axis=2).argmin(axis=1)]


labels = np.arange(40) % 2
images = np.where(labels[:, None, None, None] == 1, 200, 30) + np.random.default_rng(0).integers(0, 20, (40, 32, 32, 3))
downstream.append(task_from_arrays(images.astype(np.uint8), labels, name="mine"))
heads["nearest"] = Nearest()
'''


@pytest.fixture(scope="module")
def extended(tmp_path_factory, smoke_home) -> NotebookRun:
    """Notebook 02 by plain papermill, with a cell of a reader behind that of what is compared, and another ratio."""
    run_dir = tmp_path_factory.mktemp("02")
    notebook = nbformat.read(NOTEBOOKS / "02_transfer.ipynb", as_version=4)
    place = next(number for number, cell in enumerate(notebook.cells) if "heads = {" in cell.source)
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(OWN))
    nbformat.write(notebook, run_dir / "own.ipynb")
    parameters = {"profile": SMALLEST, "ratios": [0.0, 0.15, 0.3], "fractions": [0.5], "run_dir": str(run_dir)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NML_HOME", str(smoke_home))
        patch.setenv("PLOTLY_RENDERER", "plotly_mimetype")
        papermill.execute_notebook(run_dir / "own.ipynb", run_dir / "notebook.ipynb", parameters, cwd=run_dir)
    return NotebookRun(run_dir)


def test_a_pair_by_hand_is_what_the_study_makes(ran, smoke_home):
    run, profile, store = ran("00_start_here"), load_profile(SMALLEST), Store(smoke_home)
    run.check_page(figures=3)
    shown = run.html("NMTune").split("<tbody>")[1]
    task = load_task("icons").limit(train_per_class=4, seed=0)
    for ratio in (0.0, 0.3):
        origin = Origin(ratio, 0, "supervised")
        backbone = pretrained_backbone(profile, pretraining_task(profile), origin, store=store, progress=False)
        features = extract_features(task, backbone, store=store, progress=False)
        sve = singular_value_entropy(singular_values(features.values[features.splits == "test"]))
        assert f">{sve:.3f}<" in shown


def test_the_study_of_the_first_notebook(ran, study_again):
    run, study = ran("00_start_here"), study_again()
    assert tuple(run.table().columns) == RESULT_COLUMNS
    pd.testing.assert_frame_equal(run.table(), study.rows.assign(experiment="00_start_here"))
    pd.testing.assert_frame_equal(run.table("summary"), summary_table(study))
    probe = study.samples.query("method == 'LP'")
    changes = paired_differences(probe, "ratio", 0.0, ["protocol"])
    for row in changes.itertuples():
        words = change_in_words(row.mean, row.low, row.high)
        assert f"{row.protocol} accuracy {words}" in run.titles[0]
        assert f"{row.protocol} accuracy {words}" in run.said


def test_a_reader_adds_a_task_a_head_and_a_ratio(extended, study_again):
    rows = extended.table()
    assert set(rows["task"]) == {"digits", "icons", "mine"}
    assert set(rows["method"]) == {"LP", "nearest"}
    assert set(rows["ratio"].dropna()) == {0.0, 0.15, 0.3}
    easy = rows.query("task == 'mine' and method == 'nearest' and metric == 'accuracy'")
    assert (easy["value"] == 1).all()  # bright or dark: any features tell
    figure = extended.figures[0]
    assert "nearest" in {trace.get("name") for trace in figure["data"]}
    assert any(note["text"].startswith("ID · mine") for note in figure["layout"]["annotations"])
    assert "mine, nearest at 15 %: accuracy" in extended.said
    assert "with 50 % of the training data" in extended.said
    known = study_again(methods=["LP"], fractions=[0.5, 1.0]).rows
    same = rows.query("task != 'mine' and method == 'LP' and ratio != 0.15")
    columns = ["task", "protocol", "test_domain", "fraction", "ratio", "metric", "value", "settings_hash"]
    shown, expected = (set(table[columns].fillna(-1).itertuples(index=False, name=None)) for table in (same, known))
    assert shown == expected


def test_transfer_and_the_best_ratio_are_told_as_measured(extended, study_again):
    ratios, keys = [0.0, 0.15, 0.3], ["task", "protocol", "method"]
    samples = study_again(methods=["LP"], ratios=ratios).samples
    slight = paired_differences(samples, "ratio", 0.0, keys).query("protocol == 'ID' and ratio == 0.15")
    assert changes_in_words(slight, "{task}, {method} at {ratio}: accuracy").strip() in extended.said
    best = extended.table("best")
    assert best.groupby(keys)["probability"].sum().tolist() == pytest.approx([1.0] * 6)
    table = best_ratio_table(samples, keys)
    pd.testing.assert_frame_equal(
        best.query("method == 'LP' and task != 'mine'").reset_index(drop=True), table.reset_index(drop=True)
    )
    verdicts = best_ratios(best.query("method == 'LP'"), keys)
    for protocol, part in verdicts.groupby("protocol"):
        assert f"{part['established'].sum()} of {len(part)} {protocol}" in extended.titles[3]
        assert f"{part['includes_clean'].sum()} of {len(part)} {protocol}" in extended.said
    assert len(extended.titles) == 4


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """The notebook of claims run on results of known truth, and what the package says of them."""
    root = tmp_path_factory.mktemp("claims")
    rows, samples = simulate(accuracy={("OOD", "LP"): DOWN, ("ID", "LP"): HUMP}, samples=300)
    texts = dict.fromkeys(set(RESULT_COLUMNS) - set(rows), "x")
    rows = rows.assign(**texts | {"profile": "smoke", "fraction": 1.0, "label_noise": 0.0})[list(RESULT_COLUMNS)]
    write_results(root / "results" / "one", rows=rows)
    write_results(root / "results" / "two", rows=rows[rows["method"] == "LP"].assign(experiment="another"))
    identity = dict.fromkeys(["recipe", "noise", "backbone", "train_domain"], "x") | {"profile": "smoke"}
    answers = {"label": 1, "prediction": samples["correct"].astype(int)}
    write_results(root / "results", samples=samples.assign(**identity, **answers))
    ran = run_notebook("11_claims", root, root / "home", results=str(root / "results"))
    return ran, judge_claims(rows, samples)


def test_verdicts_are_those_of_the_results_it_was_given(judged):
    run, expected = judged
    run.check_page(figures=3)
    verdicts = run.table("verdicts")
    assert tuple(verdicts.columns) == VERDICT_COLUMNS
    pd.testing.assert_frame_equal(verdicts, expected, check_dtype=False)
    assert set(verdicts.query("claim == 'C2' and contrast.str.contains('30 %')")["verdict"]) == {"supported"}


def test_sentence_and_titles_count_the_verdicts(judged):
    run, verdicts = judged
    about = verdicts[verdicts["claim"] != "C7"]
    supported = int((about["verdict"] == "supported").sum())
    assert f"(profile smoke, seeds per row: 5 to 5): of {len(about)} rows, {supported} supported" in run.said
    families = {"Noise and accuracy": ["C1", "C2", "C6"], "Noise and spectra": ["C3", "C4"], "Methods": ["C5"]}
    for title, (name, claims) in zip(run.titles, families.items(), strict=True):
        counts = verdict_counts(verdicts[verdicts["claim"].isin(claims)]).sum(numeric_only=True)
        assert title == (
            f"{name}: {counts['supported']} of {counts['rows']} rows supported, {counts['contradicted']} contradicted"
        )


def test_claims_are_stated_before_their_verdicts(judged):
    run, verdicts = judged
    html = [output.data.get("text/html", "") for output in run.outputs if output.output_type != "stream"]
    tables = [text for text in html if "<table" in text]
    assert len(tables) == 3
    assert all(text in tables[0] for text in registry_table()[["id", "statement"]].to_numpy().ravel())
    assert all(word not in tables[0] for word in verdicts["why"])
    assert all(why in tables[2] for why in verdicts["why"])


def test_the_study_of_a_profile_with_one_seed_decides_nothing(ran, study_again):
    run, study = ran("11_claims"), study_again()
    verdicts = run.table("verdicts")
    pd.testing.assert_frame_equal(verdicts, judge_claims(study.rows, study.samples), check_dtype=False)
    assert set(verdicts["verdict"]) == {"inconclusive"}
    assert set(verdicts["claim"]) == set(registry_table()["id"])
    right = study.samples.query("method == 'LP' and protocol == 'OOD'").groupby("ratio")["correct"].mean()
    [row] = verdicts.query("claim == 'C2' and task == 'icons' and contrast == 'LP: 30 % − 0 %'").itertuples()
    assert row.effect == pytest.approx(right[0.3] - right[0.0])
