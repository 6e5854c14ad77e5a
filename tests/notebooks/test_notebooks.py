"""Every notebook executed in the profile of seconds: what it writes and says is checked against the parts."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nml_kit.batch import plan_suite, run_suite
from nml_kit.data import load_task
from nml_kit.inference import accuracy_intervals, change_in_words, paired_differences
from nml_kit.pages import notebook_parameters, read_source
from nml_kit.store import Store
from nml_kit.study import RESULT_COLUMNS, Study, load_profile, run_study, summary_table
from tests.one_notebook import NOTEBOOKS, NotebookRun

FIGURES = {
    "00_start_here": 3,
    "01_noise": 2,
    "02_noise_and_transfer": 3,
    "03_singular_spectra": 3,
    "04_nmtune": 3,
}
pytestmark = [pytest.mark.xdist_group("notebooks"), pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, smoke_home) -> tuple[Path, Study]:
    """The notebooks of the demo, run once in the profile of seconds, and the study they show."""
    root = tmp_path_factory.mktemp("notebooks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NML_HOME", str(smoke_home))
        results = run_suite(plan_suite(NOTEBOOKS / "suites" / "demo.yaml", runs=root, profile="smoke"))
        assert [(result.exit_code, result.error) for result in results] == [(0, "")] * len(FIGURES)
        study = run_study(load_profile("smoke"), store=Store(), progress=False)
    return root, study


def notebook(root: Path, name: str) -> NotebookRun:
    return NotebookRun(root / "demo-smoke" / name)


def said(root: Path, name: str) -> str:
    return notebook(root, name).said


def titles(root: Path, name: str) -> list[str]:
    return notebook(root, name).titles


def rows(root: Path, name: str) -> pd.DataFrame:
    return notebook(root, name).table()


def test_the_smoke_suite_runs_every_notebook_for_both_objectives():
    listed: dict[str, list[str]] = {}
    for run in plan_suite(NOTEBOOKS / "suites" / "smoke.yaml", runs="runs"):
        listed.setdefault(run.notebook.stem, []).append(run.params.get("objective"))
    assert sorted(listed) == sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    for name, objectives in listed.items():
        has_choice = "objective" in notebook_parameters(read_source(NOTEBOOKS / f"{name}.ipynb"))
        assert objectives == (["supervised", "contrastive"] if has_choice else [None]), name


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_shown_and_nothing_is_warned_of(runs, name):
    root, _ = runs
    notebook(root, name).check_page(figures=FIGURES[name])


@pytest.mark.parametrize("name", [name for name in FIGURES if name != "01_noise"])
def test_result_rows_are_those_of_the_study(runs, name):
    root, study = runs
    found = rows(root, name).query("fraction == 1").reset_index(drop=True)
    expected = study.rows if name in ("00_start_here", "04_nmtune") else study.rows.query("method == 'LP'")
    assert tuple(found.columns) == RESULT_COLUMNS
    assert set(found["experiment"]) == {name}
    pd.testing.assert_frame_equal(
        found.drop(columns="experiment"), expected.drop(columns="experiment").reset_index(drop=True)
    )


def test_noise_notebook_counts_exactly(runs):
    root, _ = runs
    found = rows(root, "01_noise")
    task = load_task("icons-pretrain").limit(classes=6, train_per_class=12, seed=0)
    count = int((task.splits == "train").sum())
    assert found["requested"].tolist() == [0.0, 0.1, 0.3]
    assert found["flipped"].tolist() == [int(np.floor(ratio * count + 0.5)) for ratio in (0.0, 0.1, 0.3)]
    assert found["flipped into their own class"].tolist() == [0, 0, 0]
    sentences = said(root, "01_noise")
    assert "nested from each ratio to the next: True, True" in sentences
    assert "the collection of captions is unchanged: True" in sentences


def test_start_here_says_what_was_measured(runs):
    root, study = runs
    summary = pd.read_parquet(root / "demo-smoke" / "00_start_here" / "summary.parquet")
    pd.testing.assert_frame_equal(summary, summary_table(study))
    probe = study.samples.query("method == 'LP'")
    changes = paired_differences(probe, "ratio", 0.0, ["protocol"]).set_index(["protocol", "ratio"])
    for protocol in ("ID", "OOD"):
        words = change_in_words(*changes.loc[(protocol, 0.3), ["mean", "low", "high"]])
        assert words in said(root, "00_start_here")
        assert words in titles(root, "00_start_here")[0]


def test_transfer_notebook_judges_each_in_domain_task(runs):
    root, study = runs
    probe = study.samples.query("method == 'LP'")
    falls = paired_differences(probe, "ratio", 0.0, ["task", "protocol", "method"])
    for row in falls.query("protocol == 'ID'").itertuples(index=False):
        assert f"{row.task} {change_in_words(row.mean, row.low, row.high)}" in said(root, "02_noise_and_transfer")


def test_transfer_notebook_shows_the_shares_of_the_downstream_data_asked_for(runs, smoke_home):
    root, _ = runs
    defaults = notebook_parameters(read_source(NOTEBOOKS / "02_noise_and_transfer.ipynb"))
    assert defaults["fractions"] == [0.1, 0.25, 0.5, 0.75, 1.0]  # those of the paper's Fig. 2
    found = rows(root, "02_noise_and_transfer").groupby("fraction").size()
    assert found.index.tolist() == [0.1, 1.0]
    assert found.nunique() == 1
    store = Store(smoke_home)
    few = run_study(load_profile("smoke"), methods=("LP",), fractions=(0.1,), store=store, progress=False)
    for row in paired_differences(few.samples, "ratio", 0.0, ["protocol"]).itertuples(index=False):
        words = f"{row.protocol} at 30 %: accuracy {change_in_words(row.mean, row.low, row.high)}"
        assert words in said(root, "02_noise_and_transfer").split("with 10 % of the training data")[1]


def test_spectra_notebook_counts_rising_entropies(runs):
    root, study = runs
    sve = study.rows.query("method == 'LP' and protocol == 'ID' and metric == 'sve' and ratio == ratio")
    by_ratio = sve.pivot_table(index="task", columns="ratio", values="value")
    change = by_ratio[0.3] - by_ratio[0.0]
    assert f"in {int((change > 0).sum())} of {len(change)} pairs of ID task and seed" in said(
        root, "03_singular_spectra"
    )


def test_nmtune_notebook_names_the_best_method(runs):
    root, study = runs
    intervals = accuracy_intervals(study.samples.query("ratio == ratio"))
    best = intervals.loc[intervals.groupby(["task", "protocol", "ratio"])["mean"].idxmax(), "method"].value_counts()
    assert all(f"{method} {count}" in titles(root, "04_nmtune")[0] for method, count in best.items())
    words = paired_differences(study.samples.query("ratio == ratio"), "method", "LP", ["protocol"])
    for row in words.itertuples(index=False):
        sentence = f"{row.protocol}: from LP to {row.method}, accuracy {change_in_words(row.mean, row.low, row.high)}"
        assert sentence in said(root, "04_nmtune")
